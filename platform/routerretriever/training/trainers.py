"""Running trainers: one Ray Train run an adapter, as many at once as the cluster holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from routerretriever.adapters.files import tower_fingerprint
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.errors import TrainingFailed
from routerretriever.runtime.cluster import connect, on_drivers_node, room_for
from routerretriever.runtime.metrics import merge
from routerretriever.runtime.progress import bars, is_quiet, log
from routerretriever.training.job import BEST_FOLDER, TrainingJob, checkpoints_key
from routerretriever.training.selection import Verdict
from routerretriever.training.settings import TrainingSettings


def run_jobs(jobs: list[TrainingJob], store: ArtifactStore) -> None:
    """Train adapters, as many at once as the cluster holds.

    Raises:
        TrainingFailed: one or more failed; the others are finished and kept.
    """
    import ray

    from routerretriever.training.worker import ProgressActor

    connect()

    training = jobs[0].training  # they differ in what is learned, not in what they run on
    at_once = room_to_train(training, training.workers)
    progress_actor = ProgressActor.options(**on_drivers_node()).remote()  # type: ignore[attr-defined]
    # A trainer's own machine can be lost too; the next one goes on from the last checkpoint.
    task = ray.remote(max_retries=training.max_failures, **on_drivers_node())(_train_one)
    waiting = list(jobs)
    running: dict[Any, TrainingJob] = {}
    failures: dict[str, str] = {}
    told: dict[str, int] = {}
    with bars() as progress:
        rows = {job.name: progress.add_task(f"training {job.name}", total=None, start=False) for job in jobs}
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                progress.start_task(rows[job.name])
                running[task.remote(job, store, progress_actor)] = job
            finished, _ = ray.wait(list(running), timeout=0.5)
            for name, (step, total, best, done) in _ask(progress_actor.read).items():
                note = f"dev {best:.3f}"
                # One that patience has ended is complete.
                progress.update(rows[name], completed=step, total=step if done else total, note=note)
                if is_quiet() and step > told.get(name, 0):
                    log.info("expert %s: step %d of %d, best %s", name, step, total, note)
                    told[name] = step
            for reference in finished:
                job = running.pop(reference)
                try:
                    card = ray.get(reference)
                except Exception as error:
                    failures[job.name] = failure_reason(error)
                    log.error("expert %s: failed: %s", job.name, failures[job.name])
                else:
                    log.info(
                        "expert %s: dev nDCG@10 %.4f (base %.4f), best of %d steps at %d",
                        job.name, card["dev_ndcg_at_10"], card["base_dev_ndcg_at_10"], card["steps"],
                        card["best_step"],
                    )  # fmt: skip
    merge(_ask(progress_actor.counted))
    if failures:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in failures.items())
        raise TrainingFailed(
            f"{len(failures)} of {len(jobs)} experts failed; the finished ones are kept, and running the "
            f"same command again goes on from the last checkpoints\n{listed}"
        )


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


def _ask(progress_actor_method: Any) -> dict[str, Any]:
    import ray
    from ray.exceptions import RayActorError

    try:
        notes: dict[str, Any] = ray.get(progress_actor_method.remote())
    except RayActorError:
        return {}  # only bars, log lines and counts hang on it
    return notes


def _train_one(job: TrainingJob, store: ArtifactStore, progress_actor: Any) -> dict[str, Any]:
    """Run one Ray Train trainer to its end and publish the expert; returns the card."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    run_key = checkpoints_key(job.key)
    filesystem, folder = store.arrow("training")
    settings = job.training
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job, "store": store, "progress_actor": progress_actor},
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker=resources_of(settings),
            label_selector=dict(settings.labels) or None,
        ),
        run_config=RunConfig(
            # The name is the expert's hash: the same command, run again after a crash, finds its checkpoints.
            name=run_key.split("/")[-1],
            storage_path=folder,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    result = trainer.fit()
    metrics = result.metrics
    if metrics is None or result.checkpoint is None:
        raise RuntimeError("the trainer ended without a checkpoint")
    card = {
        "kind": "expert",
        "domain": job.name,
        "encoder": job.encoder.model_dump(),
        "encoder_fingerprint": tower_fingerprint(job.encoder),
        "corpus": ", ".join(part.corpus_key for part in job.parts),
        "train": ", ".join(part.train_key for part in job.parts),
        "dev": ", ".join(part.dev_key for part in job.parts),
        "training": settings.model_dump(mode="json"),
        "dev_ndcg_at_10": metrics["best_dev"],
        "base_dev_ndcg_at_10": metrics["base_dev"],
        "best_step": metrics["best_step"],
        **_selection_card(metrics["selected"]),
        "steps": metrics["step"],
        "parameters": metrics["parameters"],
        "seconds": metrics["seconds"],
        "history": metrics["history"],
        "resumed_at": metrics["resumed_at"],
    }
    with result.checkpoint.as_directory() as checkpoint:
        store.put_folder(job.key, Path(checkpoint) / BEST_FOLDER)
    store.commit(job.key, card)
    store.delete(run_key)
    return card


def _selection_card(selected: dict[str, Any] | None) -> dict[str, Any]:
    if selected is None:
        return {"scale": 1.0, "deployed": True, "verdict": None}
    verdict = Verdict(**selected["verdict"])
    return {"scale": selected["choice"]["scale"], "deployed": verdict.deployed, "verdict": verdict.as_card()}


def failure_reason(error: Exception) -> str:
    """The innermost message of a chain of Ray errors, in one line."""
    cause: BaseException = error
    while True:
        inner = getattr(cause, "cause", None) or cause.__cause__
        failures = getattr(cause, "worker_failures", None)
        if failures:
            inner = next(iter(failures.values()))
        if not isinstance(inner, BaseException) or inner is cause:
            break
        cause = inner
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1].strip() if lines else ''}"


def train_worker(config: dict[str, Any]) -> None:
    """What Ray Train runs in a worker; see ``routerretriever.training.worker.train_adapter``.

    The trainer's controller loads this function too. It has no use for models, which take seconds to import.
    """
    from routerretriever.training.worker import train_adapter

    train_adapter(**config)
