"""Chunks of queries, each a Parquet file: scored with one expert, or encoded by mixtures of them."""

from __future__ import annotations

import dataclasses
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.corpus.artifact import open_corpus
from routerretriever.datasets.judgements import Judgements, load_judgements
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.index.dense import SearchIndex, open_index
from routerretriever.index.settings import IndexSettings
from routerretriever.measures import Measured, measure
from routerretriever.runtime.metrics import QUERIES_SCORED, increment
from routerretriever.runtime.shards import ShardWorker
from routerretriever.types import BASE, Vectors

MEASURED_COLUMNS = tuple(field.name for field in dataclasses.fields(Measured))
"""Columns of the score table, named as the fields of ``Measured``."""


class ChunkScorer(ShardWorker):
    """Encodes a chunk of queries as one expert, searches the full corpus, writes a Parquet part."""

    def __init__(
        self, encoder: EncoderSettings, index: IndexSettings, depth: int, store: ArtifactStore
    ) -> None:
        from routerretriever.adapters.tower import load_tower

        self._encoder = load_tower(encoder)
        self._index = index
        self._depth = depth
        self._store = store
        # Shards come sorted by collection, so two at hand are enough, however many there are.
        self._open = lru_cache(maxsize=2)(self._open_collection)

    def work(self, row: dict[str, Any]) -> None:
        """Score queries ``start`` to ``stop`` of a split."""
        judgements, index = self._open(row["judgements"], row["corpus"])
        ids = list(judgements.queries)[int(row["start"]) : int(row["stop"])]
        chunk = judgements.subset(ids)
        expert = row["expert"]
        if expert != BASE and expert not in self._encoder.adapters:
            self._encoder.load_adapter(expert, self._store.fetch(row["expert_key"]))
        vectors = self._encoder.encode_queries(list(chunk.queries.values()), adapter=expert)
        measured = measure(
            chunk.qrels, index.run(ids, vectors, self._depth, chunk.own_kept, chunk.passages), ids
        )
        table = arrow.table(
            {
                "query_id": ids,
                **{column: getattr(measured, column) for column in MEASURED_COLUMNS},
                "embedding": _embedding_column(vectors),
            }
        )
        self._store.put(row["key"], row["part"], partial(parquet.write_table, table))
        increment(QUERIES_SCORED, len(ids))

    def _open_collection(self, judgements_key: str, corpus_key: str) -> tuple[Judgements, SearchIndex]:
        corpus = open_corpus(self._store, corpus_key)
        return load_judgements(self._store, judgements_key), open_index(corpus, self._index, self._store)


class MixtureEncoder(ShardWorker):
    """Encodes a chunk of queries, each by its own mixture of experts' adapters, and writes a Parquet part."""

    def __init__(self, encoder: EncoderSettings, experts: dict[str, str], store: ArtifactStore) -> None:
        """Load experts, keys by name."""
        from routerretriever.adapters.kinds import batch_adapters
        from routerretriever.adapters.tower import load_tower

        self._encoder = load_tower(encoder)
        self._experts = batch_adapters(
            self._encoder, {name: store.fetch(key) for name, key in experts.items()}
        )
        self._store = store

    def work(self, row: dict[str, Any]) -> None:
        """Encode the queries from ``start``, one for each row of ``weights``."""
        experts = row["columns"].split(",")
        weights = np.frombuffer(row["weights"], dtype=np.float32).reshape(-1, len(experts))
        queries = load_judgements(self._store, row["judgements"]).queries
        ids = list(queries)[int(row["start"]) : int(row["start"]) + len(weights)]
        rows = self._encoder.tokenize_queries([queries[i] for i in ids])
        vectors = self._experts.embed(rows, weights, experts)
        table = arrow.table({"query_id": ids, "embedding": _embedding_column(vectors)})
        self._store.put(row["key"], row["part"], partial(parquet.write_table, table))


def _embedding_column(vectors: Vectors) -> arrow.FixedSizeListArray:
    flat = arrow.array(np.ascontiguousarray(vectors).reshape(-1))
    return arrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def vectors_of(folder: Path, start: int, stop: int) -> Vectors:
    """Vectors of an artifact's queries ``start`` to ``stop``, however many of them each part holds."""
    found, first = [], 0
    for path in sorted(folder.glob("part-*.parquet")):
        last = first + parquet.read_metadata(path).num_rows
        if first < stop and last > start:
            part = embedding_of(parquet.read_table(path, columns=["embedding"]))
            found.append(part[max(0, start - first) : stop - first])
        first = last
    return np.concatenate(found)


def embedding_of(table: arrow.Table) -> Vectors:
    """The vectors [Q, d] of a table that was read back."""
    flat: Vectors = table["embedding"].combine_chunks().flatten().to_numpy()
    return flat.reshape(len(table), -1)
