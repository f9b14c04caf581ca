"""What is wrong with a base encoder, said before the first worker starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from routerretriever.adapters.base import AdapterSettings
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.errors import EncoderError, first_line
from routerretriever.types import Vectors

if TYPE_CHECKING:
    from routerretriever.encoder.card import EncoderCard
    from routerretriever.encoder.encoder import Features

_TEXTS = ("the first of two texts", "another one, which is longer than the first and says something else", "")
_MOST_CHANGE = 0.1
"""Of a vector, by the texts beside it, as a part of its length; half precision rounds less than this."""


def check_encoder(
    settings: EncoderSettings, adapters: tuple[AdapterSettings, ...] = (), features: Features = "embedding"
) -> EncoderCard:
    """Load a base once, encode a few texts, and attach a fresh adapter of each kind that will be trained.

    Args:
        settings: of the base.
        adapters: that will be trained.
        features: what a router will read.

    Returns:
        The settings that it is run with, and where each came from.

    Raises:
        EncoderError: in one line, what is wrong and what to do.
    """
    from routerretriever.adapters.tower import load_tower

    tower = load_tower(settings)
    try:
        for kind, tokenize in (("query", tower.tokenize_queries), ("document", tower.tokenize_documents)):
            rows = tokenize(_TEXTS)
            if len(rows[1]) > tower.limit(kind == "document"):  # fewer than a tokenizer's special tokens
                raise EncoderError(
                    f"encoder.{kind}_max_length: with so few tokens the tokenizer cuts nothing; allow more"
                )
            if rows[0] == rows[1]:
                raise EncoderError(
                    f"encoder.{kind}_max_length: of a {kind} only its prompt is read, {len(rows[0])} tokens; "
                    f"allow more, or set a shorter encoder.{kind}_prompt"
                )
        for encode in (tower.encode_queries, tower.encode_documents):
            _require_vectors(encode, settings)
        tower.routing_features(_TEXTS, features)
        for number, adapter in enumerate(adapters):
            fresh = tower if number == 0 else load_tower(settings)
            fresh.add_adapter("check", adapter)
            fresh.encode_queries(_TEXTS, "check")
    except EncoderError:
        raise
    except Exception as error:  # what a model raises that is called amiss is of many libraries' kinds
        reason = first_line(error)
        raise EncoderError(f"encoder.name: {settings.name} cannot be run here: {reason}") from error
    return tower.card


def _require_vectors(encode: Callable[[Sequence[str]], Vectors], settings: EncoderSettings) -> None:
    vectors = encode(_TEXTS)
    if not np.isfinite(vectors).all():
        raise EncoderError(
            f"encoder.name: {settings.name} gives vectors that are not finite in {settings.dtype}"
        )
    if np.allclose(vectors[0], vectors[1], atol=1e-6):
        raise EncoderError(
            f"encoder.name: {settings.name} gives different texts the same vector; are weights and "
            "tokenizer of the same model?"
        )
    alone = np.concatenate([encode([text]) for text in _TEXTS])
    change = np.linalg.norm(vectors - alone, axis=1)
    if (change > _MOST_CHANGE * np.linalg.norm(alone, axis=1)).any():
        raise EncoderError(
            f"encoder.name: {settings.name} gives a text another vector beside longer ones: it reads the "
            "padding, as ConvBERT, FNet and Nystromformer do; name another encoder"
        )
