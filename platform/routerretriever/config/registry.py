"""Where models are registered."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints, field_serializer

from routerretriever.errors import without_secrets
from routerretriever.settings import Settings


class RegistrySettings(Settings):
    """Where MLflow keeps experts and bundles. Without a URI: SQLite under the storage folder."""

    tracking_uri: str | None = None
    """MLflow's server or database. Better without a password: MLflow reads ``MLFLOW_TRACKING_PASSWORD``."""
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,80}$")] = "routerretriever"
    """The registered model. A recipe that names none registers under its own name."""
    alias: str = "champion"

    @field_serializer("tracking_uri", when_used="json")
    def _without_secrets(self, uri: str | None) -> str | None:
        # JSON goes into bundles, reports and figures, for everybody to read.
        return None if uri is None else without_secrets(uri)
