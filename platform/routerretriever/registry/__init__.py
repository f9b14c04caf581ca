"""Experts and router bundles as MLflow model versions; releases are moves of an alias."""

from __future__ import annotations

from routerretriever.registry.bundle import BundleError, RouterRetriever, ServiceFacts, write_bundle
from routerretriever.registry.mlflow_registry import Registry

__all__ = ["BundleError", "Registry", "RouterRetriever", "ServiceFacts", "write_bundle"]
