"""The out-of-domain fallback: the bare base, all experts alike, or both answer an unfamiliar query.

Reference queries tell how familiar training queries usually are. A query below that range is unfamiliar and
goes to the fallback. In between, the two are blended.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routerretriever.routing.data import RoutingData
from routerretriever.routing.familiarity import (
    DistanceMeasure,
    Likeness,
    Measure,
    NeighbourMeasure,
    distances_of_references,
    load_measure,
)
from routerretriever.routing.neighbours import References
from routerretriever.routing.protocol import Explanation, Neighbour, Router, State, worth_running
from routerretriever.routing.settings import FallbackSettings, RoutingSettings
from routerretriever.types import BASE, Vectors

_QUOTED = 3
"""Nearest training queries named in an explanation."""
_COMPARED = 600
"""Queries of each dataset that say what is usual there."""


class FallbackRouter(Router):
    """Another router's weights, blended with a fallback by how familiar the query is.

    N reference queries of M datasets: ``reference_Nd``, the dataset of each ``dataset_N``, and per dataset
    the value up to which a query is unfamiliar (``unfamiliar_M``) and from which it is familiar
    (``familiar_M``), in what ``measure`` measures.
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
        datasets: list[str],
        queries: list[str],
        count: int,
        measure: str = NeighbourMeasure.kind,
        **measured: NDArray[Any],
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
        self._datasets = datasets
        self._queries = queries
        self._count = count
        self._measure = load_measure(measure, measured, self._references, dataset_N, count)

    def familiarity(self, features_Bd: Vectors) -> Vectors:
        """How familiar each query is [B], 0 to 1."""
        return familiarity_of(self._measure.of(features_Bd), self._unfamiliar_M, self._familiar_M)

    def weights(self, features_Bd: Vectors) -> Vectors:
        """Normalised weights without the experts that are not worth running."""
        return worth_answering(self.mixture(features_Bd), self.min_share, self.experts, self._fallback)

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
        similarity_Bk, rows_Bk = self._references.nearest(features_Bd, _QUOTED)
        familiarity_B = self.familiarity(features_Bd)
        return [
            replace(
                reasons,
                familiarity=float(familiarity),
                nearest=self._quote(similarities, rows),
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
            "measure": self._measure.kind,
            "datasets": self._datasets,
            "queries": self._queries,
        }
        arrays: dict[str, NDArray[Any]] = {
            "reference_Nd": self._reference_Nd,
            "dataset_N": self._dataset_N,
            "unfamiliar_M": self._unfamiliar_M,
            "familiar_M": self._familiar_M,
            **self._measure.state(),
        }
        return settings, {**arrays, **{f"inner.{name}": array for name, array in inner_arrays.items()}}


@dataclass(frozen=True)
class ReferenceQueries:
    """N sampled training queries of M datasets, and how familiar they are to each other."""

    datasets: list[str]
    features_Nd: Vectors
    dataset_N: NDArray[np.int64]
    queries: list[str]
    measure: Measure
    own: list[Likeness]
    """By dataset: some of its queries compared with all but themselves."""
    foreign: Likeness | None
    """Queries of no domain, compared alike, where there are any."""

    @classmethod
    def of(cls, data: RoutingData, settings: RoutingSettings, fallback: FallbackSettings) -> ReferenceQueries:
        """Sample the datasets with an expert, and compare each query with the others."""
        names = data.own_datasets
        sampled = data.sample(settings.references, settings.seed)
        features_Nd, _, labels_N = sampled.stacked(names)
        own_rows = [spread(np.flatnonzero(labels_N == label)) for label in range(len(names))]
        others = list(data.background.values())
        measure: Measure
        foreign: Likeness | None = None
        # One domain alone is no nearer to its queries than all queries together. A single query, left out,
        # leaves no domain to compare it with.
        alone = len(names) + len(others) == 1 or len(features_Nd) == 1
        if fallback.familiarity == "neighbours" or alone:
            measure = NeighbourMeasure(References(features_Nd), labels_N, fallback.neighbours)
            own = [measure.of_references(features_Nd[rows]) for rows in own_rows]
            if others:
                foreign = measure.of(np.concatenate(others))
        else:
            all_Nd = np.concatenate([features_Nd, *others])
            rest = [np.full(len(each), len(names) + place) for place, each in enumerate(others)]
            label_N, datasets = np.concatenate([labels_N, *rest]), len(names) + len(others)
            measure = DistanceMeasure.fit(all_Nd, label_N, datasets).among(len(names))
            like = distances_of_references(all_Nd, label_N, datasets, settings.seed, len(names))
            own = [Likeness(like.value_B[rows], like.dataset_Bk[rows]) for rows in own_rows]
            if others:
                foreign = Likeness(like.value_B[len(features_Nd) :], like.dataset_Bk[len(features_Nd) :])
        texts = [text for name in names for text in sampled.queries.get(name, [])]
        return cls(names, features_Nd, labels_N, texts, measure, own, foreign)

    def bounds(self, fallback: FallbackSettings) -> tuple[Vectors, Vectors]:
        """Value up to which a query is unfamiliar, and from which it is familiar, by dataset [M]."""
        unfamiliar_M, familiar_M = (
            np.array([np.quantile(each.value_B, quantile) for each in self.own], dtype=np.float32)
            for quantile in (fallback.unfamiliar_quantile, fallback.familiar_quantile)
        )
        # A plainly foreign query is still well below the smallest value seen.
        return unfamiliar_M - fallback.slack * (familiar_M - unfamiliar_M), familiar_M


def familiarity_of(like: Likeness, unfamiliar_M: Vectors, familiar_M: Vectors) -> Vectors:
    """0 up to the unfamiliar bound of its datasets, on average, 1 from their familiar one, linear between."""
    unfamiliar_B, familiar_B = (
        bound_M[like.dataset_Bk].mean(axis=1) for bound_M in (unfamiliar_M, familiar_M)
    )
    way_B = (like.value_B - unfamiliar_B) / np.maximum(familiar_B - unfamiliar_B, 1e-6)
    return np.clip(way_B, 0.0, 1.0).astype(np.float32)


def spread(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most 600 of some rows, evenly spread."""
    return rows[np.linspace(0, len(rows) - 1, min(_COMPARED, len(rows))).round().astype(np.int64)]


def base_share(answer: str) -> float:
    """How much of a fallback is the base's."""
    return {"base": 1.0, "both": 0.5, "uniform": 0.0}[answer]


def fallback_weights(experts: list[str], answer: str) -> Vectors:
    """What answers a query that is unfamiliar [T]: the base, all experts alike, or both by halves."""
    share, is_base_T = base_share(answer), np.array([name == BASE for name in experts])
    alike = (1 - share) / max(1, int((~is_base_T).sum()))
    return np.where(is_base_T, share, alike).astype(np.float32)


def worth_answering(mixed_BT: Vectors, min_share: float, experts: list[str], answer: str) -> Vectors:
    """Mixtures without experts that are not worth running; beside half a base, each of many has little."""
    if answer != "both":
        return worth_running(mixed_BT, min_share)
    return worth_running(mixed_BT, min_share, np.array([name != BASE for name in experts]))


def blend(own_BT: Vectors, fallback_T: Vectors, familiarity_B: Vectors) -> Vectors:
    """A router's weights times the familiarity, the fallback's times the rest."""
    mixed_BT = (1 - familiarity_B[:, None]) * fallback_T
    # The bare base, if it is the fallback alone, comes after the router's experts.
    mixed_BT[:, : own_BT.shape[1]] += familiarity_B[:, None] * own_BT
    return mixed_BT


def with_answer(experts: list[str], answer: str) -> list[str]:
    """Experts, and the base if it is to answer and is not among them."""
    return [*experts, BASE] if answer != "uniform" and BASE not in experts else experts


def fit_fallback(
    data: RoutingData, settings: RoutingSettings, fallback: FallbackSettings, inner: Router
) -> FallbackRouter:
    """Put bounds to what is familiar, by training queries of datasets with an expert, each left out once."""
    known = ReferenceQueries.of(data, settings, fallback)
    unfamiliar_M, familiar_M = known.bounds(fallback)
    return FallbackRouter(
        with_answer(inner.experts, fallback.answer),
        inner,
        known.features_Nd,
        known.dataset_N,
        unfamiliar_M,
        familiar_M,
        fallback.answer,
        known.datasets,
        known.queries,
        fallback.neighbours,
        known.measure.kind,
        **known.measure.state(),
    )
