"""RouterRetriever: many expert retrievers behind one endpoint.

The Python API is small: ``load_recipe`` reads a run's settings, ``RouterRetriever`` is a trained and
registered bundle (encode, route, and everything that beir's evaluator asks of a model). Both are imported
on first use, so that ``import routerretriever`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from routerretriever.bundle.model import RouterRetriever
    from routerretriever.config.loading import load_recipe
    from routerretriever.config.recipe import Recipe

__all__ = ["Recipe", "RouterRetriever", "load_recipe"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "RouterRetriever":
        from routerretriever.bundle.model import RouterRetriever

        return RouterRetriever
    if name in ("Recipe", "load_recipe"):
        from routerretriever.config import recipe as config

        return getattr(config, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
