"""Training adapters on Ray Train: groups of workers, as many as the cluster holds, and one queue for all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from routerretriever.artifacts.leases import Leases
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.errors import TrainingFailed, failure_reason
from routerretriever.runtime.cluster import connect, on_drivers_node, room_for
from routerretriever.runtime.metrics import TRAINING_STEPS, WORKERS_REPLACED, increment
from routerretriever.runtime.progress import RUN_ID, bars, is_quiet, log
from routerretriever.training.job import TrainingJob
from routerretriever.training.queue import Course, TrainingQueue
from routerretriever.training.settings import TrainingSettings

_FOLDER = "training"
"""Where Ray Train keeps its own records of a run, each group in a folder beside our checkpoints."""
_RUN_NAME = re.compile(r"adapters-[0-9a-f]{8}-\d{1,4}")
"""Such a folder. Those of checkpoints end in a hash of 16 digits, even for a domain called adapters."""


def run_jobs(jobs: list[TrainingJob], store: ArtifactStore) -> None:
    """Train adapters, as many at once as the cluster holds.

    Raises:
        TrainingFailed: one or more failed; the others are finished and kept.
    """
    import ray

    connect()
    training = jobs[0].training  # they differ in what is learned, not in what they run on
    groups = min(len(jobs), room_to_train(training, training.workers))
    here = on_drivers_node()
    named = {job.name: job for job in jobs}
    remove_abandoned(store)
    queue = ray.remote(TrainingQueue).options(**here).remote(list(named), training.max_failures)
    # The machine of the trainers can be lost too; the next ones go on from the last checkpoints.
    task = ray.remote(max_retries=training.max_failures, **here)(_run_groups)
    running = task.remote(groups, named, store, queue)
    why_unfinished = "no worker was left to train it"
    with bars() as progress:
        display = _TrainingDisplay(progress, named, store)
        try:
            ended = False
            while not ended:
                ended = bool(ray.wait([running], timeout=0.5)[0])
                display.show(ray.get(queue.courses.remote()))
            ray.get(running)
        except ray.exceptions.RayError as error:
            why_unfinished = failure_reason(error)
            log.error("training: %s", why_unfinished)
    failures = {
        name: course.failed or why_unfinished
        for name, course in display.courses.items()
        if not course.finished
    }
    if failures:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in failures.items())
        raise TrainingFailed(
            f"{len(failures)} of {len(jobs)} experts failed; the finished ones are kept, and running the "
            f"same command again goes on from the last checkpoints\n{listed}"
        )


class _TrainingDisplay:
    """What people see of a training run: a bar for each adapter, or lines; and the counters."""

    def __init__(self, progress: Any, jobs: Mapping[str, TrainingJob], store: ArtifactStore) -> None:
        self.courses = {name: Course() for name in jobs}
        self._jobs, self._store = jobs, store
        self._progress = progress
        self._rows = {name: progress.add_task(f"training {name}", total=None, start=False) for name in jobs}

    def show(self, courses: dict[str, Course]) -> None:
        """Show how far all are, and tell what is new."""
        for name, now in courses.items():
            before = self.courses[name]
            news = {
                TRAINING_STEPS: now.steps_taken - before.steps_taken,
                WORKERS_REPLACED: now.restarts - before.restarts,
            }
            for counter, amount in news.items():
                if amount:
                    increment(counter, amount)
            if now.begun and not before.begun:
                self._progress.start_task(self._rows[name])
            note = f"dev {now.best_dev:.3f}"
            # One that patience has ended is complete.
            total = now.step if now.finished else now.total_steps or None
            self._progress.update(self._rows[name], completed=now.step, total=total, note=note)
            if is_quiet() and now.step > before.step:
                log.info("expert %s: step %d of %d, best %s", name, now.step, now.total_steps, note)
            if now.failed and not before.failed:
                log.error("expert %s: failed: %s", name, now.failed)
            if now.finished and not before.finished:
                log.info("expert %s: %s", name, self._outcome(self._jobs[name]))
        self.courses = courses

    def _outcome(self, job: TrainingJob) -> str:
        card = self._store.manifest(job.key)
        if job.selection == "chosen":  # on all labelled queries: dev is a small part of them
            return f"trained for {card['steps']} steps, as cross-validation chose"
        dev, base = card["dev_ndcg_at_10"], card["base_dev_ndcg_at_10"]
        best = f"best of {card['steps']} steps at {card['best_step']}"
        return f"dev nDCG@10 {dev:.4f} (base {base:.4f}), {best}"


def room_to_train(training: TrainingSettings, workers: int) -> int:
    """How many groups of so many workers are to train at once.

    Raises:
        BadInput: the cluster does not hold one group.
    """
    room = room_for(training.cpus_per_worker, training.gpus_per_worker, workers, training.labels)
    return min(training.at_once or room, room)


def resources_of(training: TrainingSettings) -> dict[str, float]:
    """What Ray reserves for each worker, in Ray's words."""
    resources = {"CPU": training.cpus_per_worker}
    if training.gpus_per_worker:
        resources["GPU"] = training.gpus_per_worker
    return resources


def _run_groups(groups: int, jobs: Mapping[str, TrainingJob], store: ArtifactStore, queue: Any) -> None:
    """Run a Ray Train trainer for each group of workers, to the end of the queue."""
    with ThreadPoolExecutor(groups) as pool:
        for run in [pool.submit(_run_group, number, jobs, store, queue) for number in range(groups)]:
            run.result()


def _run_group(group: int, jobs: Mapping[str, TrainingJob], store: ArtifactStore, queue: Any) -> None:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    training = next(iter(jobs.values())).training
    name = f"adapters-{RUN_ID}-{group}"
    filesystem, folder = store.arrow(_FOLDER)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"group": group, "jobs": jobs, "store": store, "queue": queue},
        scaling_config=ScalingConfig(
            num_workers=training.workers,
            use_gpu=training.gpus_per_worker > 0,
            resources_per_worker=resources_of(training),
            label_selector=dict(training.labels) or None,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=folder,
            storage_filesystem=filesystem,
            # The queue counts what an adapter may fail; these are all that a group may see.
            failure_config=FailureConfig(max_failures=len(jobs) * (training.max_failures + 1)),
        ),
    )
    with Leases(store.files).hold([f"{_FOLDER}/{name}"]):
        try:
            trainer.fit()
        except Exception as error:
            ray.get(queue.fail.remote(group, failure_reason(error), True))
        finally:
            store.delete(f"{_FOLDER}/{name}")


def remove_abandoned(store: ArtifactStore) -> None:
    """Remove what Ray Train's runs have left that were killed; each live one holds a lease on its folder."""
    names = {name.partition("/")[0] for name in store.files.list_files(_FOLDER)}
    keys = [f"{_FOLDER}/{name}" for name in sorted(names) if _RUN_NAME.fullmatch(name)]
    with Leases(store.files).hold(keys) as abandoned:
        for key in abandoned:
            store.delete(key)


def train_worker(config: dict[str, Any]) -> None:
    """What Ray Train runs in a worker; see ``routerretriever.training.worker.train_adapters``.

    The trainer's controller loads this function too. It has no use for models, which take seconds to import.
    """
    from routerretriever.training.worker import train_adapters

    train_adapters(**config)
