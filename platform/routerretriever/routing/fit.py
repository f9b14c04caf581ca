"""From scored queries to the router that the settings name."""

from __future__ import annotations

from collections.abc import Callable

from routerretriever.config import RoutingSettings
from routerretriever.routing.constant import fit_fixed, fit_uniform
from routerretriever.routing.data import RoutingData
from routerretriever.routing.gate import fit_gate
from routerretriever.routing.linear import (
    fit_centroids,
    fit_classification_head,
    fit_expert_classifier,
    fit_posterior,
    fit_utility,
)
from routerretriever.routing.neighbours import fit_dataset, fit_neighbours
from routerretriever.routing.pilots import fit_pilots
from routerretriever.routing.protocol import Router

FITS: dict[str, Callable[[RoutingData, RoutingSettings], Router]] = {
    "pilots": fit_pilots,
    "posterior": fit_posterior,
    "neighbours": fit_neighbours,
    "utility": fit_utility,
    "centroids": fit_centroids,
    "expert_classifier": fit_expert_classifier,
    "classification_head": fit_classification_head,
    "dataset": fit_dataset,
    "fixed": fit_fixed,
    "uniform": fit_uniform,
}
"""By the name that ``routing.router`` gives it."""


_ENOUGH = 10_000
"""Queries of each dataset that a router learns from; more change nothing but the minutes."""


def fit_router(data: RoutingData, settings: RoutingSettings) -> Router:
    """Fit the router that the settings name, and its gate if they ask for one; seconds, no expert is run.

    Raises:
        ValueError: the settings do not fit the data.
    """
    if len(data.experts) == 1 and settings.router != "fixed":
        return fit_uniform(data, settings)  # a single expert needs no choice
    router = FITS[settings.router](data.sample(_ENOUGH, settings.seed), settings)
    if settings.gate is not None:
        router = fit_gate(data, settings, settings.gate, router)
    router.min_share = settings.min_share
    return router
