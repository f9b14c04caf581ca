"""From scored queries to the router that the settings name."""

from __future__ import annotations

import copy
from collections.abc import Callable

from routerretriever.routing.calibration import choose_fallback
from routerretriever.routing.constant import fit_fixed, fit_uniform
from routerretriever.routing.data import RoutingData
from routerretriever.routing.fallback import fit_fallback
from routerretriever.routing.linear import (
    fit_centroids,
    fit_classification_head,
    fit_expert_classifier,
    fit_posterior,
    fit_utility,
)
from routerretriever.routing.neighbours import fit_dataset, fit_neighbours
from routerretriever.routing.pilots import fit_pilots
from routerretriever.routing.protocol import MixingRouter, Router
from routerretriever.routing.settings import RoutingSettings

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
    """Fit the router that the settings name, and its fallback if they ask for one.

    No expert is run. Takes seconds, but a minute or more where the fallback is chosen on large collections.

    Raises:
        BadInput: the settings do not fit the data.
    """
    router = fit(data, settings)
    return calibrate(router, data, with_chosen_fallback(router, data, settings))


def with_chosen_fallback(router: Router, data: RoutingData, settings: RoutingSettings) -> RoutingSettings:
    """The settings with what ``fallback.answer: auto`` stands for on this data; others as they are."""
    if not settings.chooses_fallback:
        return settings
    plain = settings.model_copy(update={"fallback": None})

    def fit_others(others: RoutingData) -> Router:
        return calibrate(fit(others.sample(settings.references, settings.seed), plain), others, plain)

    chosen = choose_fallback(data, settings, calibrate(router, data, plain), fit_others)
    return settings.model_copy(update={"fallback": chosen})


def fit(data: RoutingData, settings: RoutingSettings) -> Router:
    """Fit what depends on the data alone. Mixing, temperature, fallback and ``min_share`` do not change it.

    Raises:
        BadInput: the settings do not fit the data.
    """
    if len(data.experts) == 1 and settings.router != "fixed":
        return fit_uniform(data, settings)
    return FITS[settings.router](data.sample(_ENOUGH, settings.seed), settings)


def calibrate(router: Router, data: RoutingData, settings: RoutingSettings) -> Router:
    """Give a fitted router the mixing, the fallback and the smallest share that the settings ask for."""
    router = copy.copy(router)
    if isinstance(router, MixingRouter):
        router.mixing, router.temperature = settings.mixing, settings.temperature
    if settings.fallback is not None:
        assert settings.fallback.answer != "auto", "choose the fallback first"
        router = fit_fallback(data, settings, settings.fallback, router)
    router.min_share = settings.min_share
    return router
