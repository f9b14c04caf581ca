"""What is wrong with a base encoder, said before the first worker starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from routerretriever.adapters.base import AdapterSettings
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.errors import EncoderError

if TYPE_CHECKING:
    from routerretriever.encoder.card import EncoderCard

_TEXTS = ("the first of two texts", "another one, which is longer than the first and says something else", "")


def check_encoder(settings: EncoderSettings, adapters: tuple[AdapterSettings, ...] = ()) -> EncoderCard:
    """Load a base once, encode a few texts, and attach a fresh adapter of each kind that will be trained.

    Returns:
        The settings that it is run with, and where each came from.

    Raises:
        EncoderError: in one line, what is wrong and what to do.
    """
    from routerretriever.adapters.tower import load_tower

    tower = load_tower(settings)
    for vectors in (tower.encode_queries(_TEXTS), tower.encode_documents(_TEXTS)):
        if not np.isfinite(vectors).all():
            raise EncoderError(
                f"encoder.name: {settings.name} gives vectors that are not finite in {settings.dtype}"
            )
        if np.allclose(vectors[0], vectors[1], atol=1e-6):
            raise EncoderError(
                f"encoder.name: {settings.name} gives different texts the same vector; are weights and "
                "tokenizer of the same model?"
            )
    for number, adapter in enumerate(adapters):
        fresh = tower if number == 0 else load_tower(settings)
        fresh.add_adapter("check", adapter)
        fresh.encode_queries(_TEXTS, "check")
    return tower.card
