"""The application by its older import path, for one release; use ``serving.deployments.app``."""

from routerretriever.serving.deployments.app import build

__all__ = ["build"]
