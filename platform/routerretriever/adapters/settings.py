"""What an expert is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
)

from routerretriever.settings import Fraction, Settings


class LoraSettings(Settings):
    """Low-rank adapter on the query tower (PEFT's LoRA)."""

    rank: PositiveInt = 8
    """Rank of the update matrices."""
    alpha: PositiveInt = 32
    """The update is scaled by alpha / rank."""
    dropout: Fraction = 0.1
    """Dropout on the adapter's input in training."""
    target_modules: tuple[str, ...] = ("query", "key", "value", "dense")
    """Names of the linear layers that get an adapter."""


class PrefixSettings(Settings):
    """Trained keys and values for a query's tokens to attend to. See ``routerretriever.encoder.prefix``.

    They want a far higher learning rate than a LoRA: on dev queries of the sample 0.03 did best.
    """

    length: PositiveInt = 16
    """Prefix tokens in each layer."""
    layers: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = None
    """Transformer layers that have a prefix; by default all."""
