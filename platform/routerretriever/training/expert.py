"""An expert: a trained adapter as an artifact, where it lies, and the step that trains it.

Layout of an expert: ``adapter_model.safetensors`` and ``adapter_config.json`` as its kind writes them, and
the card as ``artifact.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from routerretriever.artifacts.step import Step
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.corpus.artifact import corpus_key
from routerretriever.corpus.build import EncodeCorpus
from routerretriever.datasets.collection import Collection
from routerretriever.datasets.judgements import judgements_step
from routerretriever.datasets.splitting import split_train
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.errors import ArtifactMissing, RecipeError
from routerretriever.hashing import content_hash
from routerretriever.index.settings import LexicalSettings
from routerretriever.runtime.progress import log
from routerretriever.settings import amount
from routerretriever.training.candidates import ScoreCandidates, candidates_step
from routerretriever.training.checkpoints import checkpoints_key
from routerretriever.training.cross_validation import FOLDS, LabelledQueries, StoreFold, chosen_by_folds
from routerretriever.training.job import Selection, TrainingJob, TrainingPart
from routerretriever.training.selection import advice
from routerretriever.training.settings import TrainingSettings

_EVERY = 1_000_000_000
"""More dev queries than there are."""


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


def expert_key(
    collection: Collection,
    encoder: EncoderSettings,
    training: TrainingSettings,
    lexical: LexicalSettings | None = None,
) -> str:
    """Where a domain's expert lies: a hash of base encoder, documents, judgements and training settings.

    ``lexical`` is how a teacher reads words, if it does.
    """
    training = training.for_queries(len(collection.qrels("train")))
    words = [lexical.model_dump()] if training.needs_teacher and training.teacher_bm25 and lexical else []
    digest = content_hash(
        corpus_key(collection, encoder),
        collection.split_hash("train"),
        collection.split_hash("dev"),
        training.identity(),
        *words,
        *_queries_identity(collection, training),
    )
    return f"experts/{collection.name}-{digest}"


def _queries_identity(collection: Collection, training: TrainingSettings) -> list[object]:
    """What an expert's key holds beside its data; nothing where queries are no documents and each differs."""
    found: list[object] = []
    if training.held_out_fraction:
        ids, fraction = list(collection.queries("train")), training.held_out_fraction
        held = split_train(ids, fraction, collection.groups("train"))[1]
        found += [] if held == split_train(ids, fraction)[1] else [sorted(held)]
    crossed = _selection(collection, None, training) == "cross_validation"
    if crossed:
        found += LabelledQueries(collection, None, training.held_out_fraction).identity
    if left_out := collection.own_left_out("train", *(["dev"] if crossed else [])):
        found.append(["own left out", *sorted(left_out)])
    return found


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
    lexical: LexicalSettings | None = None
    """How its words are searched, for a teacher that does."""

    @property
    def collection(self) -> Collection:
        """The domain's collection."""
        return self.corpus.collection


def expert_step(
    source: Source, encoder: EncoderSettings, training: TrainingSettings, name: str = "", key: str = ""
) -> TrainAdapter:
    """The step that trains a domain's expert.

    Args:
        source: the domain, or a sample of its train queries.
        encoder: the base.
        training: how.
        name: by default the domain's.
        key: by default ``expert_key``'s, which knows no samples.
    """
    collection = source.collection
    train = len(collection.qrels("train"))
    return train_step(
        name or collection.name,
        key or expert_key(collection, encoder, training, source.lexical),
        [source],
        encoder,
        training.for_queries(min(train, source.train_limit or train)),
        selects=True,
    )


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
    selects: bool = False,
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
        selects: step and scale are found as ``training.selection`` says, and the expert is compared with the
            base; for one domain. Otherwise the best step on dev is taken.

    Raises:
        RecipeError: documents are to be encoded with the adapter, and another encoder reads them.
    """
    if both_towers is not None and encoder.documents is not None:
        raise RecipeError(
            f"encoder.documents: {name} adapts queries and documents alike, which needs one encoder for "
            "both; leave encoder.documents out, or this method"
        )
    selection: Selection = "best_step"
    if selects:
        selection = _selection(sources[0].collection, sources[0].train_limit, training)
    else:
        training = training.plain()
    parts = [_part(source, training) for source in sources]
    inputs = [each for _, own in parts for each in own]
    job = TrainingJob(
        name,
        key,
        encoder,
        training,
        tuple(part for part, _ in parts),
        queries_per_domain,
        modules,
        both_towers,
        selection,
    )
    folds: tuple[TrainAdapter, ...] = ()
    if selection == "cross_validation":
        source = sources[0]
        labelled = LabelledQueries(source.collection, source.train_limit, training.held_out_fraction)
        numbers = range(1, len(labelled.folds) + 1)
        folds = tuple(_fold_step(job, source, labelled, number) for number in numbers)
        inputs += folds
    return TrainAdapter(
        name=name,
        key=key,
        inputs=tuple(inputs),
        job=job,
        sources=tuple(sources),
        describe=describe,
        folds=folds,
    )


def _part(source: Source, training: TrainingSettings) -> tuple[TrainingPart, list[Step]]:
    """A domain as a job names it, and the steps that make what the job reads of it."""
    train = judgements_step(source.collection, "train", source.train_limit, training.held_out_fraction)
    dev = judgements_step(source.collection, "dev")
    scored = _scored_by_teacher(source, training, ("train",))
    lexical = source.lexical if training.teacher_bm25 else None
    keys = tuple(one.key for one in scored)
    part = TrainingPart(source.corpus.key, train.key, dev.key, source.modules, lexical, keys)
    return part, [source.corpus, train, dev, *scored]


def _selection(collection: Collection, train_limit: int | None, training: TrainingSettings) -> Selection:
    train = len(collection.qrels("train"))
    return training.selects_by(min(train, train_limit or train) + len(collection.qrels("dev")))


def _scored_by_teacher(
    source: Source, training: TrainingSettings, splits: Sequence[str]
) -> list[ScoreCandidates]:
    """The steps that have a reranker score candidates of whole splits: samples and folds share them."""
    if training.teacher is None:
        return []
    return [candidates_step(source.corpus, split, training.teacher) for split in splits]


def _fold_step(job: TrainingJob, source: Source, labelled: LabelledQueries, number: int) -> TrainAdapter:
    """The step that trains one fold of a cross-validation and measures every scale on what it holds out."""
    folds = labelled.folds
    digest = content_hash(job.key, FOLDS, *labelled.identity)
    rest, held = (
        StoreFold(
            name=f"{job.name} {kind} {number}",
            key=f"judgements/{job.name}-{digest}-{kind}-{number}",
            labelled=labelled,
            number=number,
            held_out=kind == "held",
        )
        for kind in ("rest", "held")
    )
    scored = _scored_by_teacher(source, job.training, ("train", "dev"))
    keys = tuple(one.key for one in scored)
    part = replace(job.parts[0], train_key=rest.key, dev_key=held.key, candidate_keys=keys)
    name, key = f"{job.name} fold {number} of {len(folds)}", f"folds/{job.name}-{number}-{digest}"
    # All held-out queries count.
    training = job.training.model_copy(update={"dev_queries": _EVERY})
    own = replace(job, name=name, key=key, parts=(part,), training=training, selection="fold")
    return TrainAdapter(
        name=name, key=key, inputs=(source.corpus, rest, held, *scored), job=own, sources=(source,),
        describe=f"{len(folds[number - 1].trained_on)} queries", folds=(),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainAdapter(Step):
    """One trained adapter. What an interrupted run has reached is its last checkpoint."""

    stage: ClassVar[str] = "train"
    builds_inputs: ClassVar[bool] = True

    job: TrainingJob
    sources: tuple[Source, ...]
    describe: str
    folds: tuple[TrainAdapter, ...]
    """Of a cross-validation; inputs too."""

    def is_started(self, store: ArtifactStore) -> bool:
        """Whether there is a checkpoint."""
        return store.holds(checkpoints_key(self.key))

    def work(self) -> str:
        """Train queries, or what the method says of it."""
        copies = f", {self.job.training.soup} copies" if self.job.training.soup > 1 else ""
        return self.describe or f"{len(self.sources[0].collection.qrels('train'))} queries{copies}"

    def asks_for(self) -> str:
        """Workers."""
        training = self.job.training
        workers = f"{training.workers} workers each" if training.workers > 1 else "1 worker each"
        return f"{workers}, a worker {amount(training.cpus_per_worker, training.gpus_per_worker)}"

    @classmethod
    def build_all(cls, steps: Sequence[TrainAdapter], store: ArtifactStore) -> None:
        """Train all of them, as many at once as the cluster holds; folds before what they choose."""
        from routerretriever.training.trainers import run_jobs

        given = {step.key for step in steps}
        first: list[TrainingJob] = []
        beside: list[TrainingJob] = []
        later: list[TrainAdapter] = []
        for step in steps:
            job = step.ready_job(store)
            if not job.folds:
                first.append(job)
            elif not all(key in given or store.exists(key) for key in job.folds):
                continue  # another run trains them, and must end first
            elif job.training.workers == 1 and job.training.max_epochs is None:
                beside.append(job)
            else:
                later.append(step)
        if first or beside:
            run_jobs([*first, *beside], store)
        if later:
            run_jobs([step.ready_job(store) for step in later], store)
        for step in steps:
            if store.exists(step.key) and (told := verdict_text(open_expert(store, step.key))):
                log.info("%s", told)

    def ready_job(self, store: ArtifactStore) -> TrainingJob:
        """The job, with what its folds have found, or which folds are to find it."""
        if not self.folds:
            return self.job
        keys = tuple(fold.key for fold in self.folds)
        chosen = chosen_by_folds(store, keys, self.job.training.confidence)
        return replace(self.job, selection="chosen", chosen=chosen, folds=() if chosen else keys)


def verdict_text(expert: Expert) -> str | None:
    """What held-out queries say of an expert, for people; nothing if no test decided on it."""
    verdict = expert.card.get("verdict")
    if verdict is None:
        return None
    told = f"expert {expert.domain}: {verdict['sentence']}"
    if verdict["deployed"]:
        return f"{told}\ndeployed at scale {expert.card['scale']:g}, after {expert.card['best_step']} steps"
    return f"{told}\nnot deployed: its queries are answered as by the base. {advice(verdict['queries'])}"
