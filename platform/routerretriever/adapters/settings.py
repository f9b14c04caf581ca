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
    alpha: PositiveInt = 32
    dropout: Fraction = 0.1
    target_modules: tuple[str, ...] = ("query", "key", "value", "dense")


class PrefixSettings(Settings):
    """Trained keys and values for a query's tokens to attend to. See ``routerretriever.encoder.prefix``.

    They want a far higher learning rate than a LoRA: on dev queries of the sample 0.03 did best.
    """

    length: PositiveInt = 16
    """Prefix tokens in each layer."""
    layers: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = None
    """Transformer layers that have a prefix; by default all."""
