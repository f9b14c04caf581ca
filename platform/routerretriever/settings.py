"""What all settings are made of: frozen, closed to unknown keys, checked when they are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeFloat,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    field_validator,
)

from routerretriever.errors import without_secrets

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


def _require_countable(amount: float) -> float:
    if 0 < amount < 1e-4:
        raise ValueError(f"{amount:g}: Ray counts no less than 0.0001; set that or more, or 0")
    return amount


ResourceAmount = Annotated[NonNegativeFloat, AfterValidator(_require_countable)]
"""CPUs or GPUs that Ray reserves."""


DomainName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


def _refuse_variables(text: str) -> str:
    if found := re.search(r"\$\{?[A-Za-z_]\w*\}?", text):
        raise ValueError(
            f"{text}: {found[0]} is not filled in here; write it out, or have the shell do it with --set"
        )
    return text


def _require_host(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_whole = bool(parts.hostname) and parts.port != 0  # reading a port checks it
    except ValueError:
        is_whole = False
    if not is_whole:
        raise ValueError(f"{url}: names no host and port that can be asked; write https://HOST/v1")
    return url


SafeUri = Annotated[str, PlainSerializer(without_secrets, when_used="json")]
"""What may hold a password. JSON goes into bundles, reports and figures, for everybody to read: there the
password is left out."""


PlaceName = Annotated[SafeUri, AfterValidator(_refuse_variables)]
"""A path, URI or model id. Recipes know no variables: ``$HOME`` would be the name of a folder."""


TextLength = Annotated[int, Field(ge=4)]
"""Tokens that are read of a text. Two or three are special; with less than these, tokenizers cut nothing."""


class Settings(BaseModel):
    """Base of all settings: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


Labels = dict[str, str]
"""Labels of a machine, by name. Ray's own are called ``ray.io/...``; cluster files give others."""


class PoolSettings(Settings):
    """A pool of Ray Data actors."""

    workers: PositiveInt | None = None
    """Actors; by default as many as the cluster has room for, never more than there is work for."""
    cpus_per_worker: ResourceAmount = 1.0
    """CPUs that Ray reserves for each actor."""
    gpus_per_worker: ResourceAmount = 0.0
    """GPUs that Ray reserves for each actor; a fraction lets several share one."""

    labels: Labels = Field(default_factory=dict)
    """Labels that a machine must have to hold an actor, as ``{ray.io/market-type: spot}``."""

    def describe(self) -> str:
        """The pool in words: ``4 workers, each 1 CPU``."""
        each = amount(self.cpus_per_worker, self.gpus_per_worker)
        if self.workers is None:
            return f"as many workers as fit, each {each}"
        return f"{self.workers} worker{'s' if self.workers > 1 else ''}, each {each}"


class EndpointAccess(Settings):
    """How somebody else's HTTP endpoint is asked."""

    kind: Literal["endpoint"]
    """``endpoint``."""
    url: Annotated[SafeUri, Field(pattern=r"^https?://\S+$"), AfterValidator(_require_host)]
    """The API's root, usually ending in ``/v1``."""
    key_variable: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """The environment variable that holds the key. The key itself stands in no file and in no log."""
    concurrency: PositiveInt = 8
    """Requests at a time."""
    timeout_seconds: PositiveFloat = 60.0
    """Seconds that an answer may take."""
    attempts: PositiveInt = 5
    """How often a request is sent before it counts as failed."""
    extra_body: dict[str, JsonValue] = Field(default_factory=dict)
    """Further fields of every request, for what this server alone knows. ``null`` leaves a field out that is
    sent otherwise."""

    _OURS: ClassVar[frozenset[str]] = frozenset({"api_key", "model"})
    """Fields of a request that ``extra_body`` may not set."""

    @field_validator("extra_body")
    @classmethod
    def _leave_ours(cls, body: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(body.keys() & cls._OURS):
            raise ValueError(f"{', '.join(taken)}: not to be set here; leave it out")
        return body

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A request's body with the fields of ``extra_body``, without those that are ``null``."""
        return {name: value for name, value in {**body, **self.extra_body}.items() if value is not None}


def amount(cpus: float, gpus: float) -> str:
    """Resources in words: ``1 CPU, 0.5 GPU``."""
    return f"{cpus:g} CPU" + (f", {gpus:g} GPU" if gpus else "")
