"""Writing a router to a folder, and reading it back: JSON for settings, safetensors for arrays."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from routerretriever.errors import BadInput
from routerretriever.routing.constant import ConstantRouter
from routerretriever.routing.fallback import FallbackRouter
from routerretriever.routing.linear import LinearRouter
from routerretriever.routing.neighbours import NeighbourRouter
from routerretriever.routing.pilots import PilotRouter
from routerretriever.routing.protocol import Router

_SETTINGS_FILE, _ARRAYS_FILE = "router.json", "router.safetensors"
_KINDS: dict[str, type[Router]] = {
    router.kind: router
    for router in (ConstantRouter, FallbackRouter, LinearRouter, NeighbourRouter, PilotRouter)
}
_OLD_KINDS = {"gated": "fallback"}
_OLD_ARRAYS = {"shut_M": "unfamiliar_M", "open_M": "familiar_M"}
"""Names in routers saved by release 0.1, and what they are now."""


class _OtherStateError(Exception):
    """A router of a known kind has other arrays or settings than here."""


def save_router(router: Router, folder: Path) -> None:
    """Write a router's state."""
    settings, arrays = router.state()
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "kind": router.kind,
        "experts": router.experts,
        "min_share": router.min_share,
        "settings": settings,
    }
    (folder / _SETTINGS_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
    tensors = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    (folder / _ARRAYS_FILE).write_bytes(tensors)  # their save_file would let nobody else read it


def load_router(folder: Path) -> Router:
    """Read a router back.

    Raises:
        BadInput: the folder holds a kind of router that this version does not know, or one that another
            version wrote in another way.
    """
    content = json.loads((folder / _SETTINGS_FILE).read_text(encoding="utf-8"))
    try:
        router = _build(content, load_file(folder / _ARRAYS_FILE))
    except KeyError as error:
        raise BadInput(f"{folder}: no router of kind {error}; there are {sorted(_KINDS)}") from None
    except _OtherStateError as error:
        raise BadInput(
            f"{folder}: another version of RouterRetriever wrote this router ({error}); serve it with that "
            "one, or register the recipe again"
        ) from None
    router.min_share = content["min_share"]
    return router


def _build(content: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Router:
    settings = dict(content["settings"])
    own = {
        _OLD_ARRAYS.get(name, name): array for name, array in arrays.items() if not name.startswith("inner.")
    }
    if "inner" in settings:
        inner = {
            name.removeprefix("inner."): array for name, array in arrays.items() if name.startswith("inner.")
        }
        settings["inner"] = _build(settings["inner"], inner)
    kind = _KINDS[_OLD_KINDS.get(content["kind"], content["kind"])]
    try:
        inspect.signature(kind).bind(content["experts"], **settings, **own)
    except TypeError as error:
        raise _OtherStateError(error) from None
    return kind(content["experts"], **settings, **own)
