"""Algorithm 1 of RouterRetriever (arXiv 2409.02685): score table and features to pilots.

Of each dataset, the queries on which one expert is best form a group; the group's centroid is a pilot of
that expert. At most T pilots a dataset. Shapes: Q queries, T experts, P pilots, d dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from routerretriever.errors import BadInput
from routerretriever.types import Vectors


@dataclass(frozen=True)
class PilotLibrary:
    """Pilots, each with the expert that it speaks for and where it comes from."""

    experts: list[str]
    vectors_Pd: Vectors
    expert_P: NDArray[np.int64]
    dataset_P: list[str]
    size_P: NDArray[np.int64]
    """Queries behind each pilot."""

    @property
    def without_pilots(self) -> list[str]:
        """Experts that were best for no group of queries; a router over this library never picks them."""
        return [name for column, name in enumerate(self.experts) if column not in self.expert_P]


def best_expert(utility_QT: NDArray[np.float64], own: int | None, ties: str) -> NDArray[np.bool_]:
    """Which expert each query is evidence for: [Q, T] of booleans.

    A query on which all or some experts are equally good says little. ``ties`` decides:
      * ``own``: it goes to the dataset's own expert if that is among the best, otherwise to nobody;
      * ``drop``: it goes to nobody;
      * ``first``: it goes to the first of the best in the order of experts;
      * ``all``: it goes to each of the best.

    Args:
        utility_QT: nDCG@10 of every expert on every query.
        own: column of the dataset's own expert; None for a dataset without one.
        ties: the rule.
    """
    best_QT = utility_QT >= utility_QT.max(axis=1, keepdims=True) - 1e-9
    tied_Q = best_QT.sum(axis=1) > 1
    if ties == "all":
        return best_QT
    chosen_QT = best_QT & ~tied_Q[:, None]
    if ties == "first":
        chosen_QT[tied_Q, best_QT[tied_Q].argmax(axis=1)] = True
    elif ties == "own" and own is not None:
        chosen_QT[:, own] |= best_QT[:, own]
    return chosen_QT


def build_library(
    experts: list[str],
    utilities: dict[str, NDArray[np.float64]],
    features: dict[str, Vectors],
    ties: str = "own",
    clusters: int = 1,
    seed: int = 0,
) -> PilotLibrary:
    """Build the library.

    Args:
        experts: the T experts, in the order of the utilities' columns.
        utilities: dataset -> nDCG@10 [Q, T].
        features: dataset -> routing features of the same queries [Q, d].
        ties: see ``best_expert``.
        clusters: k-means centroids per group; 1 is the plain mean.
        seed: of k-means.

    Raises:
        BadInput: not a single query tells the experts apart.
    """
    vectors, owners, datasets, sizes = [], [], [], []
    for dataset, utility_QT in utilities.items():
        own = experts.index(dataset) if dataset in experts else None
        chosen_QT = best_expert(utility_QT, own, ties)
        for column in range(len(experts)):
            group = features[dataset][chosen_QT[:, column]]
            for centroid, size in _centroids(group, clusters, seed):
                vectors.append(centroid)
                owners.append(column)
                datasets.append(dataset)
                sizes.append(size)
    if not vectors:
        raise BadInput(
            f"no query of {sorted(utilities)} tells the experts apart under routing.ties '{ties}'; "
            "use 'own' or 'all', or check that the experts were trained"
        )
    return PilotLibrary(
        experts, np.stack(vectors).astype(np.float32), np.array(owners), datasets, np.array(sizes)
    )


def _centroids(group: Vectors, clusters: int, seed: int) -> list[tuple[Vectors, int]]:
    if len(group) == 0:
        return []
    if clusters == 1 or len(group) <= clusters:
        return [(group.mean(axis=0), len(group))] if clusters == 1 else [(row, 1) for row in group]
    from sklearn.cluster import KMeans

    fitted = KMeans(clusters, n_init=4, random_state=seed).fit(group)
    return [
        (centre, int(size))
        for centre, size in zip(fitted.cluster_centers_, np.bincount(fitted.labels_), strict=True)
        if size
    ]
