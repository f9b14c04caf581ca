"""What runs in every Ray Train worker: one adapter after the other, as the queue hands them out.

Starting a worker takes longer than training a small expert does, so a worker trains many. Every evaluation on
dev leaves a checkpoint. A worker that takes the place of a lost one, or a run that is submitted again, goes
on from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import inf
from typing import Any

import ray
from ray import train
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import prepare_model

from routerretriever.adapters.files import tower_fingerprint
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.errors import RouterRetrieverError, TrainingFailed, failure_reason
from routerretriever.training.checkpoints import checkpoints_key, last_checkpoint, save_checkpoint
from routerretriever.training.cross_validation import chosen_by_folds
from routerretriever.training.job import BEST_FOLDER, TrainingJob
from routerretriever.training.loop import Evaluation, evaluations
from routerretriever.training.selection import Selected
from routerretriever.training.speculation import Speculation

_prepare = partial(
    prepare_model,
    # Workers run their texts in as many passes as their lengths need. Each pass would wait for the other
    # workers' buffers, which never change.
    parallel_strategy_kwargs={"broadcast_buffers": False},
)


def train_adapters(group: int, jobs: Mapping[str, TrainingJob], store: ArtifactStore, queue: Any) -> None:
    """Train what the queue hands out, until nothing is left.

    Args:
        group: of workers that share each batch; this process is one of them.
        jobs: all adapters of the run, by name.
        store: where inputs and results lie.
        queue: the actor of a ``TrainingQueue``.
    """
    first = train.get_context().get_world_rank() == 0
    alone = train.get_context().get_world_size() == 1
    while name := broadcast_from_rank_zero(ray.get(queue.take.remote(group)) if first else None):
        try:
            _train(name, group, jobs, store, queue)
        except Exception as error:
            expected = isinstance(error, RouterRetrieverError)
            left = ray.get(queue.fail.remote(group, failure_reason(error), expected))
            # Others of the group would wait for this one, and after an error that nobody expected a fresh
            # process is safer: Ray Train starts all of them anew.
            if not alone or (left and not expected):
                raise


def _train(name: str, group: int, jobs: Mapping[str, TrainingJob], store: ArtifactStore, queue: Any) -> None:
    job = jobs[name]
    rank, workers = train.get_context().get_world_rank(), train.get_context().get_world_size()
    if store.exists(job.key):  # the worker before this one was lost at the very end
        if rank == 0:
            ray.get(queue.finish.remote(group))
        return
    speculation = Speculation(partial(chosen_step, job, jobs, store, queue)) if job.folds else None
    up_to = inf
    if job.chosen is not None:
        up_to = job.chosen.choice.step - 1
    elif speculation is not None:
        up_to = 0  # what was trained before the folds have chosen may be too much already
    saved = last_checkpoint(store, job.key, up_to)
    for each in evaluations(job, store, rank, workers, saved, _prepare, speculation):
        if rank:
            continue
        progress = each.progress
        queue.advance.remote(group, progress.step, each.total_steps, progress.best_dev)
        if each.loss is None:
            continue  # nothing has been learned that a checkpoint could keep
        folder = each.save()
        if not each.done:
            save_checkpoint(store, job.key, progress.step, folder)
            continue
        store.put_folder(job.key, folder / BEST_FOLDER)
        store.commit(job.key, _card(job, each))
        store.delete(checkpoints_key(job.key))
        ray.get(queue.finish.remote(group))


def chosen_step(
    job: TrainingJob, jobs: Mapping[str, TrainingJob], store: ArtifactStore, queue: Any
) -> Selected | None:
    """What the folds of a job have chosen, if they are finished.

    Raises:
        TrainingFailed: a fold has failed, so that nothing will be chosen.
    """
    selected = chosen_by_folds(store, job.folds, job.training.confidence)
    if selected is None:
        courses = ray.get(queue.courses.remote())
        failed = [fold.name for fold in jobs.values() if fold.key in job.folds and courses[fold.name].failed]
        if failed:
            raise TrainingFailed(f"{job.name}: its step is chosen by {failed[0]}, which failed")
    return selected


def _card(job: TrainingJob, end: Evaluation) -> dict[str, Any]:
    progress = end.progress
    return {
        "kind": "expert",
        "domain": job.name,
        "encoder": job.encoder.model_dump(),
        "encoder_fingerprint": tower_fingerprint(job.encoder),
        "corpus": ", ".join(part.corpus_key for part in job.parts),
        "train": ", ".join(part.train_key for part in job.parts),
        "dev": ", ".join(part.dev_key for part in job.parts),
        "training": job.training.model_dump(mode="json"),
        "dev_ndcg_at_10": progress.best_dev,
        "base_dev_ndcg_at_10": progress.base_dev,
        "best_step": progress.best_step,
        **_selection_card(end.selected),
        "steps": progress.step,
        "parameters": end.parameters,
        "seconds": progress.seconds,
        "history": progress.history,
        "resumed_at": progress.resumed_at,
    }


def _selection_card(selected: Selected | None) -> dict[str, Any]:
    if selected is None:
        return {"scale": 1.0, "deployed": True, "verdict": None}
    verdict = selected.verdict
    return {"scale": selected.choice.scale, "deployed": verdict.deployed, "verdict": verdict.as_card()}
