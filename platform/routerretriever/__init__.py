"""RouterRetriever: many expert retrievers behind one endpoint.

The public names are imported on first use, so that ``import routerretriever`` costs nothing:

* ``load_recipe`` reads a run's settings, a ``Recipe``;
* ``RouterRetriever`` is a trained and registered bundle: it encodes and routes;
* ``Client`` asks a running service;
* ``RouterRetrieverError`` is the base of every error that a person can act on.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from routerretriever.bundle.model import RouterRetriever
    from routerretriever.client.client import Client
    from routerretriever.config.loading import load_recipe
    from routerretriever.config.recipe import Recipe
    from routerretriever.errors import RouterRetrieverError

__all__ = ["Client", "Recipe", "RouterRetriever", "RouterRetrieverError", "load_recipe"]
__version__ = "0.1.0"
_HOMES = {
    "Client": "routerretriever.client.client",
    "Recipe": "routerretriever.config.recipe",
    "RouterRetriever": "routerretriever.bundle.model",
    "RouterRetrieverError": "routerretriever.errors",
    "load_recipe": "routerretriever.config.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
