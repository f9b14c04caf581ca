"""Routers that look at the nearest training queries: N reference queries, searched with FAISS.

``neighbours``: the mean utility of every expert on the nearest queries. ``dataset``: the paper's
DatasetRouter, the expert of the dataset of the single nearest of 100 queries per dataset (arXiv 2409.02685,
A.1).
"""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

from routerretriever.routing.data import RoutingData
from routerretriever.routing.protocol import MixingRouter, State
from routerretriever.routing.settings import RoutingSettings
from routerretriever.types import Vectors

DATASET_ROUTER_SAMPLE = 100
_CANDIDATES = 64
"""Or four for each neighbour asked for, if more: bytes cannot tell queries apart that are nearly alike."""
_BYTE = 127.0
_SMALLEST = 1e-12


class NeighbourRouter(MixingRouter):
    """Scores are the mean of the values [N, T] of the ``count`` nearest reference queries [N, d]."""

    kind = "neighbours"

    def __init__(
        self,
        experts: list[str],
        reference_Nd: Vectors,
        values_NT: Vectors,
        count: int,
        mixing: str,
        temperature: float,
    ) -> None:
        super().__init__(experts, mixing, temperature)
        self._reference_Nd = reference_Nd
        self._references = References(reference_Nd)
        self._values_NT = values_NT
        self._count = count

    def scores(self, features_Bd: Vectors) -> NDArray[np.float64]:
        """Predicted utility of each expert."""
        _, rows_Bk = self._references.nearest(features_Bd, self._count)
        return self._values_NT[rows_Bk].mean(axis=1).astype(np.float64)

    def state(self) -> State:
        """Settings and arrays."""
        settings = {"count": self._count, "mixing": self.mixing, "temperature": self.temperature}
        return settings, {"reference_Nd": self._reference_Nd, "values_NT": self._values_NT}


class References:
    """Training queries [N, d] that others are compared with, by cosine similarity.

    Reading them is what a search costs, so candidates are found among vectors of one byte a number, and
    compared in full precision then.
    """

    def __init__(self, vectors_Nd: Vectors) -> None:
        vectors_Nd = unit(vectors_Nd)
        rough = faiss.IndexScalarQuantizer(
            vectors_Nd.shape[1], faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT
        )
        rough.add(np.rint(vectors_Nd * (_BYTE / max(np.abs(vectors_Nd).max(), _SMALLEST))))
        self._index = faiss.IndexRefineFlat(rough, faiss.swig_ptr(vectors_Nd))

    def nearest(self, features_Bd: Vectors, count: int) -> tuple[Vectors, NDArray[np.int64]]:
        """Similarity [B, k] and row [B, k] of the nearest, k at most N."""
        features_Bd = unit(features_Bd)
        count = min(count, self._index.ntotal)
        self._index.k_factor = max(_CANDIDATES / count, 4.0)
        # FAISS takes the bytes of these as well, so each row is drawn out to use them all.
        steps_B1 = _BYTE / np.maximum(np.abs(features_Bd).max(axis=1, keepdims=True), _SMALLEST)
        similarity_Bk, rows_Bk = self._index.search(features_Bd * steps_B1, count)
        return similarity_Bk / steps_B1, rows_Bk


def unit(vectors: Vectors) -> Vectors:
    """Rows at length 1; zeros stay zeros."""
    made = np.array(vectors, dtype=np.float32, order="C")
    faiss.normalize_L2(made)
    return made


def fit_neighbours(data: RoutingData, settings: RoutingSettings) -> NeighbourRouter:
    """Keep a sample of every dataset's scored queries."""
    data = data.sample(settings.references, settings.seed)
    features, utilities, _ = data.stacked(list(data.features))
    return NeighbourRouter(
        data.experts,
        features,
        utilities.astype(np.float32),
        settings.neighbours,
        settings.mixing,
        settings.temperature,
    )


def fit_dataset(data: RoutingData, settings: RoutingSettings) -> NeighbourRouter:
    """Keep 100 queries of every dataset with an expert, each speaking for that expert."""
    data = data.sample(DATASET_ROUTER_SAMPLE, settings.seed)
    features, _, labels = data.stacked(data.own_datasets)
    columns = np.array([data.experts.index(name) for name in data.own_datasets])
    values = np.eye(len(data.experts), dtype=np.float32)[columns[labels]]
    return NeighbourRouter(data.experts, features, values, 1, settings.mixing, settings.temperature)
