"""How far apart an encoder keeps texts that have nothing in common, and what is set by it.

Many encoders put all texts into a narrow cone: unrelated texts have a cosine of 0.78 by multilingual-e5-small
and of 0.04 by all-MiniLM-L6-v2. What suits the scores of one is far too much or too little for those of the
other: the temperature of a softmax over them, and the weight of other scores beside them.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from routerretriever.types import Vectors

LEAST_COSINE = -1.0
_WIDE = 0.9
"""A spread from which encoders count as alike; that of all-MiniLM-L6-v2, on which the defaults were chosen,
is 0.96."""
_LARGE = 1.1
"""A spread that vectors of unit length do not reach; from it on, scores are large dot products."""
_UNRELATED = [
    "The bakery on the corner sells rye bread on Fridays.",
    "Tectonic plates move a few centimetres every year.",
    "def add(a, b): return a + b",
    "The court ruled that the lease had ended in March.",
    "A dose of vitamin D was given to each patient daily.",
    "The orchestra rehearsed the second movement twice.",
    "Bees find their way back by the position of the sun.",
    "Interest rates rose by a quarter of a point.",
    "The goalkeeper was injured shortly before the final.",
    "Mix sand, cement and water, and let it set for a day.",
    "Roman roads were built in layers of stone and gravel.",
    "Restart the router and check the network cable.",
    "The novel tells the story of two sisters in Lisbon.",
    "Electrons are scattered by impurities in the crystal.",
    "Prune apple trees in late winter, before the buds open.",
    "The ferry leaves from pier four at half past nine.",
]


class DocumentEncoder(Protocol):
    """Embeds documents."""

    def encode_documents(self, texts: list[str]) -> Vectors:
        """Vectors [n, d]."""
        ...


def spread_of(encoder: DocumentEncoder) -> float:
    """The mean inner product of a text with itself, less that of two unrelated texts.

    With vectors of unit length it is 1 less the mean cosine of unrelated texts.
    """
    vectors_nd = encoder.encode_documents(_UNRELATED).astype(np.float64)
    products_nn = vectors_nd @ vectors_nd.T
    count, own = len(vectors_nd), float(np.trace(products_nn))
    return own / count - (float(products_nn.sum()) - own) / (count * (count - 1))


def cosine_floor(spread: float) -> float:
    """The cosine that counts as no likeness at all, -1 at least; convex combination begins there."""
    return max(LEAST_COSINE, round(1 - 2 * spread / _WIDE, 2))


def temperature_scale(spread: float) -> float:
    """What a temperature that suits a wide encoder is to be multiplied by."""
    return min(spread / _WIDE, 1.0) if spread < _LARGE else spread / _LARGE
