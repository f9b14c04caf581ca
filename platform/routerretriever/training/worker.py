"""What runs in every Ray Train worker of one adapter.

Every evaluation on dev leaves a checkpoint. A worker that is killed, or a run that is submitted again,
continues from there.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import train
from ray.train import Checkpoint
from ray.train.torch import prepare_model

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.runtime.metrics import TRAINING_STEPS, WORKERS_REPLACED, drain, increment
from routerretriever.runtime.ray_metrics import export_to_ray
from routerretriever.training.job import TrainingJob
from routerretriever.training.loop import Evaluation, evaluations

_PER_QUERY = ("base_values", "scaled_values")


def train_adapter(job: TrainingJob, store: ArtifactStore, progress_actor: Any) -> None:
    """Train one adapter as a worker of Ray Train; ``progress_actor`` is told how far it has come."""
    rank, workers = train.get_context().get_world_rank(), train.get_context().get_world_size()
    checkpoint = train.get_checkpoint()
    with ExitStack() as stack:
        saved = None if checkpoint is None else Path(stack.enter_context(checkpoint.as_directory()))
        for each in evaluations(job, store, rank, workers, saved, prepare_model):
            if rank == 0:
                progress = each.progress
                progress_actor.update.remote(
                    job.name, progress.step, each.total_steps, progress.best_dev, each.done
                )
            if each.loss is not None:
                kept = Checkpoint.from_directory(str(each.save())) if rank == 0 else None
                train.report(_metrics(each), checkpoint=kept)


def _metrics(evaluation: Evaluation) -> dict[str, Any]:
    progress = {name: value for name, value in vars(evaluation.progress).items() if name not in _PER_QUERY}
    return {
        **progress,
        "selected": None if evaluation.selected is None else asdict(evaluation.selected),
        "parameters": evaluation.parameters,
        "loss": evaluation.loss,
        "total_steps": evaluation.total_steps,
        "done": evaluation.done,
    }


@ray.remote
class ProgressActor:
    """Where running trainers note how far they are: at the start, and at every evaluation on dev."""

    def __init__(self) -> None:
        export_to_ray()
        self._rows: dict[str, tuple[int, int, float, bool]] = {}

    def update(self, domain: str, step: int, total: int, best_dev: float, done: bool) -> None:
        """Note a domain's step and its best dev nDCG@10 so far."""
        if domain in self._rows:
            steps = step - self._rows[domain][0]
            # Only a worker that has just started comes with a step that was there before.
            increment(*((TRAINING_STEPS, steps) if steps > 0 else (WORKERS_REPLACED, 1)))
        self._rows[domain] = (step, total, best_dev, done)

    def read(self) -> dict[str, tuple[int, int, float, bool]]:
        """All notes, by domain."""
        return self._rows

    def counted(self) -> dict[str, int]:
        """What was counted here since this was last asked."""
        return drain()
