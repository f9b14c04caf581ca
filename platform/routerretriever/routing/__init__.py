"""Routers: routing features [B, d] to weights over experts [B, T].

A kind of router is a class that scores; a way of fitting is a function from scored queries to such a class.
"""

from __future__ import annotations

from routerretriever.routing.data import RoutingData
from routerretriever.routing.fit import fit_router
from routerretriever.routing.pilots import PilotRouter
from routerretriever.routing.protocol import Explanation, Router
from routerretriever.routing.saving import load_router, save_router

__all__ = [
    "Explanation", "PilotRouter", "Router", "RoutingData", "fit_router", "load_router", "save_router",
]  # fmt: skip
