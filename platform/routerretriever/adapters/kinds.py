"""The adapter kinds that there are. A new one is a file beside this one, and its name in ``KINDS``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from routerretriever.adapters.base import AdapterKind, BatchedAdapters
from routerretriever.adapters.files import adapter_config
from routerretriever.adapters.ia3 import Ia3
from routerretriever.adapters.lora import Lora
from routerretriever.adapters.prefix import Prefix
from routerretriever.errors import EncoderError

if TYPE_CHECKING:
    from routerretriever.encoder.encoder import Encoder

KINDS: tuple[AdapterKind, ...] = (Lora(), Prefix(), Ia3())

if TYPE_CHECKING:
    from routerretriever.adapters.base import AdapterSettings as AnyAdapterSettings
else:
    AnyAdapterSettings = Annotated[
        reduce(or_, (kind.settings for kind in KINDS)), Field(discriminator="kind")
    ]
    """The settings of whichever kind a recipe names."""


def kind_named(name: str) -> AdapterKind:
    """The kind that a recipe calls so."""
    return next(kind for kind in KINDS if kind.name == name)


def kind_of(name: str, folder: Path) -> AdapterKind:
    """The kind of a saved adapter.

    Raises:
        EncoderError: files are missing, or of no kind that there is.
    """
    config = adapter_config(name, folder)
    for kind in KINDS:
        if kind.wrote(config):
            return kind
    found = config.get("kind") or config.get("peft_type")
    known = ", ".join(kind.name for kind in KINDS)
    raise EncoderError(f"expert {name!r}: {folder} holds an adapter of kind {found!r}; there are {known}")


def batch_adapters(encoder: Encoder, folders: Mapping[str, Path]) -> BatchedAdapters:
    """Load the experts of a bundle to be run together. Without any, what comes back runs the base.

    Raises:
        EncoderError: files are missing, made for another architecture, or of different kinds.
    """
    kinds = {name: kind_of(name, folder) for name, folder in folders.items()}
    used = list(dict.fromkeys(kinds.values())) or [KINDS[0]]
    if len(used) > 1:
        listed = ", ".join(f"{name!r} is {kind.name}" for name, kind in kinds.items())
        raise EncoderError(f"experts of different kinds cannot be run together: {listed}")
    return used[0].batch(encoder, folders)


def merge_adapter(encoder: Encoder, name: str, folder: Path) -> None:
    """Make a saved adapter part of the base for good, for all that it encodes.

    Raises:
        EncoderError: files are missing or made for another architecture.
    """
    kind_of(name, folder).merge(encoder, name, folder)
