"""Where models are registered."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from routerretriever.settings import PlaceName, Settings

PREVIOUS = "previous"
"""MLflow alias of the bundle that was released before the present one."""


def _require_alias(name: str) -> str:
    if not re.fullmatch(r"(?!latest$|v\d+$)[\w-]{1,255}", name, re.IGNORECASE) or name == PREVIOUS:
        raise ValueError(
            f"{name!r} cannot be an alias; take letters, digits, - and _; v1, latest and {PREVIOUS} "
            "stand for other versions"
        )
    return name


AliasName = Annotated[str, AfterValidator(_require_alias)]
"""What MLflow takes for an alias."""


class RegistrySettings(Settings):
    """Where MLflow keeps experts and bundles. Without a URI: SQLite under the storage folder."""

    tracking_uri: PlaceName | None = None
    """MLflow's server or database. Better without a password: MLflow reads ``MLFLOW_TRACKING_PASSWORD``."""
    name: Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,80})?$")] = ""
    """The registered model. A recipe that names none registers under its own name."""
    alias: AliasName = "champion"
    """MLflow alias of the released version. Services follow it."""

    @property
    def released_note(self) -> str:
        """Name of the note in storage that says what was released last, for when MLflow is away."""
        return f"released-{self.name}-{self.alias}"
