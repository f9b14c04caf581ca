"""What a run counts, in whichever process it happens: Ray's metrics show it at once, MLflow in the end.

For the latter a count stays in its process until somebody carries it to the driver: workers on shards with
every row that they finish, trainers through their board. What a worker counted that is lost is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

DOCUMENTS_ENCODED = "routerretriever_documents_encoded"
QUERIES_SCORED = "routerretriever_queries_scored"
TRAINING_STEPS = "routerretriever_training_steps"
STORAGE_RETRIES = "routerretriever_storage_retries"
WORKERS_REPLACED = "routerretriever_workers_replaced"

_MEANING = {
    DOCUMENTS_ENCODED: "Documents that were embedded for an index.",
    QUERIES_SCORED: "Queries that an expert, or the base, was scored on.",
    TRAINING_STEPS: "Optimiser steps of all experts.",
    STORAGE_RETRIES: "Storage operations that failed and were tried again.",
    WORKERS_REPLACED: "Workers that took the place of one that was lost; each repeats what that one was at.",
}
_RATES = {
    "documents_per_second": (DOCUMENTS_ENCODED, "encode"),
    "training_steps_per_second": (TRAINING_STEPS, "train"),
    "queries_per_second": (QUERIES_SCORED, "score"),
}
"""Throughput: what is counted, and the step in whose seconds."""

_tally: Counter[str] = Counter()


def count(name: str, amount: int = 1) -> None:
    """Count something that happened in this process."""
    _metric(name).inc(amount)
    _tally[name] += amount


def take() -> dict[str, int]:
    """What was counted or carried here since this was last asked."""
    global _tally
    taken, _tally = _tally, Counter()
    return dict(taken)


def carry(counts: Mapping[str, int]) -> None:
    """Keep what another process has counted, and shown, for the next ``take`` of this one."""
    _tally.update(counts)


def figures(seconds: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """What MLflow keeps of a run: ``seconds/STEP``, ``counts/...``, and ``throughput/...`` of whole steps.

    A step's seconds hold the start of its processes too. One that did nothing has no throughput.
    """
    kept = {f"seconds/{step}": value for step, value in seconds.items()}
    for name in _MEANING:
        kept[f"counts/{name.removeprefix('routerretriever_')}"] = counts.get(name, 0)
    for rate, (name, step) in _RATES.items():
        if counts.get(name) and seconds.get(step):
            kept[f"throughput/{rate}"] = counts[name] / seconds[step]
    return kept


@cache
def _metric(name: str) -> Any:
    from ray.util import metrics

    return metrics.Counter(name, _MEANING[name])
