"""Fitting routers and measuring them on one split, many times over; no expert is run and nothing encoded.

Query vectors are merged, whatever ``routing.merge`` says, since they are in the score table. A router that
merges weights is within about a tenth of a point of that; the evaluation runs it as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from routerretriever.routing.data import RoutingData
from routerretriever.routing.fit import calibrate, fit
from routerretriever.routing.protocol import Router
from routerretriever.routing.settings import RoutingSettings
from routerretriever.scoring.mixed_vectors import MixedVectors
from routerretriever.types import BASE, Values, Vectors


@dataclass(frozen=True, kw_only=True)
class OfflineEvaluator(MixedVectors):
    """What routers are fitted and measured on."""

    fit_data: Callable[[RoutingSettings], RoutingData]
    """Scored queries with the routing features that the settings ask for."""
    features: Callable[[RoutingSettings], Mapping[str, Vectors]]
    """Routing features [Q, d] of the split's queries, in the score table's order."""
    identity: str = ""
    """Hash of what all of this was made from; figures are stored under it."""

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
            BadInput: the settings do not fit the data.
        """
        # What is learned does not depend on these: it is learned once.
        plain = settings.model_copy(
            update={"mixing": "hard", "temperature": 1.0, "fallback": None, "min_share": 0.0}
        )
        fitted = self._learned(plain.model_dump_json(), tuple(experts))
        return calibrate(fitted, self.fit_data(settings).only(experts), settings)

    def ndcg(self, router: Router, settings: RoutingSettings, dataset: str) -> Values:
        """nDCG@10 of every query [Q] when this router mixes the experts."""
        weights_BT = router.weights(self.features(settings)[dataset])
        return self.mixed_ndcg(dataset, None, router.experts, weights_BT)

    @cached_property
    def _learned(self) -> Callable[[str, tuple[str, ...]], Router]:
        def learned(settings_json: str, experts: tuple[str, ...]) -> Router:
            settings = RoutingSettings.model_validate_json(settings_json)
            return fit(self.fit_data(settings).only(experts), settings)

        return lru_cache(maxsize=64)(learned)
