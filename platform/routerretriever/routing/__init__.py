"""Routers: routing features [B, d] to weights over experts [B, T]."""

from __future__ import annotations

from routerretriever.routing.fit import RoutingData, fit_router
from routerretriever.routing.protocol import Router, load_router, save_router
from routerretriever.routing.routers import FixedRouter, PilotRouter, PosteriorRouter, UniformRouter

__all__ = [
    "FixedRouter", "PilotRouter", "PosteriorRouter", "Router", "RoutingData", "UniformRouter", "fit_router",
    "load_router", "save_router",
]  # fmt: skip
