"""Fitting routers and measuring them on one split, many times over; no expert is run and nothing encoded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from routerretriever.config import BASE, RoutingSettings
from routerretriever.corpus import SearchIndex
from routerretriever.evaluation.evaluate import mix
from routerretriever.measures import Qrels, Values, measure
from routerretriever.routing import Router, RoutingData, fit_router
from routerretriever.routing.gate import fit_gate
from routerretriever.routing.protocol import MixingRouter, Vectors
from routerretriever.scoring import ScoreTable


@dataclass(frozen=True)
class RouterBench:
    """What routers are fitted and measured on."""

    fit_data: Callable[[RoutingSettings], RoutingData]
    """Scored queries with the routing features that the settings ask for."""
    scores: ScoreTable
    features: Callable[[RoutingSettings], Mapping[str, Vectors]]
    """Routing features [Q, d] of the split's queries, in the score table's order."""
    qrels: Mapping[str, Qrels]
    indexes: Mapping[str, SearchIndex]

    @property
    def datasets(self) -> list[str]:
        """The collections of the split."""
        return list(self.scores)

    @property
    def experts(self) -> list[str]:
        """All experts, without the base."""
        return [name for name in next(iter(self.scores.values())).experts if name != BASE]

    def router(self, settings: RoutingSettings, experts: Sequence[str]) -> Router:
        """A router fitted as if these experts and their domains were all there are.

        Raises:
            ValueError: the settings do not fit the data.
        """
        # Mixing and gate do not change what is learned: it is learned once.
        plain = settings.model_copy(update={"mixing": "hard", "temperature": 1.0, "gate": None})
        router = self._fit(plain.model_dump_json(), tuple(experts))
        router = copy.copy(router)
        if isinstance(router, MixingRouter):
            router.mixing, router.temperature = settings.mixing, settings.temperature
        if settings.gate is not None:
            router = fit_gate(self.fit_data(settings).only(experts), settings, settings.gate, router)
        router.min_share = settings.min_share
        return router

    def ndcg(self, router: Router, settings: RoutingSettings, dataset: str) -> Values:
        """nDCG@10 of every query [Q] when this router mixes the experts."""
        table = self.scores[dataset]
        vectors_Bd = mix(table, router.experts, router.weights(self.features(settings)[dataset]))
        run = self.indexes[dataset].run(table.query_ids, vectors_Bd, depth=10)
        return measure(self.qrels[dataset], run, table.query_ids).ndcg_at_10

    @cached_property
    def _fit(self) -> Callable[[str, tuple[str, ...]], Router]:
        def fit(settings_json: str, experts: tuple[str, ...]) -> Router:
            settings = RoutingSettings.model_validate_json(settings_json)
            return fit_router(self.fit_data(settings).only(experts), settings)

        return lru_cache(maxsize=64)(fit)
