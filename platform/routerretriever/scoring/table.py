"""Building and reading the score table.

One partition per (dataset split, expert version), as Parquet with the query's vector beside its utility, so
that routers, soft mixing and the evaluation never encode a query again. A new expert adds its own
partitions; those of the others stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from routerretriever.adapters.files import tower_fingerprint
from routerretriever.artifacts.step import Step, alike
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.corpus.artifact import corpus_key
from routerretriever.corpus.build import EncodeCorpus
from routerretriever.datasets.collection import Collection
from routerretriever.datasets.judgements import judgements_key, judgements_step
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.hashing import content_hash
from routerretriever.index.settings import IndexSettings
from routerretriever.measures import Measured
from routerretriever.runtime.shards import make_parts
from routerretriever.scoring.settings import ScoringSettings
from routerretriever.scoring.worker import MEASURED_COLUMNS, ChunkScorer, embedding_of
from routerretriever.training.expert import version_of
from routerretriever.types import BASE, Vectors


@dataclass(frozen=True)
class SplitScores:
    """The scores of one split: Q queries, E experts (the base among them), d dimensions."""

    dataset: str
    split: str
    query_ids: list[str]
    experts: list[str]
    measured: Measured
    """Arrays [Q, E]."""
    vectors_QEd: Vectors

    def of(self, expert: str) -> int:
        """Column of an expert."""
        return self.experts.index(expert)

    def utilities(self, experts: Sequence[str]) -> NDArray[np.float64]:
        """nDCG@10 of some experts [Q, T], in their order."""
        return self.measured.ndcg_at_10[:, [self.of(name) for name in experts]]

    @property
    def base_vectors(self) -> Vectors:
        """The base encoder's query vectors [Q, d]."""
        return self.vectors_QEd[:, self.of(BASE)]

    def subset(self, rows: Sequence[int] | NDArray[np.int64]) -> SplitScores:
        """The same, of some queries only."""
        chosen = np.asarray(rows, dtype=np.int64)
        return SplitScores(
            self.dataset, self.split, [self.query_ids[row] for row in chosen], self.experts,
            self.measured[chosen], self.vectors_QEd[chosen],
        )  # fmt: skip


ScoreTable = dict[str, SplitScores]
"""Scores by dataset."""


def score_key(
    collection: Collection,
    split: str,
    expert: str,
    encoder: EncoderSettings,
    index: IndexSettings,
    settings: ScoringSettings,
) -> str:
    """Where the scores of a split by one expert lie; ``expert`` is its name and version."""
    digest = content_hash(
        judgements_key(collection, split),
        corpus_key(collection, encoder),
        encoder.dtype,
        index.model_dump(),
        settings.depth,
        settings.chunk_size,
        MEASURED_COLUMNS,
    )
    return f"scores/dataset={collection.name}/split={split}-{digest}/expert={expert}"


@dataclass(frozen=True)
class ScoredModel:
    """What queries are scored with: the bare base, or an expert that has been trained or is going to be."""

    name: str
    version: str
    step: Step | None = None
    """Makes the expert; None for the base."""

    @classmethod
    def base(cls, encoder: EncoderSettings) -> ScoredModel:
        """The bare base."""
        return cls(BASE, tower_fingerprint(encoder))

    @classmethod
    def expert(cls, name: str, step: Step) -> ScoredModel:
        """An expert under a name."""
        return cls(name, version_of(step.key), step)


def score_steps(
    corpus: EncodeCorpus,
    split: str,
    models: Sequence[ScoredModel],
    index: IndexSettings,
    settings: ScoringSettings,
) -> list[ScoreSplit]:
    """The steps that score a split of a collection, one for each model.

    Args:
        corpus: the collection, and the base encoder that encodes it.
        split: whose queries.
        models: the base and experts.
        index: what searches the documents.
        settings: how deep, and how the work is shared out.
    """
    collection, judgements = corpus.collection, judgements_step(corpus.collection, split)
    return [
        ScoreSplit(
            name=f"{collection.name} by {model.name}",
            key=score_key(
                collection, split, f"{model.name}-{model.version}", corpus.encoder, index, settings
            ),
            inputs=(corpus, judgements, *([model.step] if model.step else [])),
            corpus=corpus,
            split=split,
            model=model,
            index=index,
            settings=settings,
        )
        for model in models
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreSplit(Step):
    """The scores of a split's queries by one model."""

    stage: ClassVar[str] = "score"

    corpus: EncodeCorpus
    split: str
    model: ScoredModel
    index: IndexSettings
    settings: ScoringSettings

    @property
    def queries(self) -> int:
        """How many are scored."""
        return len(self.corpus.collection.qrels(self.split))

    def work(self) -> str:
        """Queries."""
        return f"{self.queries} queries"

    def asks_for(self) -> str:
        """Workers."""
        return self.settings.describe()

    @classmethod
    def build_all(cls, steps: Sequence[ScoreSplit], store: ArtifactStore) -> None:
        """Score all of them, in one Ray Data run for each base encoder and index, and more for namesakes."""
        for kind, those in alike(steps, lambda step: (step.corpus.encoder, step.index, step.settings)):
            encoder, index, settings = kind
            for own in _without_namesakes(those):
                # Of one split of one collection after the other, since a worker holds two of them.
                own.sort(key=lambda step: (step.corpus.key, step.split))
                make_parts(
                    {step.key: step.rows() for step in own},
                    {step.key: step.manifest() for step in own},
                    ChunkScorer,
                    {"encoder": encoder, "index": index, "depth": settings.depth, "store": store},
                    settings,
                    store,
                    "scoring queries",
                )

    def rows(self) -> list[dict[str, Any]]:
        """The work in chunks of queries, one flat row each."""
        queries, size = len(self.corpus.collection.queries(self.split)), self.settings.chunk_size
        judgements = judgements_step(self.corpus.collection, self.split)
        return [
            {"key": self.key, "part": f"part-{part:05d}.parquet", "judgements": judgements.key,
             "corpus": self.corpus.key, "expert": self.model.name,
             "expert_key": self.model.step.key if self.model.step else "",
             "start": start, "stop": min(start + size, queries)}
            for part, start in enumerate(range(0, queries, size))
        ]  # fmt: skip

    def manifest(self) -> dict[str, Any]:
        """What the artifact is committed with."""
        return {"kind": "scores", "dataset": self.corpus.collection.name, "split": self.split,
                "expert": self.model.name, "version": self.model.version, "corpus": self.corpus.key,
                "queries": len(self.corpus.collection.queries(self.split))}  # fmt: skip


def _without_namesakes(steps: Sequence[ScoreSplit]) -> list[list[ScoreSplit]]:
    """Groups in each of which a name stands for one expert, since a worker knows its experts by name.

    Two methods may call an expert by the same name, as DDR and ``experts`` do with a collection's.
    """
    versions: dict[str, list[str]] = {}
    groups: dict[int, list[ScoreSplit]] = {}
    for step in steps:
        known = versions.setdefault(step.model.name, [])
        if step.model.version not in known:
            known.append(step.model.version)
        groups.setdefault(known.index(step.model.version), []).append(step)
    return list(groups.values())


def read_scores(store: ArtifactStore, steps: Sequence[ScoreSplit]) -> ScoreTable:
    """Read the scores that these steps have made, by collection."""
    keys: dict[str, dict[str, str]] = {}
    for step in steps:
        keys.setdefault(step.corpus.collection.name, {})[step.model.name] = step.key
    split = steps[0].split if steps else ""
    return {dataset: _read(store, dataset, split, own) for dataset, own in keys.items()}


def _read(store: ArtifactStore, dataset: str, split: str, keys: Mapping[str, str]) -> SplitScores:
    tables = {
        name: parquet.read_table(sorted(store.fetch(key).glob("part-*.parquet")))
        for name, key in keys.items()
    }
    query_ids = tables[BASE]["query_id"].to_pylist()

    def columns(name: str) -> NDArray[np.float64]:
        values = [tables[expert][name].to_pandas().to_numpy(dtype=np.float64) for expert in keys]
        return np.stack(values, axis=1)

    return SplitScores(
        dataset=dataset,
        split=split,
        query_ids=query_ids,
        experts=list(keys),
        measured=Measured(**{name: columns(name) for name in MEASURED_COLUMNS}),
        vectors_QEd=np.stack([embedding_of(table) for table in tables.values()], axis=1).astype(np.float32),
    )
