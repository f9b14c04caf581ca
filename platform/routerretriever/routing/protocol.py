"""What every router is, and how one is written to and read from a folder."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

Vectors = NDArray[np.float32]
_SETTINGS_FILE, _ARRAYS_FILE = "router.json", "router.safetensors"


class Router(ABC):
    """Routing features [B, d] to weights over experts [B, T]; a row is one-hot, or sums to 1."""

    kind: ClassVar[str]

    def __init__(self, experts: list[str]) -> None:
        self.experts = experts

    @abstractmethod
    def weights(self, features_Bd: Vectors) -> Vectors:
        """How much of each expert's vector goes into the query's: [B, T]."""

    @abstractmethod
    def scores(self, features_Bd: Vectors) -> NDArray[np.float64]:
        """What the weights are made from, for explanations: [B, T], higher is better."""

    @abstractmethod
    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Constructor arguments besides ``experts``: plain values, and arrays."""


def save_router(router: Router, folder: Path) -> None:
    """Write a router's state: JSON for settings, safetensors for arrays."""
    settings, arrays = router.state()
    folder.mkdir(parents=True, exist_ok=True)
    content = {"kind": router.kind, "experts": router.experts, "settings": settings}
    (folder / _SETTINGS_FILE).write_text(json.dumps(content, indent=2), encoding="utf-8")
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / _ARRAYS_FILE)


def load_router(folder: Path) -> Router:
    """Read a router back.

    Raises:
        ValueError: the folder holds a router of a kind that this version does not know.
    """
    from routerretriever.routing.routers import FixedRouter, PilotRouter, PosteriorRouter, UniformRouter

    kinds: dict[str, type[Router]] = {
        router.kind: router for router in (PilotRouter, PosteriorRouter, FixedRouter, UniformRouter)
    }
    content = json.loads((folder / _SETTINGS_FILE).read_text(encoding="utf-8"))
    if content["kind"] not in kinds:
        raise ValueError(f"{folder}: router of unknown kind {content['kind']!r}; there are {sorted(kinds)}")
    arrays = load_file(folder / _ARRAYS_FILE)
    return kinds[content["kind"]](content["experts"], **content["settings"], **arrays)


def weigh(scores_BT: NDArray[np.float64], mixing: str, temperature: float) -> Vectors:
    """Scores to weights: all to the best (``hard``), or a softmax at a temperature (``soft``)."""
    return one_hot(scores_BT) if mixing == "hard" else softmax(scores_BT / temperature)


def one_hot(scores_BT: NDArray[np.float64]) -> Vectors:
    """Weight 1 for the best expert of each row."""
    weights_BT = np.zeros(scores_BT.shape, dtype=np.float32)
    weights_BT[np.arange(len(scores_BT)), scores_BT.argmax(axis=1)] = 1.0
    return weights_BT


def softmax(scores_BT: NDArray[np.float64]) -> Vectors:
    """Rows that sum to 1; minus infinity gets weight 0."""
    shifted = np.exp(scores_BT - scores_BT.max(axis=1, keepdims=True))
    return (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
