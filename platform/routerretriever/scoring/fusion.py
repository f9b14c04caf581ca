"""Words beside vectors, measured: the queries of a split at every weight of BM25.

One artifact for a split and the vectors that its queries have, by the bare base or by a router. Every
document is scored by both sides, so it tells what an exact hybrid search finds.

Shapes: Q queries, T mixed experts, W weights, N documents, d dimensions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet

from routerretriever.artifacts.step import Step
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.corpus.artifact import Corpus, open_corpus
from routerretriever.corpus.build import EncodeCorpus
from routerretriever.datasets.judgements import Judgements, judgements_step, load_judgements
from routerretriever.hashing import content_hash
from routerretriever.index.dense import as_run, search_depth
from routerretriever.index.fusion_weights import GRID
from routerretriever.index.hybrid import holds_cosines, rank_all
from routerretriever.index.lexical import LexicalIndex, open_postings
from routerretriever.index.settings import FusionSettings, LexicalSettings
from routerretriever.index.words import words_version
from routerretriever.measures import Measured, measure
from routerretriever.runtime.shards import ShardWorker, make_parts
from routerretriever.scoring.settings import ScoringSettings
from routerretriever.scoring.worker import MEASURED_COLUMNS, embedding_of, vectors_of
from routerretriever.types import Values, Vectors

_BLOCK = 64
"""Queries that are compared with all documents at once."""
_VERSION = 3  # raise it when the same settings give other figures


@dataclass(frozen=True)
class QueryVectors:
    """Where the vectors of a split's queries lie: artifacts whose parts have an ``embedding`` column."""

    steps: tuple[Step, ...]
    """What makes them, one for each mixed expert."""
    weights_QT: Vectors | None = None
    """How they are mixed; None for a single one."""

    def read(self, store: ArtifactStore) -> Vectors:
        """The mixed vectors [Q, d], once they have been made."""
        folders = [store.fetch(step.key) for step in self.steps]
        vectors = [embedding_of(parquet.read_table(sorted(own.glob("part-*.parquet")))) for own in folders]
        return vectors[0] if self.weights_QT is None else _mixed(self.weights_QT, vectors)


def fuse_step(
    corpus: EncodeCorpus,
    split: str,
    vectors: QueryVectors,
    lexical: LexicalSettings,
    fusion: FusionSettings,
    floor: Callable[[], float],
    settings: ScoringSettings,
    *,
    others_words: bool = False,
) -> FuseSplit:
    """The step that measures a split at every weight of the grid, and at the prior weight.

    Args:
        corpus: the collection, encoded.
        split: whose queries.
        vectors: of these queries.
        lexical: how words are searched.
        fusion: as the recipe says it; its prior is the weight where nothing is known.
        floor: gives the least cosine, which the encoder decides unless the recipe does; asked only if
            there is something to measure.
        settings: how deep, and how the work is shared out.
        others_words: search the words of another query, see ``FuseSplit``.
    """
    judgements, grid = judgements_step(corpus.collection, split), tuple(sorted({*GRID, fusion.prior}))
    mixed = b"" if vectors.weights_QT is None else vectors.weights_QT.astype(np.float32).tobytes()
    digest = content_hash(
        judgements.key,
        corpus.key,
        [step.key for step in vectors.steps],
        hashlib.sha256(mixed).hexdigest(),
        lexical.model_dump(),
        words_version(lexical.language),
        grid,
        settings.depth,
        settings.chunk_size,
        MEASURED_COLUMNS,
        _VERSION,
        *(["others' words"] if others_words else []),
        *([] if fusion.cosine_floor is None else [["cosine floor", fusion.cosine_floor]]),
    )
    return FuseSplit(
        name=corpus.collection.name,
        key=f"fused/dataset={corpus.collection.name}/split={split}-{digest}",
        inputs=(corpus, judgements, *vectors.steps),
        corpus=corpus,
        split=split,
        vectors=vectors,
        lexical=lexical,
        grid=grid,
        floor=floor,
        settings=settings,
        others_words=others_words,
    )


@dataclass(frozen=True)
class FusedScores:
    """Measures of a split at every weight of BM25."""

    query_ids: list[str]
    grid: tuple[float, ...]
    measured: Measured
    """Arrays [Q, W]."""

    def at(self, weight: float) -> Measured:
        """Measures [Q] with one weight for all queries."""
        return self.measured[:, self.grid.index(weight)]

    def at_each(self, weights_Q: Values) -> Measured:
        """Measures [Q] with a weight of the grid for each query."""
        return self.measured[np.arange(len(self.query_ids)), np.searchsorted(self.grid, weights_Q)]

    def best(self) -> Measured:
        """Measures [Q] with the weight that gives each query the greatest nDCG@10, the first of several."""
        return self.measured[np.arange(len(self.query_ids)), self.measured.ndcg_at_10.argmax(axis=1)]

    @property
    def curves(self) -> Values:
        """nDCG@10 at the weights that ``FusionWeights`` compares [Q, W]."""
        return self.measured.ndcg_at_10[:, [self.grid.index(weight) for weight in GRID]]


@dataclass(frozen=True, kw_only=True, eq=False)
class FuseSplit(Step):
    """Measures of a split's queries at every weight of BM25."""

    stage: ClassVar[str] = "fuse"

    corpus: EncodeCorpus
    split: str
    vectors: QueryVectors
    lexical: LexicalSettings
    grid: tuple[float, ...]
    floor: Callable[[], float]
    settings: ScoringSettings
    others_words: bool = False
    """Words are those of the query half a split further on: they tell nothing of the query, so that whatever
    the best weight of each query gains is luck."""

    def work(self) -> str:
        """Queries and weights."""
        queries = len(self.corpus.collection.qrels(self.split))
        return f"{queries} {self.split} queries at {len(self.grid)} weights of BM25"

    def asks_for(self) -> str:
        """Workers."""
        return self.settings.describe()

    @classmethod
    def build_all(cls, steps: Sequence[FuseSplit], store: ArtifactStore) -> None:
        """Measure all of them in one Ray Data run; they are of one recipe."""
        first = steps[0]
        make_parts(
            {step.key: step.rows() for step in steps},
            {s.key: {"kind": "fused", "split": s.split, "grid": list(s.grid)} for s in steps},
            ChunkFuser,
            {"grid": first.grid, "floor": first.floor(), "depth": first.settings.depth, "store": store},
            first.settings,
            store,
            "words beside vectors",
        )

    def rows(self) -> list[dict[str, Any]]:
        """The work in chunks of queries, one flat row each."""
        queries, size = len(self.corpus.collection.queries(self.split)), self.settings.chunk_size
        weights, ahead = self.vectors.weights_QT, queries // 2 if self.others_words else 0
        return [
            {"key": self.key, "part": f"part-{part:05d}.parquet", "judgements": self.inputs[1].key,
             "corpus": self.corpus.key, "lexical": self.lexical.model_dump_json(),
             "start": start, "stop": min(start + size, queries), "words_ahead": ahead,
             "sources": ",".join(step.key for step in self.vectors.steps),
             "weights": b"" if weights is None else weights[start : start + size].astype("<f4").tobytes()}
            for part, start in enumerate(range(0, queries, size))
        ]  # fmt: skip

    def read(self, store: ArtifactStore) -> FusedScores:
        """The measures, once they have been made."""
        table = parquet.read_table(sorted(store.fetch(self.key).glob("part-*.parquet")))
        ids = table["query_id"].to_pylist()
        columns = {
            name: table[name].combine_chunks().flatten().to_numpy().reshape(len(ids), len(self.grid))
            for name in MEASURED_COLUMNS
        }
        return FusedScores(ids, self.grid, Measured(**columns))


class ChunkFuser(ShardWorker):
    """Fuses BM25 with the vectors of a chunk of queries at every weight, and writes a Parquet part."""

    def __init__(self, grid: Sequence[float], floor: float, depth: int, store: ArtifactStore) -> None:
        self._grid, self._floor, self._depth, self._store = tuple(grid), floor, depth, store
        self._open = lru_cache(maxsize=2)(self._open_collection)

    def work(self, row: dict[str, Any]) -> None:
        """Measure queries ``start`` to ``stop`` of a split."""
        judgements, corpus, words = self._open(row["judgements"], row["corpus"], row["lexical"])
        chunk, ahead = slice(int(row["start"]), int(row["stop"])), int(row["words_ahead"])
        ids, texts = list(judgements.queries)[chunk], list(judgements.queries.values())
        texts = [*texts[ahead:], *texts[:ahead]][chunk]
        vectors, blocks = self._vectors(row), []
        for first in range(0, len(ids), _BLOCK):
            block = slice(first, first + _BLOCK)
            queries = judgements.subset(ids[block])
            blocks.append(self._measure(queries, texts[block], vectors[block], corpus, words))
        table: dict[str, Any] = {"query_id": ids}
        for name in MEASURED_COLUMNS:
            values = arrow.array(np.concatenate([getattr(block, name) for block in blocks]).reshape(-1))
            table[name] = arrow.FixedSizeListArray.from_arrays(values, len(self._grid))
        self._store.put(row["key"], row["part"], partial(parquet.write_table, arrow.table(table)))

    def _measure(
        self, queries: Judgements, texts: list[str], vectors: Vectors, corpus: Corpus, words: LexicalIndex
    ) -> Measured:
        """Arrays [Q, W] of a block of queries, with the texts whose words are searched."""
        ids = list(queries.queries)
        shards = [corpus.embeddings(shard) for shard in range(len(corpus.shards))]
        cosines_QN = np.concatenate([vectors @ shard.T for shard in shards], axis=1)
        wanted, bounded = search_depth(self._depth, queries.passages), holds_cosines(corpus)
        by_weight: list[list[list[tuple[str, float]]]] = [[] for _ in self._grid]
        for text, cosines in zip(texts, cosines_QN, strict=True):
            bm25, least = words.all_scores(text), self._floor if bounded else float(cosines.min())
            for weight, found in zip(self._grid, by_weight, strict=True):
                rows, scores = rank_all(cosines, bm25, weight, wanted, least)
                found.append(
                    [(corpus.ids[row], score) for row, score in zip(rows, scores.tolist(), strict=True)]
                )
        measured = [
            measure(queries.qrels, as_run(ids, hits, self._depth, queries.own_kept, queries.passages), ids)
            for hits in by_weight
        ]
        return Measured(
            **{name: np.stack([getattr(one, name) for one in measured], axis=1) for name in MEASURED_COLUMNS}
        )

    def _vectors(self, row: dict[str, Any]) -> Vectors:
        """Query vectors [Q, d] of a chunk."""
        sources, chunk = row["sources"].split(","), (int(row["start"]), int(row["stop"]))
        vectors = [vectors_of(self._store.fetch(key), *chunk) for key in sources]
        if not row["weights"]:
            return vectors[0]
        weights_QT = np.frombuffer(row["weights"], dtype="<f4").reshape(-1, len(sources))
        return _mixed(weights_QT, vectors)

    def _open_collection(
        self, judgements_key: str, corpus_key: str, lexical: str
    ) -> tuple[Judgements, Corpus, LexicalIndex]:
        corpus, settings = open_corpus(self._store, corpus_key), LexicalSettings.model_validate_json(lexical)
        words = LexicalIndex(open_postings(corpus, settings, self._store), settings)
        return load_judgements(self._store, judgements_key), corpus, words


def _mixed(weights_QT: Vectors, vectors: Sequence[Vectors]) -> Vectors:
    mixed: Vectors = np.einsum("qt,tqd->qd", weights_QT, np.stack(vectors), dtype=np.float32)
    return mixed
