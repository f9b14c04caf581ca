"""The out-of-domain fallback: all experts alike, or the bare base, answer an unfamiliar query.

Reference queries tell how similar each training query is to its nearest others. A query below that range is
unfamiliar and goes to the fallback. In between, the two are blended.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routerretriever.routing.data import RoutingData
from routerretriever.routing.neighbours import References
from routerretriever.routing.protocol import Explanation, Neighbour, Router, State, Vectors
from routerretriever.routing.settings import FallbackSettings, RoutingSettings
from routerretriever.types import BASE

_QUOTED = 3
"""Nearest training queries named in an explanation."""
_CALIBRATED = 200
"""Queries of each dataset that say what is usual there."""


class FallbackRouter(Router):
    """Another router's weights, blended with a fallback by how familiar the query is.

    N reference queries of M datasets: ``reference_Nd``, the dataset of each ``dataset_N``, and per dataset
    the similarity up to which a query is unfamiliar (``unfamiliar_M``) and from which it is familiar
    (``familiar_M``).
    """

    kind = "fallback"

    def __init__(
        self,
        experts: list[str],
        inner: Router,
        reference_Nd: Vectors,
        dataset_N: NDArray[np.int64],
        unfamiliar_M: Vectors,
        familiar_M: Vectors,
        fallback: str,
        count: int,
        datasets: list[str],
        queries: list[str],
    ) -> None:
        super().__init__(experts)
        self.inner = inner
        self._reference_Nd = reference_Nd
        self._references = References(reference_Nd)
        self._dataset_N = dataset_N
        self._unfamiliar_M = unfamiliar_M
        self._familiar_M = familiar_M
        self._fallback = fallback
        self._fallback_T = fallback_weights(experts, fallback)
        self._count = count
        self._datasets = datasets
        self._queries = queries

    def familiarity(self, features_Bd: Vectors) -> Vectors:
        """How familiar each query is [B], 0 to 1."""
        similarity_Bk, rows_Bk = self._references.nearest(features_Bd, self._count)
        return self._familiarity(similarity_Bk, rows_Bk)

    def _familiarity(self, similarity_Bk: Vectors, rows_Bk: NDArray[np.int64]) -> Vectors:
        labels_Bk = self._dataset_N[rows_Bk]
        return familiarity_of(similarity_Bk, self._unfamiliar_M[labels_Bk], self._familiar_M[labels_Bk])

    def scores(self, features_Bd: Vectors) -> NDArray[np.float64]:
        """The inner router's; the fallback's own column, if it has none there, is minus infinity."""
        scores_BT = self.inner.scores(features_Bd)
        extra = len(self.experts) - scores_BT.shape[1]
        return np.pad(scores_BT, ((0, 0), (0, extra)), constant_values=-np.inf)

    def mixture(self, features_Bd: Vectors) -> Vectors:
        """The inner router's weights times the familiarity, the fallback's times the rest."""
        return blend(self.inner.mixture(features_Bd), self._fallback_T, self.familiarity(features_Bd))

    def explain(self, features_Bd: Vectors) -> list[Explanation]:
        """The inner router's reasons, with the familiarity and the nearest training queries."""
        similarity_Bk, rows_Bk = self._references.nearest(features_Bd, max(self._count, _QUOTED))
        familiarity_B = self._familiarity(similarity_Bk[:, : self._count], rows_Bk[:, : self._count])
        return [
            replace(
                reasons,
                familiarity=float(familiarity),
                nearest=self._quote(similarities[:_QUOTED], rows[:_QUOTED]),
            )
            for reasons, familiarity, similarities, rows in zip(
                self.inner.explain(features_Bd), familiarity_B, similarity_Bk, rows_Bk, strict=True
            )
        ]

    def _quote(self, similarities: Vectors, rows: NDArray[np.int64]) -> tuple[Neighbour, ...]:
        return tuple(
            Neighbour(
                self._datasets[self._dataset_N[row]],
                self._queries[row] if self._queries else "",
                float(similarity),
            )
            for similarity, row in zip(similarities, rows, strict=True)
        )

    def state(self) -> State:
        """Settings and arrays, the inner router's among them under ``inner.``."""
        inner_settings, inner_arrays = self.inner.state()
        settings: dict[str, Any] = {
            "inner": {"kind": self.inner.kind, "experts": self.inner.experts, "settings": inner_settings},
            "fallback": self._fallback,
            "count": self._count,
            "datasets": self._datasets,
            "queries": self._queries,
        }
        arrays: dict[str, NDArray[Any]] = {
            "reference_Nd": self._reference_Nd,
            "dataset_N": self._dataset_N,
            "unfamiliar_M": self._unfamiliar_M,
            "familiar_M": self._familiar_M,
        }
        return settings, {**arrays, **{f"inner.{name}": array for name, array in inner_arrays.items()}}


@dataclass(frozen=True)
class ReferenceQueries:
    """N sampled training queries of M datasets, and how similar those of each are to their nearest others."""

    datasets: list[str]
    features_Nd: Vectors
    dataset_N: NDArray[np.int64]
    queries: list[str]
    references: References
    usual: list[Vectors]
    """By dataset: mean similarity of some of its queries to their nearest others."""

    @classmethod
    def of(cls, data: RoutingData, settings: RoutingSettings, neighbours: int) -> ReferenceQueries:
        """Sample the datasets with an expert, and compare each query with its neighbours."""
        names = data.own_datasets
        sampled = data.sample(settings.references, settings.seed)
        features, _, labels = sampled.stacked(names)
        references, usual = References(features), []
        for label in range(len(names)):
            similarity_Qk, _ = nearest_others(references, features[labels == label][:_CALIBRATED], neighbours)
            usual.append(similarity_Qk.mean(axis=1))
        texts = [text for name in names for text in sampled.queries.get(name, [])]
        return cls(names, features, labels, texts, references, usual)

    def bounds(self, fallback: FallbackSettings) -> tuple[Vectors, Vectors]:
        """Similarity up to which a query is unfamiliar, and from which it is familiar, by dataset [M]."""
        unfamiliar, familiar = (
            np.array([np.quantile(own, quantile) for own in self.usual], dtype=np.float32)
            for quantile in (fallback.unfamiliar_quantile, fallback.familiar_quantile)
        )
        # A plainly foreign query is still well below the smallest similarity seen.
        return unfamiliar - fallback.slack * (familiar - unfamiliar), familiar


def nearest_others(references: References, own_Bd: Vectors, count: int) -> tuple[Vectors, NDArray[np.int64]]:
    """Similarity and row of the nearest of reference queries to some of them, which are not their own."""
    # The nearest neighbour of a reference query is itself: it is left out of its own neighbourhood.
    similarity_Bk, rows_Bk = references.nearest(own_Bd, count + 1)
    alone = similarity_Bk.shape[1] == 1  # then it is all there is to compare with
    return (similarity_Bk, rows_Bk) if alone else (similarity_Bk[:, 1:], rows_Bk[:, 1:])


def familiarity_of(similarity_Bk: Vectors, unfamiliar_Bk: Vectors, familiar_Bk: Vectors) -> Vectors:
    """0 up to the neighbours' mean unfamiliar bound, 1 from their mean familiar one, linear between: [B]."""
    unfamiliar_B, familiar_B = np.stack([unfamiliar_Bk, familiar_Bk], axis=2).mean(axis=1).T
    way_B = (similarity_Bk.mean(axis=1) - unfamiliar_B) / np.maximum(familiar_B - unfamiliar_B, 1e-6)
    return np.clip(way_B, 0.0, 1.0).astype(np.float32)


def fallback_weights(experts: list[str], answer: str) -> Vectors:
    """What answers a query that is unfamiliar: the base alone, or all experts alike, [T]."""
    takes_part_T = np.array([(name == BASE) == (answer == "base") for name in experts], dtype=np.float32)
    return takes_part_T / takes_part_T.sum()


def blend(own_BT: Vectors, fallback_T: Vectors, familiarity_B: Vectors) -> Vectors:
    """A router's weights times the familiarity, the fallback's times the rest."""
    mixed_BT = (1 - familiarity_B[:, None]) * fallback_T
    # The bare base, if it is the fallback alone, comes after the router's experts.
    mixed_BT[:, : own_BT.shape[1]] += familiarity_B[:, None] * own_BT
    return mixed_BT


def with_answer(experts: list[str], answer: str) -> list[str]:
    """Experts, and the base if it is to answer and is not among them."""
    return [*experts, BASE] if answer == "base" and BASE not in experts else experts


def fit_fallback(
    data: RoutingData, settings: RoutingSettings, fallback: FallbackSettings, inner: Router
) -> FallbackRouter:
    """Put bounds to what is familiar, by training queries of datasets with an expert, each left out once."""
    known = ReferenceQueries.of(data, settings, fallback.neighbours)
    unfamiliar_M, familiar_M = known.bounds(fallback)
    return FallbackRouter(
        with_answer(inner.experts, fallback.answer),
        inner,
        known.features_Nd,
        known.dataset_N,
        unfamiliar_M,
        familiar_M,
        fallback.answer,
        fallback.neighbours,
        known.datasets,
        known.queries,
    )
