"""A collection as it is served: its corpus and the changes made since, searched by vectors, words or both.

The corpus artifact stays as it is: a document that was replaced or deleted is hidden in it, and the new ones
are searched beside it. Several shards may share the vectors of a collection. Each counts the words of all
documents, so that BM25 means the same in every shard, and answers with its own documents only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import pyarrow as arrow

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.corpus.artifact import open_corpus
from routerretriever.datasets.collection import Document
from routerretriever.errors import StorageError
from routerretriever.index.base import Entry, Index, Mask, Queries, Rows, Scores, Vectors
from routerretriever.index.changes import is_latest, read_rows, take_changes
from routerretriever.index.dense import DenseIndex, open_index
from routerretriever.index.documents import DocumentTable
from routerretriever.index.filters import Filter
from routerretriever.index.hybrid import HybridIndex, Look, Tops
from routerretriever.index.lexical import LexicalIndex, open_postings
from routerretriever.index.settings import IndexSettings, LexicalSettings
from routerretriever.types import Mode

_ATTEMPTS = 3
_ATTEMPT_SECONDS = 0.1
_RECLAIM_ROWS = 1024


@dataclass(frozen=True)
class Found:
    """A document and how well it fits."""

    score: float
    document: Document
    cosine: float | None = None
    """Of its vector, where vectors were searched."""
    bm25: float | None = None
    """Of its words, where words were searched."""


@dataclass(frozen=True)
class Wanted:
    """One query to a collection."""

    text: str
    vector: Vectors
    """[d]"""
    depth: int
    """How many documents are wanted."""
    weight: float = 0.0
    """Of BM25, in a hybrid search; 1 finds only documents that share a word with the query."""
    filter: Filter | None = None
    """Which documents may be found."""


class LiveCollection:
    """A corpus with the changes made since, or one of several shards of both. Not thread-safe."""

    def __init__(
        self,
        store: ArtifactStore,
        corpus_key: str,
        changes_key: str,
        settings: IndexSettings,
        shard: int = 0,
        shards: int = 1,
        lexical: LexicalSettings | None = None,
    ) -> None:
        """Open the indexes and read all changes so far. Without ``lexical`` only vectors are searched.

        Raises:
            ArtifactMissing: the corpus has not been made.
        """
        self._store = store
        self._key = changes_key
        self._shard, self._shards = shard, shards
        corpus = open_corpus(store, corpus_key)
        own = corpus.part(shard, shards)
        first = sum(corpus.shards[: own.first])
        self._table = DocumentTable(corpus)
        self._mine: Mask = np.zeros(len(corpus), dtype=bool)
        self._mine[first : first + len(own)] = True
        self._dense = DenseIndex(open_index(own, settings, store), own, first, len(corpus))
        self._indexes: list[Index] = [self._dense]
        self._hybrid: HybridIndex | None = None
        if lexical is not None:
            words = LexicalIndex(open_postings(corpus, lexical, store), lexical)
            self._indexes.append(words)
            self._hybrid = HybridIndex(self._dense, words)
        self.change = 0
        self.refresh()

    def __len__(self) -> int:
        return int((self._table.present & self._mine).sum())

    def refresh(self) -> None:
        """Take in the changes that were made since the last refresh.

        Raises:
            StorageError: a change, or the checkpoint that holds it, is missing or not what was written.
        """
        missing = None
        for _ in range(_ATTEMPTS):
            if is_latest(self._store, self._key, self.change):
                return
            self.change, missing = take_changes(self._store, self._key, self.change, self._take)
            if missing is None:
                return
            time.sleep(_ATTEMPT_SECONDS)  # being written, or compacted and removed, just now
        raise StorageError(
            f"{self._store.location(self._key)}/{missing}: missing or altered since it was written; "
            "restore it from a copy"
        )

    def allowed(self, filter: Filter | None = None) -> Mask:
        """The rows of this shard that are present and pass a filter."""
        mask = self._table.present & self._mine
        return mask if filter is None else mask & self._table.matching(filter)

    def search(self, queries: Vectors, depths: Sequence[int]) -> list[list[Found]]:
        """The nearest documents of each query [B, d], best first, at most ``depths`` of each."""
        return self.find("dense", [Wanted("", *each) for each in zip(queries, depths, strict=True)])

    def look(self, wanted: Sequence[Wanted]) -> list[Look]:
        """What both indexes find first: the greatest scores of this shard, and where ``find`` begins."""
        looks: dict[int, Look] = {}
        for rows, queries, allowed in self._batches(wanted):
            looks.update(zip(rows, self._both.look(queries, allowed), strict=True))
        return [looks[row] for row in range(len(wanted))]

    def find(
        self,
        mode: Mode,
        wanted: Sequence[Wanted],
        tops: Sequence[Tops] | None = None,
        looks: Sequence[Look] | None = None,
    ) -> list[list[Found]]:
        """The best documents of this shard for each query, best first.

        Args:
            mode: compare vectors, words or both.
            wanted: the queries.
            tops: with ``hybrid``, the greatest cosine and BM25 for each query over everything that is
                searched; by default this shard is all there is.
            looks: with ``hybrid``, what ``look`` gave for the same queries, if that was asked.
        """
        if mode == "hybrid" and looks is None:
            looks = self.look(wanted)
        found: dict[int, list[Found]] = {}
        for rows, queries, allowed in self._batches(wanted):
            depths = [wanted[row].depth for row in rows]
            if mode == "dense":
                for row, hits, depth in zip(
                    rows, self._dense.search(queries, max(depths), allowed), depths, strict=True
                ):
                    found[row] = self._found(depth, hits.rows, hits.scores, hits.scores)
                continue
            if mode == "lexical":
                best = self._both.by_words(queries, max(depths), allowed)
            else:
                assert looks is not None
                own = [looks[row] for row in rows]
                weights = [wanted[row].weight for row in rows]
                top = None if tops is None else [tops[row] for row in rows]
                best = self._both.fuse(queries, own, weights, top, max(depths), allowed)
            for row, each, depth in zip(rows, best, depths, strict=True):
                found[row] = self._found(depth, each.rows, each.scores, each.cosines, each.bm25)
        return [found[row] for row in range(len(wanted))]

    def _batches(self, wanted: Sequence[Wanted]) -> Iterator[tuple[list[int], Queries, Mask]]:
        """Queries that are searched together, with their positions: all without a filter, others alone."""
        plain = [row for row, each in enumerate(wanted) if each.filter is None]
        filtered = [[row] for row, each in enumerate(wanted) if each.filter is not None]
        for rows in [plain, *filtered] if plain else filtered:
            queries = Queries(
                [wanted[row].text for row in rows], np.stack([wanted[row].vector for row in rows])
            )
            yield rows, queries, self.allowed(wanted[rows[0]].filter)

    def document(self, document_id: str) -> Document:
        """A document as it is now.

        Raises:
            KeyError: it is not in this shard, or was deleted.
        """
        row = self._table.row(document_id)
        if row is None or not self._mine[row]:
            raise KeyError(document_id)
        return self._table.document(row)

    def documents(self, offset: int, limit: int, filter: Filter | None = None) -> list[Document]:
        """Documents of this shard by page, in the order of rows."""
        rows = np.flatnonzero(self.allowed(filter))[offset : offset + limit]
        return [self._table.document(int(row)) for row in rows]

    @property
    def _both(self) -> HybridIndex:
        assert self._hybrid is not None, "opened without a lexical index"
        return self._hybrid

    def _found(
        self, depth: int, rows: Rows, scores: Scores, cosines: Scores, bm25: Scores | None = None
    ) -> list[Found]:
        words = [None] * len(rows) if bm25 is None else bm25.tolist()
        columns = (rows.tolist(), scores.tolist(), cosines.tolist(), words)
        return [
            Found(score, self._table.document(row), cosine, word)
            for row, score, cosine, word in list(zip(*columns, strict=True))[:depth]
        ]

    def _take(self, change: arrow.Table) -> None:
        newest = dict(read_rows(change))
        gone = self._table.delete([each for each, entry in newest.items() if entry is None])
        entries = [entry for entry in newest.values() if entry is not None]
        replaced = self._append(entries)
        for index in self._indexes:
            index.delete(np.concatenate([gone, replaced]))
        if self._table.hidden_in_tail > max(_RECLAIM_ROWS, len(self._table) // 2):
            self._reclaim()

    def _append(self, entries: Sequence[Entry]) -> np.ndarray:
        replaced = self._table.append([entry.document for entry in entries])
        self._mine = np.concatenate([self._mine, [self._is_mine(entry.document.id) for entry in entries]])
        self._mine = self._mine.astype(bool)
        for index in self._indexes:
            index.append(entries)
        return replaced

    def _reclaim(self) -> None:
        """Drop the rows of documents that came and were replaced or deleted since."""
        vectors_of = self._dense.vectors
        first, kept = self._table.reclaim()
        vectors = vectors_of(np.array(kept, dtype=np.int64))
        entries = [Entry(self._table.document(first + i), vector) for i, vector in enumerate(vectors)]
        self._mine = np.concatenate([self._mine[:first], self._mine[np.array(kept, dtype=np.int64)]])
        for index in self._indexes:
            index.truncate(first)
            index.append(entries)

    def _is_mine(self, document_id: str) -> bool:
        return crc32(document_id.encode()) % self._shards == self._shard
