"""The least cosine that fusing reckons with, by how alike an encoder finds texts that have nothing in common.

Convex combination takes -1 (arXiv 2210.11934). Many encoders put all texts into a narrow cone: unrelated
texts have a cosine of 0.78 by multilingual-e5-small and of 0.04 by all-MiniLM-L6-v2. Counted from -1, the
cosines of such an encoder hardly differ, and a small weight of BM25 decides alone.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from routerretriever.index.settings import LEAST_COSINE, FusionSettings
from routerretriever.types import Vectors

_RELATED_SHARE = 0.45
"""What unrelated texts are below 1, as a share of what the floor is below 1. For all-MiniLM-L6-v2, by which
the prior weight was chosen, the floor is so -1."""
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


def with_floor(settings: FusionSettings, encoder: DocumentEncoder) -> FusionSettings:
    """The settings with the encoder's floor, unless they name one."""
    if settings.cosine_floor is not None:
        return settings
    return settings.model_copy(update={"cosine_floor": floor_of(unrelated_cosine(encoder))})


def unrelated_cosine(encoder: DocumentEncoder) -> float:
    """The mean cosine of two unrelated texts."""
    vectors_nd = encoder.encode_documents(_UNRELATED)
    vectors_nd = vectors_nd / np.linalg.norm(vectors_nd, axis=1, keepdims=True)
    count = len(vectors_nd)
    return float(((vectors_nd @ vectors_nd.T).sum() - count) / (count * (count - 1)))


def floor_of(unrelated: float) -> float:
    """The floor for a mean cosine of unrelated texts; -1 at least."""
    return max(LEAST_COSINE, round(1 - (1 - unrelated) / _RELATED_SHARE, 2))
