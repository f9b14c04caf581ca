"""What a prefix adapter is, apart from its weights, and the ways to use it. Read without importing torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from routerretriever.adapters.files import ADAPTER_CONFIG, adapter_config

UNIFORM = 0


@dataclass(frozen=True)
class View:
    """One way to use an adapter: the modules that may be used, and how they are weighed."""

    modules: tuple[str, ...]
    top_k: int
    """Modules kept, the router's best ones; all of them with ``top_k`` as large as their number. ``UNIFORM``
    does not ask the router: all that may be used weigh the same."""


@dataclass(frozen=True)
class PrefixShape:
    """What a prefix adapter is, apart from its weights; kept as its ``adapter_config.json``."""

    length: int
    """Prefix tokens P."""
    layers: tuple[int, ...]
    """Numbers of the transformer layers that have a prefix."""
    width: int
    modules: tuple[str, ...]
    routed: bool = False
    """Whether each layer has a router."""
    views: Mapping[str, View] = field(default_factory=dict)
    """By the name under which the adapter is loaded; any other name uses every module."""

    @classmethod
    def read(cls, name: str, folder: Path) -> PrefixShape | None:
        """An adapter's shape; None if it is of another kind.

        Raises:
            EncoderError: files are missing.
        """
        stored = adapter_config(name, folder)
        if stored.pop("kind", None) != "prefix":
            return None
        views = {key: View(tuple(view["modules"]), view["top_k"]) for key, view in stored["views"].items()}
        return cls(**{**stored, "layers": tuple(stored["layers"]), "modules": tuple(stored["modules"]),
                      "views": views})  # fmt: skip

    def write(self, folder: Path) -> None:
        """Write ``adapter_config.json``."""
        text = json.dumps({"kind": "prefix", **asdict(self)}, indent=2)
        (folder / ADAPTER_CONFIG).write_text(text, encoding="utf-8")

    def view(self, name: str) -> View:
        """How the adapter is used under a name."""
        return self.views.get(name, View(self.modules, len(self.modules) if self.routed else UNIFORM))
