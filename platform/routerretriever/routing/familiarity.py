"""How much a query is like the training queries of some domain: the measures that a fallback goes by.

A measure gives every query a value, higher for what is more familiar, and the datasets whose own queries say
which values are usual.

Shapes: B queries, N reference queries, M datasets, d features, k datasets that a query is compared with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from routerretriever.routing.neighbours import References
from routerretriever.types import Vectors

_FOLDS = 5
_SMALLEST = 1e-12


class Likeness(NamedTuple):
    """How alike queries are to reference queries."""

    value_B: Vectors
    dataset_Bk: NDArray[np.int64]
    """Whose usual values each is to be compared with."""


class Measure(ABC):
    """A way to tell how familiar queries are."""

    kind: ClassVar[str]

    @abstractmethod
    def of(self, features_Bd: Vectors) -> Likeness:
        """How alike queries are to the reference queries."""

    @abstractmethod
    def state(self) -> dict[str, NDArray[Any]]:
        """Arrays from which it can be made again, with the reference queries."""


class NeighbourMeasure(Measure):
    """Mean cosine similarity to the nearest reference queries."""

    kind = "neighbours"

    def __init__(self, references: References, dataset_N: NDArray[np.int64], count: int) -> None:
        self._references = references
        self._dataset_N = dataset_N
        self._count = count

    def of(self, features_Bd: Vectors) -> Likeness:
        """Compare with the nearest."""
        return self._like(*self._references.nearest(features_Bd, self._count))

    def of_references(self, own_Bd: Vectors) -> Likeness:
        """Compare reference queries with their nearest others."""
        # The nearest neighbour of a reference query is itself: it is left out of its own neighbourhood.
        similarity_Bk, rows_Bk = self._references.nearest(own_Bd, self._count + 1)
        if similarity_Bk.shape[1] > 1:  # else it is all there is to compare with
            similarity_Bk, rows_Bk = similarity_Bk[:, 1:], rows_Bk[:, 1:]
        return self._like(similarity_Bk, rows_Bk)

    def _like(self, similarity_Bk: Vectors, rows_Bk: NDArray[np.int64]) -> Likeness:
        return Likeness(similarity_Bk.mean(axis=1), self._dataset_N[rows_Bk])

    def state(self) -> dict[str, NDArray[Any]]:
        """None: the reference queries are all that is needed."""
        return {}


class DistanceMeasure(Measure):
    """Relative Mahalanobis distance (arXiv 2106.09022): how much nearer a query is to the nearest domain than
    to all queries together.

    Domains are Gaussians of one covariance, all queries together are another. The difference of the two
    squared distances is a quadratic form that the datasets share, and a line for each.
    """

    kind = "distance"

    def __init__(
        self, centre_d: Vectors, curvature_dd: Vectors, slope_Md: Vectors, offset_M: Vectors
    ) -> None:
        self._centre_d = centre_d
        self._curvature_dd = curvature_dd
        self._slope_Md = slope_Md
        self._offset_M = offset_M

    @classmethod
    def fit(cls, features_Nd: Vectors, dataset_N: NDArray[np.int64], datasets: int) -> DistanceMeasure:
        """Estimate the Gaussians; a dataset without a query is never the nearest."""
        features_Nd = features_Nd.astype(np.float64)
        centre_d = features_Nd.mean(axis=0)
        centred_Nd = features_Nd - centre_d
        counts_M = np.bincount(dataset_N, minlength=datasets)
        means_Md = np.zeros((datasets, features_Nd.shape[1]))
        np.add.at(means_Md, dataset_N, centred_Nd)
        means_Md /= np.maximum(counts_M, 1)[:, None]
        overall_dd = _precision(centred_Nd)
        within_dd = _precision(centred_Nd - means_Md[dataset_N])
        pulled_Md = means_Md @ within_dd
        offset_M = np.where(counts_M > 0, -(pulled_Md * means_Md).sum(axis=1), -np.inf)
        arrays = centre_d, overall_dd - within_dd, 2 * pulled_Md, offset_M
        return cls(*(array.astype(np.float32) for array in arrays))

    def among(self, datasets: int) -> DistanceMeasure:
        """The same, but only the first of the datasets can be the nearest."""
        kept = slice(datasets)
        return DistanceMeasure(self._centre_d, self._curvature_dd, self._slope_Md[kept], self._offset_M[kept])

    def of(self, features_Bd: Vectors) -> Likeness:
        """Compare with the nearest domain."""
        centred_Bd = features_Bd - self._centre_d
        shared_B = np.einsum("bd,bd->b", centred_Bd @ self._curvature_dd, centred_Bd)
        nearer_BM = centred_Bd @ self._slope_Md.T + self._offset_M
        nearest_B = nearer_BM.argmax(axis=1)
        value_B = shared_B + nearer_BM[np.arange(len(nearest_B)), nearest_B]
        return Likeness(value_B.astype(np.float32), nearest_B[:, None])

    def state(self) -> dict[str, NDArray[Any]]:
        """The quadratic form and the lines."""
        return {
            "centre_d": self._centre_d,
            "curvature_dd": self._curvature_dd,
            "slope_Md": self._slope_Md,
            "offset_M": self._offset_M,
        }


def distances_of_references(
    features_Nd: Vectors, dataset_N: NDArray[np.int64], datasets: int, seed: int, own: int | None = None
) -> Likeness:
    """Reference queries compared with what the others make known: in five parts, each by the other four.

    Args:
        features_Nd: of all datasets.
        dataset_N: which dataset each is of, in ascending order.
        datasets: how many there are.
        seed: of the parts.
        own: how many of the datasets, from the first, can be the nearest; by default all.
    """
    folds = min(_FOLDS, len(features_Nd))
    fold_N = np.empty(len(features_Nd), dtype=np.int64)
    random = np.random.default_rng(seed)
    for dataset in range(datasets):  # each lies in all parts
        rows = np.flatnonzero(dataset_N == dataset)
        fold_N[rows] = (random.permutation(len(rows)) + rows[0]) % folds
    value_N = np.empty(len(features_Nd), dtype=np.float32)
    nearest_N1 = np.empty((len(features_Nd), 1), dtype=np.int64)
    for fold in range(folds):
        part = fold_N == fold
        fitted = DistanceMeasure.fit(features_Nd[~part], dataset_N[~part], datasets).among(own or datasets)
        value_N[part], nearest_N1[part] = fitted.of(features_Nd[part])
    return Likeness(value_N, nearest_N1)


def load_measure(
    kind: str,
    arrays: dict[str, NDArray[Any]],
    references: References,
    dataset_N: NDArray[np.int64],
    count: int,
) -> Measure:
    """A measure from its state, the reference queries, and how many of them a query is compared with.

    Raises:
        KeyError: this version does not know the kind.
    """
    if kind == NeighbourMeasure.kind:
        return NeighbourMeasure(references, dataset_N, count)
    if kind == DistanceMeasure.kind:
        return DistanceMeasure(**arrays)
    raise KeyError(kind)


def _precision(centred_Nd: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse covariance, drawn to equal variances as if by d more queries that know of no direction."""
    size, width = centred_Nd.shape
    covariance_dd = centred_Nd.T @ centred_Nd / size
    share = width / (width + size)
    floor = max(share * float(np.trace(covariance_dd)) / width, _SMALLEST)
    inverse: NDArray[np.float64] = np.linalg.inv((1 - share) * covariance_dd + floor * np.eye(width))
    return inverse
