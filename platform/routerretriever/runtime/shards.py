"""The one pattern by which shards of work are spread over a cluster with Ray Data."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Protocol

from routerretriever.errors import WorkerFailed
from routerretriever.runtime.cluster import connect, room_for
from routerretriever.runtime.metrics import WORKERS_REPLACED, drain, increment, merge
from routerretriever.runtime.progress import track
from routerretriever.runtime.ray_metrics import export_to_ray
from routerretriever.settings import PoolSettings

_COUNTS = "counts"


class ShardWorker:
    """What ``run_shards`` maps rows through; a kind of work gives it a ``work``."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do a row's work; what was counted in this process meanwhile goes back."""
        _join_metrics()
        self.work(row)
        # As text: Arrow would want the same names in all rows.
        return {_COUNTS: json.dumps(drain())}

    def work(self, row: dict[str, Any]) -> None:
        """Do one row's work; it may be done again."""
        raise NotImplementedError


class PartStore(Protocol):
    """Where artifacts lie; ``ArtifactStore`` is one."""

    def has(self, key: str, name: str) -> bool:
        """Whether an unfinished artifact has a file."""

    def commit(self, key: str, manifest: dict[str, Any]) -> None:
        """Finish an artifact."""


@cache
def _join_metrics() -> None:
    """Once in a process: export its counters. Ray starts the actor of a worker that died in a new process."""
    import ray

    export_to_ray()
    if ray.get_runtime_context().was_current_actor_reconstructed:
        increment(WORKERS_REPLACED)


def join_quietly() -> None:
    """Join the cluster, and have Ray Data show nothing of its own and hand rows on as they are done."""
    from ray.data import DataContext

    connect()
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def run_shards(
    shards: list[dict[str, Any]],
    worker: type[ShardWorker],
    constructor: dict[str, Any],
    pool: PoolSettings,
    description: str,
) -> None:
    """Have every shard worked on by a pool of Ray Data actors, behind a progress bar.

    Args:
        shards: one flat row of plain values each. A manifest of shards, one block apiece, keeps every actor
            busy, where reading the data itself through Ray Data made blocks too few to share out.
        worker: its instances do the work of one row after the other.
        constructor: keyword arguments of the class.
        pool: how many instances there are, and what each of them gets.
        description: what the bar says.

    Raises:
        WorkerFailed: a worker stopped with an error of this project.
    """
    import ray
    from ray.data import ActorPoolStrategy
    from ray.exceptions import RayActorError, RayTaskError

    if not shards:
        return
    join_quietly()
    room = room_for(pool.cpus_per_worker, pool.gpus_per_worker, labels=pool.labels)
    size = min(pool.workers or room, room, len(shards))
    dataset = ray.data.from_items(shards, override_num_blocks=len(shards)).map(
        worker,
        fn_constructor_kwargs=constructor,
        compute=ActorPoolStrategy(size=size),
        num_cpus=pool.cpus_per_worker,
        num_gpus=pool.gpus_per_worker or None,
        **({"label_selector": dict(pool.labels)} if pool.labels else {}),
    )
    try:
        # Without looking ahead: a shard that is done would only be told of with the next one.
        blocks = dataset.iter_batches(batch_size=None, prefetch_batches=0)
        told = (counts for block in blocks for counts in block[_COUNTS])
        for counts in track(told, description, len(shards)):
            merge(json.loads(counts))
    except (RayTaskError, RayActorError) as error:  # the latter, if a worker fails before its first shard
        # Ray Data carries what a worker raised as text alone; our own errors are meant for people.
        own = re.search(r"^routerretriever\.[\w.]+: (.+)$", str(error), re.MULTILINE)
        if own is None:
            raise
        raise WorkerFailed(own[1]) from None


def make_parts(
    parts: Mapping[str, list[dict[str, Any]]],
    manifests: Mapping[str, dict[str, Any]],
    worker: type[ShardWorker],
    constructor: dict[str, Any],
    pool: PoolSettings,
    store: PartStore,
    description: str,
) -> None:
    """Make and commit artifacts of several files each; files that an interrupted run has left are kept.

    Args:
        parts: the worker's rows for each artifact, with its ``key`` and their file's name as ``part``.
        manifests: what each artifact is committed with.
        worker: makes a part.
        constructor: keyword arguments of the class.
        pool: how the work is shared out.
        store: where the artifacts lie.
        description: what the progress bar says.
    """
    todo = [row for key, rows in parts.items() for row in rows if not store.has(key, row["part"])]
    run_shards(todo, worker, constructor, pool, description)
    for key in parts:
        store.commit(key, manifests[key])
