"""Routers that do not look at the query: one expert for everything, or all of them alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from routerretriever.routing.data import RoutingData
from routerretriever.routing.protocol import Router, State
from routerretriever.routing.settings import RoutingSettings
from routerretriever.types import BASE, Vectors


class ConstantRouter(Router):
    """The same weights [T] for every query."""

    kind = "constant"

    def __init__(self, experts: list[str], weights_T: Vectors) -> None:
        super().__init__(experts)
        self._weights_T = weights_T

    def scores(self, features_Bd: Vectors) -> NDArray[np.float64]:
        """The weights themselves."""
        return np.tile(self._weights_T.astype(np.float64), (len(features_Bd), 1))

    def mixture(self, features_Bd: Vectors) -> Vectors:
        """The weights, in every row."""
        return np.tile(self._weights_T, (len(features_Bd), 1))

    def state(self) -> State:
        """The weights."""
        return {}, {"weights_T": self._weights_T}


def fit_fixed(data: RoutingData, settings: RoutingSettings) -> ConstantRouter:
    """One expert, or the bare base, for every query."""
    experts = data.experts if settings.expert in data.experts else [*data.experts, BASE]
    return ConstantRouter(experts, np.array([name == settings.expert for name in experts], dtype=np.float32))


def fit_uniform(data: RoutingData, settings: RoutingSettings) -> ConstantRouter:
    """One T-th of each expert."""
    return ConstantRouter(data.experts, np.full(len(data.experts), 1 / len(data.experts), dtype=np.float32))
