"""Training all domains of a recipe at once, and the expert artifact that comes out.

Layout of an expert: PEFT's ``adapter_model.safetensors`` and ``adapter_config.json``, and the card as
``artifact.json``.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from routerretriever.adapters.prefix_shape import PrefixShape, View
from routerretriever.adapters.settings import PrefixSettings
from routerretriever.artifacts.store import ArtifactStore, build_missing
from routerretriever.corpus.artifact import corpus_key
from routerretriever.datasets.collection import Collection
from routerretriever.datasets.judgements import store_judgements
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.encoder.source import ADAPTER_CONFIG, ADAPTER_WEIGHTS, encoder_fingerprint
from routerretriever.errors import ArtifactMissing, TrainingFailed
from routerretriever.hashing import content_hash
from routerretriever.methods.settings import DdrSettings, GeneralPrefixSettings, JointSettings
from routerretriever.runtime.cluster import on_drivers_node, room_for
from routerretriever.runtime.metrics import carry
from routerretriever.runtime.progress import bars, is_quiet, log
from routerretriever.training.cross_validation import fold_jobs, read_held_out
from routerretriever.training.job import BEST_FOLDER, TrainingJob, TrainingPart, train_worker
from routerretriever.training.selection import Verdict, advice, join_folds, select
from routerretriever.training.settings import TrainingSettings


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


def joint_training(training: TrainingSettings, joint: JointSettings) -> TrainingSettings:
    """How a joint model is trained: as the experts, perhaps for longer."""
    own = training.model_copy(update={"max_steps": joint.max_steps or training.max_steps})
    return own.plain()


def joint_key(
    name: str,
    collections: list[Collection],
    encoder: EncoderSettings,
    training: TrainingSettings,
    joint: JointSettings,
) -> str:
    """Where a joint model lies: a hash of all that its domains' experts are made from, and its settings."""
    own = joint_training(training, joint)
    parts = [expert_key(collection, encoder, own) for collection in collections]
    return f"experts/{name}-{content_hash(parts, joint.equal_data)}"


def checkpoints_key(expert: str) -> str:
    """Where the checkpoints of an expert in training lie."""
    return f"training/{expert.split('/')[-1]}"


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
    return _train_missing(
        [
            _expert_job(
                collection.name,
                expert_key(collection, encoder, training),
                collection,
                encoder,
                training,
                store,
            )
            for collection in collections
        ],
        store,
    )


def train_joint(
    models: Mapping[str, JointSettings],
    collections: list[Collection],
    encoder: EncoderSettings,
    training: TrainingSettings,
    store: ArtifactStore,
) -> dict[str, Expert]:
    """Train models of one adapter each on several domains, taken in turns; dev is the mean over them.

    The multi-task baseline of RouterRetriever (arXiv 2409.02685), with the experts' own objective.

    Raises:
        TrainingFailed: one or more models failed; the others are finished and kept.
    """
    parts = tuple(_part(collection, encoder, store) for collection in collections)
    smallest = min(len(collection.qrels("train")) for collection in collections)
    jobs = []
    for name, joint in models.items():
        own = joint_training(training, joint)
        key = joint_key(name, collections, encoder, training, joint)
        jobs.append(TrainingJob(name, key, encoder, own, parts, smallest if joint.equal_data else None))
    return _train_missing(jobs, store)


def train_copies(
    collection: Collection,
    encoder: EncoderSettings,
    training: TrainingSettings,
    count: int,
    store: ArtifactStore,
) -> dict[str, Expert]:
    """Train one expert several times, with the seeds after the recipe's: how much is luck?

    Raises:
        TrainingFailed: one or more copies failed; the others are finished and kept.
    """
    jobs = []
    for number in range(count):
        own = training.model_copy(update={"seed": training.seed + number})
        name, key = f"{collection.name}-seed-{own.seed}", expert_key(collection, encoder, own)
        jobs.append(_expert_job(name, key, collection, encoder, own, store))
    return _train_missing(jobs, store)


def train_samples(
    collection: Collection,
    encoder: EncoderSettings,
    training: TrainingSettings,
    sizes: Sequence[int],
    store: ArtifactStore,
) -> dict[int, Expert]:
    """Train one expert on nested samples of its train queries, and on all of them: what are queries worth?

    A sample is of the split: ``held_out_fraction``, if set, is taken out of each.

    Returns:
        Experts by number of queries; the last is the recipe's own.

    Raises:
        TrainingFailed: one or more failed; the others are finished and kept.
    """
    own_key = expert_key(collection, encoder, training)
    jobs = {}
    for size in sizes:
        name = f"{collection.name}-{size}-queries"
        key = f"experts/{name}-{content_hash(own_key, size)}"
        jobs[size] = _expert_job(name, key, collection, encoder, training, store, size)
    own = _expert_job(collection.name, own_key, collection, encoder, training, store)
    jobs[len(collection.qrels("train"))] = own
    made = _train_missing(list(jobs.values()), store)
    return {size: made[job.name] for size, job in jobs.items()}


def general_prefix_key(
    collections: list[Collection],
    encoder: EncoderSettings,
    training: TrainingSettings,
    general: GeneralPrefixSettings,
    prefix: PrefixSettings,
) -> str:
    """Where a general prefix lies: a hash of all that it is made from."""
    own = _general_training(training, general, prefix)
    parts = [expert_key(collection, encoder, own) for collection in collections]
    return f"experts/general-prefix-{content_hash(parts, general.dev_documents)}"


def _general_training(
    training: TrainingSettings, general: GeneralPrefixSettings, prefix: PrefixSettings
) -> TrainingSettings:
    own = general.model_dump(
        include={"learning_rate", "batch_size", "hard_negatives", "max_steps", "evaluate_every"}
    )
    fixed = {"objective": "sampled", "random_negatives": 0, "prefix": prefix}
    return training.model_copy(update=own | fixed).plain()


def train_general_prefix(
    collections: list[Collection],
    encoder: EncoderSettings,
    training: TrainingSettings,
    general: GeneralPrefixSettings,
    prefix: PrefixSettings,
    store: ArtifactStore,
) -> Expert:
    """Train the prefix that queries and documents share: the first phase of Dynamic Dense Retrieval.

    Negatives are mined with the base encoder, so its corpora must have been built.

    Raises:
        TrainingFailed: it failed.
    """
    key = general_prefix_key(collections, encoder, training, general, prefix)
    parts = tuple(_part(collection, encoder, store) for collection in collections)
    own = _general_training(training, general, prefix)
    job = TrainingJob("general-prefix", key, encoder, own, parts, general=general)
    return _train_missing([job], store)[job.name]


def train_ddr(
    allowed: Mapping[str, Mapping[str, tuple[str, ...]]],
    modules: tuple[str, ...],
    collections: list[Collection],
    encoder: EncoderSettings,
    training: TrainingSettings,
    ddr: DdrSettings,
    store: ArtifactStore,
) -> dict[str, Expert]:
    """Train domain prefixes and routers together: the second phase of Dynamic Dense Retrieval.

    Args:
        allowed: by model's name, the modules that each collection's train queries may use.
        modules: all modules.
        collections: the domains; their corpora must have been built with the general prefix.
        encoder: the base with the general prefix.
        training: the experts' settings.
        ddr: what is different.
        store: where artifacts lie.

    Raises:
        TrainingFailed: one or more models failed; the others are finished and kept.
    """
    own = ddr_training(training, ddr)
    jobs = []
    for name, labels in allowed.items():
        parts = tuple(
            replace(_part(collection, encoder, store), modules=labels[collection.name])
            for collection in collections
        )
        key = ddr_key(name, labels, modules, collections, encoder, training, ddr)
        jobs.append(TrainingJob(name, key, encoder, own, parts, modules=modules))
    return _train_missing(jobs, store)


def ddr_training(training: TrainingSettings, ddr: DdrSettings) -> TrainingSettings:
    """How domain prefixes are trained: as the experts are, perhaps for longer."""
    own = {
        "prefix": ddr.prefix,
        "learning_rate": ddr.learning_rate,
        "max_steps": ddr.max_steps or training.max_steps,
        "evaluate_every": ddr.evaluate_every or training.evaluate_every,
    }
    return training.model_copy(update=own).plain()


def ddr_key(
    name: str,
    labels: Mapping[str, tuple[str, ...]],
    modules: tuple[str, ...],
    collections: list[Collection],
    encoder: EncoderSettings,
    training: TrainingSettings,
    ddr: DdrSettings,
) -> str:
    """Where domain prefixes with their routers lie: a hash of all that they are made from."""
    own = ddr_training(training, ddr)
    parts = [(expert_key(each, encoder, own), labels[each.name]) for each in collections]
    return f"experts/{name}-{content_hash(parts, modules)}"


def name_views(expert: Expert, views: Mapping[str, View], store: ArtifactStore) -> Expert:
    """The same prefixes with names for the ways to use them, as an artifact of its own."""
    digest = content_hash(expert.key, {name: asdict(view) for name, view in views.items()})
    key = f"experts/{expert.domain}-{digest}"
    if not store.verify(key):
        folder = expert.folder(store)
        shape = PrefixShape.read(expert.domain, folder)
        assert shape is not None
        with tempfile.TemporaryDirectory() as scratch:
            replace(shape, views=views).write(Path(scratch))
            store.put_folder(key, Path(scratch))
        store.put(key, ADAPTER_WEIGHTS, partial(shutil.copyfile, folder / ADAPTER_WEIGHTS))
        card = {name: value for name, value in expert.card.items() if name != "files"}
        store.commit(key, {**card, "prefixes_of": expert.key})
    return open_expert(store, key)


def average_key(name: str, experts: list[str]) -> str:
    """Where the mean of experts lies: a hash of their keys."""
    return f"experts/{name}-{content_hash(experts)}"


def average_experts(name: str, experts: Mapping[str, Expert], store: ArtifactStore) -> Expert:
    """An adapter whose weights are the plain mean of the experts' weights."""
    from safetensors.numpy import load_file, save_file

    members = list(experts.values())
    key = average_key(name, [expert.key for expert in members])
    if not store.verify(key):
        weights = [load_file(expert.folder(store) / ADAPTER_WEIGHTS) for expert in members]
        mean = {field: np.mean([one[field] for one in weights], axis=0) for field in weights[0]}
        store.put(key, ADAPTER_WEIGHTS, lambda path: save_file(mean, path))
        source = members[0].folder(store) / ADAPTER_CONFIG
        store.put(key, ADAPTER_CONFIG, partial(shutil.copyfile, source))
        store.commit(key, {"kind": "expert", "domain": name, "averaged": [e.key for e in members]})
    return open_expert(store, key)


def _part(
    collection: Collection, encoder: EncoderSettings, store: ArtifactStore, train_limit: int | None = None
) -> TrainingPart:
    return TrainingPart(
        corpus_key=corpus_key(collection, encoder),
        train_key=store_judgements(store, collection, "train", train_limit),
        dev_key=store_judgements(store, collection, "dev"),
    )


def _expert_job(
    name: str,
    key: str,
    collection: Collection,
    encoder: EncoderSettings,
    training: TrainingSettings,
    store: ArtifactStore,
    train_limit: int | None = None,
) -> TrainingJob:
    train = len(collection.qrels("train"))
    labelled = min(train, train_limit or train) + len(collection.qrels("dev"))
    part = _part(collection, encoder, store, train_limit)
    return TrainingJob(name, key, encoder, training, (part,), selection=training.selects_by(labelled))


def _with_choices(jobs: list[TrainingJob], store: ArtifactStore) -> list[TrainingJob]:
    """Jobs that are to be cross-validated with what their folds say; the others as they are."""
    folds = {job.key: fold_jobs(job, store) for job in jobs if job.selection == "cross_validation"}
    made = _train_missing([fold for each in folds.values() for fold in each], store)
    ready = []
    for job in jobs:
        if job.key in folds:
            held_out = join_folds([read_held_out(made[fold.name].folder(store)) for fold in folds[job.key]])
            job = replace(job, selection="chosen", chosen=select(held_out, job.training.confidence))
        ready.append(job)
    return ready


def _train_missing(jobs: list[TrainingJob], store: ArtifactStore) -> dict[str, Expert]:
    """Train what is not there yet, and open all of it, by the jobs' names."""
    for job in jobs:
        if store.exists(job.key):
            log.info("expert %s: trained already", job.name)
    build_missing(
        store,
        [job.key for job in jobs],
        lambda missing: _run_jobs(_with_choices([job for job in jobs if job.key in missing], store), store),
    )
    return {job.name: open_expert(store, job.key) for job in jobs}


def _run_jobs(jobs: list[TrainingJob], store: ArtifactStore) -> None:
    """Train adapters, as many at once as the cluster holds.

    Raises:
        TrainingFailed: one or more failed; the others are finished and kept.
    """
    if not jobs:
        return
    import ray

    from routerretriever.training.loop import Board

    training = jobs[0].training  # they differ in what is learned, not in what they run on
    room = room_for(training.cpus_per_worker, training.gpus_per_worker, gang=training.workers)
    at_once = min(training.at_once or room, room)
    board = Board.options(**on_drivers_node()).remote()  # type: ignore[attr-defined]
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
                running[task.remote(job, store, board)] = job
            finished, _ = ray.wait(list(running), timeout=0.5)
            for name, (step, total, best, done) in _ask(board.read).items():
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
                    failures[job.name] = _reason(error)
                    log.error("expert %s: failed: %s", job.name, failures[job.name])
                else:
                    log.info(
                        "expert %s: dev nDCG@10 %.4f (base %.4f), best of %d steps at %d",
                        job.name, card["dev_ndcg_at_10"], card["base_dev_ndcg_at_10"], card["steps"],
                        card["best_step"],
                    )  # fmt: skip
    carry(_ask(board.counted))
    if failures:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in failures.items())
        raise TrainingFailed(
            f"{len(failures)} of {len(jobs)} experts failed; the finished ones are kept, and running the "
            f"same command again goes on from the last checkpoints\n{listed}"
        )


def _ask(board_method: Any) -> dict[str, Any]:
    import ray
    from ray.exceptions import RayActorError

    try:
        notes: dict[str, Any] = ray.get(board_method.remote())
    except RayActorError:
        return {}  # only bars, log lines and counts hang on it
    return notes


def _train_one(job: TrainingJob, store: ArtifactStore, board: Any) -> dict[str, Any]:
    """Run one Ray Train trainer to its end and publish the expert; returns the card."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    run_key = checkpoints_key(job.key)
    filesystem, folder = store.arrow("training")
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
        "encoder_fingerprint": encoder_fingerprint(job.encoder),
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


def verdict_text(expert: Expert) -> str | None:
    """What held-out queries say of an expert, for people; nothing if no test decided on it."""
    verdict = expert.card.get("verdict")
    if verdict is None:
        return None
    told = f"expert {expert.domain}: {verdict['sentence']}"
    if verdict["deployed"]:
        return f"{told}\ndeployed at scale {expert.card['scale']:g}, after {expert.card['best_step']} steps"
    return f"{told}\nnot deployed: its queries are answered as by the base. {advice(verdict['queries'])}"


def _selection_card(selected: dict[str, Any] | None) -> dict[str, Any]:
    if selected is None:
        return {"scale": 1.0, "deployed": True, "verdict": None}
    verdict = Verdict(**selected["verdict"])
    return {"scale": selected["choice"]["scale"], "deployed": verdict.deployed, "verdict": verdict.as_card()}


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
