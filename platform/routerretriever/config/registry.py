"""Where models are registered."""

from __future__ import annotations

from typing import Annotated

from pydantic import (
    StringConstraints,
)

from routerretriever.settings import Settings


class RegistrySettings(Settings):
    """Where MLflow keeps experts and bundles. Without a URI: SQLite under the storage folder."""

    tracking_uri: str | None = None
    """MLflow tracking URI; by default a SQLite file under the storage folder."""
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,80}$")] = "routerretriever"
    """Name of the registered bundle; experts are registered under names that start with it."""
    alias: str = "champion"
    """MLflow alias of the released version. Services follow it."""
