"""Experts and router bundles as MLflow model versions; releases are moves of an alias."""

from __future__ import annotations

from typing import TYPE_CHECKING

from routerretriever.registry.bundle import BundleError, RouterRetriever, ServiceFacts, write_bundle

if TYPE_CHECKING:
    from routerretriever.registry.mlflow_registry import Registry

__all__ = ["BundleError", "Registry", "RouterRetriever", "ServiceFacts", "write_bundle"]


def __getattr__(name: str) -> object:
    # MLflow takes seconds to import; a replica that only runs a bundle does not pay for it.
    if name == "Registry":
        from routerretriever.registry.mlflow_registry import Registry

        return Registry
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
