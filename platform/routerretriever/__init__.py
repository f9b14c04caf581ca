"""RouterRetriever: many expert retrievers behind one endpoint.

The public names are imported on first use, so that ``import routerretriever`` costs nothing:

* ``load_recipe`` reads a run's settings, a ``Recipe``;
* ``RouterRetriever`` is a trained and registered bundle: it encodes and routes;
* ``plot`` draws an evaluation in a notebook;
* ``Client`` asks a running service;
* ``RouterRetrieverError`` is the base of every error that a person can act on;
* ``run``, ``evaluate``, ``add_expert``, ``release`` and the others do what the commands of these names do.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from routerretriever.bundle.model import RouterRetriever
    from routerretriever.client import Client
    from routerretriever.commands import (
        add_expert,
        analyse,
        assess,
        backup,
        calibrate,
        doctor,
        encode,
        evaluate,
        export,
        export_expert,
        import_bundle,
        init,
        learn,
        learning_curve,
        migrate,
        noise_floor,
        pilots,
        register,
        release,
        remove_expert,
        reproduce,
        restore,
        rollback,
        run,
        score,
        serve,
        train,
        tune_router,
        tune_training,
        versions,
    )
    from routerretriever.config.loading import load_recipe
    from routerretriever.config.recipe import Recipe
    from routerretriever.errors import RouterRetrieverError
    from routerretriever.reports.page import plot

__all__ = [
    "Client",
    "Recipe",
    "RouterRetriever",
    "RouterRetrieverError",
    "add_expert",
    "analyse",
    "assess",
    "backup",
    "calibrate",
    "doctor",
    "encode",
    "evaluate",
    "export",
    "export_expert",
    "import_bundle",
    "init",
    "learn",
    "learning_curve",
    "load_recipe",
    "migrate",
    "noise_floor",
    "pilots",
    "plot",
    "register",
    "release",
    "remove_expert",
    "reproduce",
    "restore",
    "rollback",
    "run",
    "score",
    "serve",
    "train",
    "tune_router",
    "tune_training",
    "versions",
]
__version__ = "0.1.0"
_HOMES = dict.fromkeys(__all__, "routerretriever.commands") | {
    "Client": "routerretriever.client",
    "Recipe": "routerretriever.config.recipe",
    "RouterRetriever": "routerretriever.bundle.model",
    "RouterRetrieverError": "routerretriever.errors",
    "load_recipe": "routerretriever.config.loading",
    "plot": "routerretriever.reports.page",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
