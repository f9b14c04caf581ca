"""Counters and step times among Ray's metrics, where Prometheus finds them."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

from routerretriever.runtime.metrics import DESCRIPTIONS, export_to
from routerretriever.runtime.progress import RUN_ID


def export_to_ray() -> None:
    """Show this process's counters among Ray's metrics; each process that works under Ray calls it."""
    export_to(lambda name, amount: _counter(name).inc(amount))


def publish_seconds(recipe: str, seconds: dict[str, float]) -> None:
    """Add to how long steps took among Ray's metrics, if Ray runs."""
    if running_ray() is None:
        return
    for step, value in seconds.items():
        if value > 0:
            _step_seconds().inc(value, tags={"recipe": recipe, "step": step, "run": RUN_ID})


def running_ray() -> Any:
    """Ray's module if this process has joined a cluster, else None; does not import it."""
    ray = sys.modules.get("ray")
    return ray if ray is not None and ray.is_initialized() else None


@cache
def _counter(name: str) -> Any:
    from ray.util import metrics

    return metrics.Counter(name, DESCRIPTIONS[name])


@cache
def _step_seconds() -> Any:
    from ray.util import metrics

    # A counter, as Ray forgets a gauge that nobody sets again for some seconds.
    tags = ("recipe", "step", "run")
    return metrics.Counter("routerretriever_step_seconds", "Time that a run's step took.", tag_keys=tags)
