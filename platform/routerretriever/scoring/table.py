"""Building and reading the score table.

One partition per (dataset split, expert version), as Parquet with the query's vector beside its utility, so
that routers, soft mixing and the evaluation never encode a query again. A new expert adds its own
partitions; those of the others stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from routerretriever.adapters.files import tower_fingerprint
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.corpus.artifact import corpus_key
from routerretriever.datasets.collection import Collection
from routerretriever.datasets.judgements import judgements_key, store_judgements
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.hashing import content_hash
from routerretriever.index.settings import IndexSettings
from routerretriever.measures import Measured
from routerretriever.scoring.settings import ScoringSettings
from routerretriever.scoring.worker import MEASURED_COLUMNS, ChunkScorer, embedding_of, make_parts
from routerretriever.training.experts import Expert
from routerretriever.types import BASE

Vectors = NDArray[np.float32]


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

    def subset(self, rows: Sequence[int]) -> SplitScores:
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


def build_scores(
    collections: list[Collection],
    split: str,
    experts: Mapping[str, Expert],
    encoder: EncoderSettings,
    index: IndexSettings,
    settings: ScoringSettings,
    store: ArtifactStore,
    only: Mapping[str, Sequence[str]] | None = None,
) -> ScoreTable:
    """Score a split of every collection with every expert and the bare base; only what is missing is done.

    The collections' corpora must have been built. ``only`` names the experts for each collection, if not all.
    """
    names = {each.name: (BASE, *(experts if only is None else only[each.name])) for each in collections}
    keys: dict[tuple[str, str], str] = {}
    manifests: dict[str, dict[str, Any]] = {}
    parts: dict[str, list[dict[str, Any]]] = {}
    for collection in collections:
        judgements = store_judgements(store, collection, split)
        corpus = corpus_key(collection, encoder)
        queries = len(collection.queries(split))
        for name in names[collection.name]:
            version = tower_fingerprint(encoder) if name == BASE else experts[name].version
            key = score_key(collection, split, f"{name}-{version}", encoder, index, settings)
            keys[collection.name, name] = key
            manifests[key] = {"kind": "scores", "dataset": collection.name, "split": split,
                              "expert": name, "version": version, "corpus": corpus,
                              "queries": queries}  # fmt: skip
            parts[key] = [
                {"key": key, "part": f"part-{part:05d}.parquet", "judgements": judgements, "corpus": corpus,
                 "expert": name, "expert_key": "" if name == BASE else experts[name].key,
                 "start": start, "stop": min(start + settings.chunk_size, queries)}
                for part, start in enumerate(range(0, queries, settings.chunk_size))
            ]  # fmt: skip

    make_parts(
        parts,
        manifests,
        ChunkScorer,
        {"encoder": encoder, "index": index, "depth": settings.depth, "store": store},
        settings,
        store,
        f"scoring {split} queries",
    )
    return {
        collection.name: _read(
            store,
            collection.name,
            split,
            {name: keys[collection.name, name] for name in names[collection.name]},
        )
        for collection in collections
    }


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
