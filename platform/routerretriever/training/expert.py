"""An expert: a trained adapter as an artifact, where it lies, and the step that trains it.

Layout of an expert: ``adapter_model.safetensors`` and ``adapter_config.json`` as its kind writes them, and
the card as ``artifact.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from routerretriever.artifacts.step import Step
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.corpus.artifact import corpus_key
from routerretriever.corpus.build import EncodeCorpus
from routerretriever.datasets.collection import Collection
from routerretriever.datasets.judgements import judgements_step
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.errors import ArtifactMissing
from routerretriever.hashing import content_hash
from routerretriever.settings import amount
from routerretriever.training.job import TrainingJob, TrainingPart, checkpoints_key
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
        return version_of(self.key)

    def folder(self, store: ArtifactStore) -> Path:
        """A local folder with the adapter's files."""
        return store.fetch(self.key)


def version_of(key: str) -> str:
    """The hash at the end of an expert's key."""
    return key.rsplit("-", 1)[-1]


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


@dataclass(frozen=True)
class Source:
    """One domain that an adapter is trained on."""

    corpus: EncodeCorpus
    """Its documents, encoded by the base that is trained on."""
    train_limit: int | None = None
    """At most so many of its train queries."""
    modules: tuple[str, ...] = ()
    """Of a prefix with several modules, those that its queries may use."""

    @property
    def collection(self) -> Collection:
        """The domain's collection."""
        return self.corpus.collection


def train_step(
    name: str,
    key: str,
    sources: Sequence[Source],
    encoder: EncoderSettings,
    training: TrainingSettings,
    *,
    queries_per_domain: int | None = None,
    modules: tuple[str, ...] = (),
    both_towers: int | None = None,
    describe: str = "",
) -> TrainAdapter:
    """The step that trains one adapter.

    Args:
        name: what it is called.
        key: where it is to lie.
        sources: the domains that it is trained on.
        encoder: the base.
        training: how.
        queries_per_domain: at most so many train queries of each domain; None uses all.
        modules: names of the modules of a prefix that has several, with a router in each layer.
        both_towers: documents are encoded with the adapter too, anew in every step, and dev queries search
            so many of them; None: documents are frozen.
        describe: what the plan says of it, if not the number of queries.
    """
    inputs: list[Step] = []
    parts = []
    for source in sources:
        train = judgements_step(source.collection, "train", source.train_limit)
        dev = judgements_step(source.collection, "dev")
        inputs += [source.corpus, train, dev]
        parts.append(TrainingPart(source.corpus.key, train.key, dev.key, source.modules))
    job = TrainingJob(name, key, encoder, training, tuple(parts), queries_per_domain, modules, both_towers)
    return TrainAdapter(
        name=name, key=key, inputs=tuple(inputs), job=job, sources=tuple(sources), describe=describe
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainAdapter(Step):
    """One trained adapter. What an interrupted run has reached is its last checkpoint."""

    stage: ClassVar[str] = "train"

    job: TrainingJob
    sources: tuple[Source, ...]
    describe: str

    def is_started(self, store: ArtifactStore) -> bool:
        """Whether there is a checkpoint."""
        return store.holds(checkpoints_key(self.key))

    def work(self) -> str:
        """Train queries, or what the method says of it."""
        return self.describe or f"{len(self.sources[0].collection.qrels('train'))} queries"

    def asks_for(self) -> str:
        """Workers."""
        training = self.job.training
        workers = f"{training.workers} workers each" if training.workers > 1 else "1 worker each"
        return f"{workers}, a worker {amount(training.cpus_per_worker, training.gpus_per_worker)}"

    @classmethod
    def build_all(cls, steps: Sequence[TrainAdapter], store: ArtifactStore) -> None:
        """Train all of them, as many at once as the cluster holds."""
        from routerretriever.training.trainers import run_jobs

        run_jobs([step.job for step in steps], store)
