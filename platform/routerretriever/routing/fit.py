"""From scored queries to a router, by the recipe's settings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from routerretriever.config import BASE, RoutingSettings
from routerretriever.console import log
from routerretriever.pilots import build_library
from routerretriever.routing.protocol import Router, Vectors
from routerretriever.routing.routers import FixedRouter, PilotRouter, PosteriorRouter, UniformRouter


@dataclass(frozen=True)
class RoutingData:
    """What routers learn from, by dataset: utilities [Q, T] and routing features [Q, d]."""

    experts: list[str]
    utilities: dict[str, NDArray[np.float64]]
    features: dict[str, Vectors]


def fit_router(data: RoutingData, settings: RoutingSettings) -> Router:
    """Fit the router that the settings name.

    Raises:
        ValueError: the settings do not fit the data.
    """
    experts = data.experts
    if settings.router == "uniform":
        return UniformRouter(experts)
    if settings.router == "fixed":
        assert settings.expert is not None
        return FixedRouter([*experts] if settings.expert in experts else [*experts, BASE], settings.expert)
    if settings.router == "posterior":
        return _fit_posterior(data, settings)
    library = build_library(
        experts, data.utilities, data.features, settings.ties, settings.clusters, settings.seed
    )
    if library.without_pilots:
        silent = ", ".join(library.without_pilots)
        log.warning("no pilots for %s: never the best on any query, so never routed to", silent)
    return PilotRouter(
        experts,
        library.vectors_Pd,
        library.expert_P,
        settings.aggregate,
        settings.mixing,
        settings.temperature,
    )


def _fit_posterior(data: RoutingData, settings: RoutingSettings) -> Router:
    from sklearn.linear_model import LogisticRegression

    datasets = [name for name in data.features if name in data.experts]
    if len(datasets) < 2:
        raise ValueError("routing.router 'posterior' needs two or more domains with experts")
    features = np.concatenate([data.features[name] for name in datasets])
    labels = np.repeat(
        [data.experts.index(name) for name in datasets], [len(data.features[n]) for n in datasets]
    )
    # Balanced: a domain is not likelier because more of its queries were collected.
    fitted = LogisticRegression(C=10.0, max_iter=2000, class_weight="balanced").fit(features, labels)
    coef, bias = fitted.coef_, fitted.intercept_
    if len(datasets) == 2:  # scikit-learn keeps one row for two classes
        coef, bias = np.concatenate([-coef, coef]) / 2, np.concatenate([-bias, bias]) / 2
    coef_Td = np.zeros((len(data.experts), features.shape[1]), dtype=np.float32)
    bias_T = np.full(len(data.experts), -1e9, dtype=np.float32)
    coef_Td[fitted.classes_], bias_T[fitted.classes_] = coef, bias
    return PosteriorRouter(data.experts, coef_Td, bias_T, settings.mixing, settings.temperature)
