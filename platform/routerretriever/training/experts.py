"""Training all domains of a recipe at once, and the expert artifact that comes out.

Layout of an expert: PEFT's ``adapter_model.safetensors`` and ``adapter_config.json``, and the card as
``artifact.json``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routerretriever.cluster import room_for
from routerretriever.config import EncoderSettings, TrainingSettings, content_hash
from routerretriever.console import bars, log
from routerretriever.corpus import corpus_key
from routerretriever.datasets import Collection, store_judgements
from routerretriever.encoder import encoder_fingerprint
from routerretriever.storage import ArtifactMissing, ArtifactStore


class TrainingFailed(RuntimeError):
    """Some domains could not be trained; the message names each with its reason. The others are kept."""


@dataclass(frozen=True)
class ExpertJob:
    """All that a trainer on any node needs to know."""

    domain: str
    key: str
    encoder: EncoderSettings
    training: TrainingSettings
    corpus_key: str
    train_key: str
    dev_key: str


@dataclass(frozen=True)
class Expert:
    """A trained expert: where its adapter lies, and its card."""

    domain: str
    key: str
    card: dict[str, Any]

    @property
    def version(self) -> str:
        """The hash of everything that the expert was made from."""
        return self.key.rsplit("-", 1)[-1]

    def folder(self, store: ArtifactStore) -> Path:
        """A local folder with the adapter's files."""
        return store.fetch(self.key)


def expert_key(collection: Collection, encoder: EncoderSettings, training: TrainingSettings) -> str:
    """Where a domain's expert lies: a hash of base encoder, documents, judgements and training settings."""
    digest = content_hash(
        corpus_key(collection, encoder),
        collection.split_hash("train"),
        collection.split_hash("dev"),
        training.identity(),
    )
    return f"experts/{collection.name}-{digest}"


def open_expert(store: ArtifactStore, key: str) -> Expert:
    """Open a finished expert.

    Raises:
        ArtifactMissing: it has not been trained.
    """
    try:
        card = store.manifest(key)
    except ArtifactMissing:
        raise ArtifactMissing(
            f"{store.location(key)}: not trained yet; run `routerretriever train` first"
        ) from None
    return Expert(card["domain"], key, card)


def train_experts(
    collections: list[Collection], encoder: EncoderSettings, training: TrainingSettings, store: ArtifactStore
) -> dict[str, Expert]:
    """Train the experts that are missing, as many at once as the cluster holds, and open all of them.

    Their corpora must have been built.

    Raises:
        TrainingFailed: one or more domains failed; the other domains' experts are finished and kept.
    """
    import ray

    from routerretriever.training.loop import Board

    keys = {collection.name: expert_key(collection, encoder, training) for collection in collections}
    jobs = [
        ExpertJob(
            domain=collection.name,
            key=keys[collection.name],
            encoder=encoder,
            training=training,
            corpus_key=corpus_key(collection, encoder),
            train_key=store_judgements(store, collection, "train"),
            dev_key=store_judgements(store, collection, "dev"),
        )
        for collection in collections
        if not store.exists(keys[collection.name])
    ]
    for collection in collections:
        if store.exists(keys[collection.name]):
            log.info("expert %s: trained already", collection.name)
    if jobs:
        at_once = room_for(
            training.workers * training.cpus_per_worker, training.workers * training.gpus_per_worker
        )
        board = Board.remote()  # type: ignore[attr-defined]
        task = ray.remote(num_cpus=0, max_retries=0)(_train_one)
        waiting = list(jobs)
        running: dict[Any, ExpertJob] = {}
        failures: dict[str, str] = {}
        with bars() as progress:
            rows = {job.domain: progress.add_task(f"training {job.domain}", total=None) for job in jobs}
            while waiting or running:
                while waiting and len(running) < at_once:
                    job = waiting.pop(0)
                    running[task.remote(job, store, board)] = job
                finished, _ = ray.wait(list(running), timeout=0.5)
                for domain, (step, total, best, done) in ray.get(board.read.remote()).items():
                    progress.update(
                        rows[domain], completed=total if done else step, total=total, note=f"dev {best:.3f}"
                    )
                for reference in finished:
                    job = running.pop(reference)
                    try:
                        card = ray.get(reference)
                    except Exception as error:
                        failures[job.domain] = _reason(error)
                        log.error("expert %s: failed: %s", job.domain, failures[job.domain])
                    else:
                        log.info(
                            "expert %s: dev nDCG@10 %.4f (base %.4f), best of %d steps at %d",
                            job.domain, card["dev_ndcg_at_10"], card["base_dev_ndcg_at_10"], card["steps"],
                            card["best_step"],
                        )  # fmt: skip
        if failures:
            listed = "\n".join(f"  {domain}: {reason}" for domain, reason in failures.items())
            raise TrainingFailed(
                f"{len(failures)} of {len(jobs)} experts failed; the finished ones are kept, and running the "
                f"same command again goes on from the last checkpoints\n{listed}"
            )
    return {name: open_expert(store, key) for name, key in keys.items()}


def _train_one(job: ExpertJob, store: ArtifactStore, board: Any) -> dict[str, Any]:
    """Run one Ray Train trainer to its end and publish the expert; returns the card."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from routerretriever.training.loop import BEST_FOLDER, train_worker

    run_key = f"training/{job.key.split('/')[-1]}"
    settings = job.training
    resources = {"CPU": settings.cpus_per_worker}
    if settings.gpus_per_worker:
        resources["GPU"] = settings.gpus_per_worker
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job, "store": store, "board": board},
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            # The name is the expert's hash: the same command, run again after a crash, finds its checkpoints.
            name=run_key.split("/")[-1],
            storage_path=store.location("training"),
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
        "domain": job.domain,
        "encoder": job.encoder.model_dump(),
        "encoder_fingerprint": encoder_fingerprint(job.encoder),
        "corpus": job.corpus_key,
        "train": job.train_key,
        "dev": job.dev_key,
        "training": settings.model_dump(mode="json"),
        "dev_ndcg_at_10": metrics["best_dev"],
        "base_dev_ndcg_at_10": metrics["base_dev"],
        "best_step": metrics["best_step"],
        "steps": metrics["step"],
        "seconds": metrics["seconds"],
        "history": metrics["history"],
        "resumed_at": metrics["resumed_at"],
    }
    with result.checkpoint.as_directory() as folder:
        store.put_folder(job.key, Path(folder) / BEST_FOLDER)
    store.commit(job.key, card)
    store.delete(run_key)
    return card


def _reason(error: Exception) -> str:
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
