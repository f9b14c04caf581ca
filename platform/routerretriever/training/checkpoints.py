"""Checkpoints of an adapter in training: the last one is kept until the adapter is finished."""

from __future__ import annotations

from math import inf
from pathlib import Path

from routerretriever.artifacts.store import ArtifactStore


def checkpoints_key(expert: str) -> str:
    """Where the checkpoints of an expert lie."""
    return f"training/{expert.split('/')[-1]}"


def last_checkpoint(store: ArtifactStore, expert: str, up_to: float = inf) -> Path | None:
    """A local folder with the last whole checkpoint, if it is of this step or an earlier one."""
    keys = store.finished_below(checkpoints_key(expert))
    keys = [] if any(_step(key) > up_to for key in keys) else keys
    return store.fetch(max(keys, key=_step)) if keys else None


def save_checkpoint(store: ArtifactStore, expert: str, step: int, folder: Path) -> None:
    """Keep a folder as the checkpoint after ``step``, in place of earlier ones."""
    earlier = store.finished_below(checkpoints_key(expert))
    key = f"{checkpoints_key(expert)}/{step}"
    store.put_folder(key, folder)
    store.commit(key, {"kind": "checkpoint", "step": step})
    for old in set(earlier) - {key}:
        store.delete(old)


def _step(key: str) -> int:
    return int(key.rsplit("/", 1)[-1])
