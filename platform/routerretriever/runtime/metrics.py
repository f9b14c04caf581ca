"""Counters of a run, in whichever process something happens.

``increment`` counts here and tells whoever watches this process (``export_to``; Ray's metrics, once there is
Ray). ``drain`` gives what was counted since it was last asked, so that workers can send their counts to the
driver, which ``merge``s them; MLflow keeps the sums. Counts of a worker that is lost are lost with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

DOCUMENTS_ENCODED = "routerretriever_documents_encoded"
QUERIES_SCORED = "routerretriever_queries_scored"
TRAINING_STEPS = "routerretriever_training_steps"
STORAGE_RETRIES = "routerretriever_storage_retries"
WORKERS_REPLACED = "routerretriever_workers_replaced"

DESCRIPTIONS = {
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

_counts: Counter[str] = Counter()
_exporter: Callable[[str, int], None] | None = None


def export_to(exporter: Callable[[str, int], None] | None) -> None:
    """Have every increment in this process shown elsewhere too: called with a name and an amount."""
    global _exporter
    _exporter = exporter


def increment(name: str, amount: int = 1) -> None:
    """Count something that happened in this process; ``name`` is one of ``DESCRIPTIONS``."""
    if _exporter is not None:
        _exporter(name, amount)
    _counts[name] += amount


def drain() -> dict[str, int]:
    """What was counted or merged here since this was last asked."""
    global _counts
    drained, _counts = _counts, Counter()
    return dict(drained)


def merge(counts: Mapping[str, int]) -> None:
    """Add what another process has counted, and exported, to the next ``drain`` of this one."""
    _counts.update(counts)


def figures(seconds: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """What MLflow keeps of a run: ``seconds/STEP``, ``counts/...``, and ``throughput/...`` of whole steps.

    A step's seconds hold the start of its processes too. One that did nothing has no throughput.
    """
    kept = {f"seconds/{step}": value for step, value in seconds.items()}
    for name in DESCRIPTIONS:
        kept[f"counts/{name.removeprefix('routerretriever_')}"] = counts.get(name, 0)
    for rate, (name, step) in _RATES.items():
        if counts.get(name) and seconds.get(step):
            kept[f"throughput/{rate}"] = counts[name] / seconds[step]
    return kept
