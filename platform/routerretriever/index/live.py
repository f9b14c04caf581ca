"""A collection as it is served: its corpus and the changes made since, searched by vectors, words or both.

The corpus artifact stays as it is: a document that was replaced or deleted is hidden in it, and the new ones
are searched beside it. Several shards may share the vectors of a collection. Each counts the words of all
documents, so that BM25 means the same in every shard, and answers with its own documents only.

Where documents are cut, passages are ranked, and the best passage stands for its document.
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
from routerretriever.datasets.passages import parent_of
from routerretriever.datasets.settings import PassageSettings
from routerretriever.encoder.spread import LEAST_COSINE
from routerretriever.errors import StorageError
from routerretriever.index.base import Entry, Index, Mask, Queries
from routerretriever.index.changes import has_news, read_rows, take_changes
from routerretriever.index.dense import DenseIndex, open_index
from routerretriever.index.documents import DocumentTable, StoredDocument
from routerretriever.index.filters import Filter
from routerretriever.index.hybrid import Fused, HybridIndex, Look, Whole, look_depth
from routerretriever.index.lexical import LexicalIndex, open_postings
from routerretriever.index.settings import IndexSettings, LexicalSettings
from routerretriever.types import Fusion, Mode, Vectors

_ATTEMPTS = 3
_ATTEMPT_SECONDS = 0.1
_RECLAIM_ROWS = 1024
_PASSAGES_A_DOCUMENT = 4
"""Passages that are searched at first for every document wanted; more if they are of too few documents."""


@dataclass(frozen=True)
class Found:
    """A document, or a passage of one, and how well it fits."""

    score: float
    document: Document
    """Of a passage the text is the passage's; all else is the document's."""
    cosine: float | None = None
    """Of its vector, where vectors were searched."""
    bm25: float | None = None
    """Of its words, where words were searched."""
    passage: int | None = None
    """The passage's number in its document, from 1."""


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
    group_by_parent: bool | None = None
    """Whether of each document only its best passage is found; by default it is. True takes the documents
    ``a#1`` and ``a#2`` for passages of ``a``, too."""
    fusion: Fusion = "convex"
    """Of both sides, in a hybrid search; with ``rrf`` the weight means nothing."""
    floor: float = LEAST_COSINE
    """The least cosine that a hybrid search reckons with."""

    def group(self, document_id: str, passage: int | None) -> str:
        """What only one row is found of."""
        by_name = self.group_by_parent and passage is None
        return (parent_of(document_id) or document_id) if by_name else document_id


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
        passages: PassageSettings | None = None,
    ) -> None:
        """Open the indexes and read all changes so far.

        Args:
            store: where all of it lies.
            corpus_key: the corpus artifact.
            changes_key: the changes since.
            settings: kind of index of vectors.
            shard: which of several shards this is, from 0.
            shards: how many there are.
            lexical: how words are indexed; without it only vectors are searched.
            passages: how the corpus was cut; None if its documents are whole.

        Raises:
            ArtifactMissing: the corpus has not been made.
        """
        self._store = store
        self._key = changes_key
        self._shard, self._shards = shard, shards
        corpus = open_corpus(store, corpus_key)
        own = corpus.part(shard, shards)
        first = sum(corpus.shards[: own.first])
        self.table = DocumentTable(corpus, passages)
        self._mine: Mask = np.zeros(len(corpus), dtype=bool)
        self._mine[first : first + len(own)] = True
        self._dense = DenseIndex(open_index(own, settings, store), own, first, len(corpus))
        self._indexes: list[Index] = [self._dense]
        self.hybrid: HybridIndex | None = None
        if lexical is not None:
            words = LexicalIndex(open_postings(corpus, lexical, store), lexical)
            self._indexes.append(words)
            self.hybrid = HybridIndex(self._dense, words)
        self.change = 0
        self.refresh()

    def __len__(self) -> int:
        """How many documents there are."""
        return int((self.allowed() & self.table.first).sum())

    @property
    def rows(self) -> int:
        """How many documents there are, or passages of them."""
        return int(self.allowed().sum())

    def has_news(self) -> bool:
        """Whether changes were made since the last refresh. May be asked from another thread."""
        return has_news(self._store, self._key, self.change)

    def refresh(self) -> None:
        """Take in the changes that were made since the last refresh.

        Raises:
            StorageError: a change, or the checkpoint that holds it, is missing or not what was written.
        """
        missing = None
        for _ in range(_ATTEMPTS):
            if not self.has_news():
                return
            missing = take_changes(self._store, self._key, self.change, self._take)
            if missing is None:
                return
            time.sleep(_ATTEMPT_SECONDS)  # being written, or compacted and removed, just now
        raise StorageError(
            f"{self._store.location(self._key)}/{missing}: missing or altered since it was written; "
            "restore it from a copy"
        )

    def allowed(self, filter: Filter | None = None) -> Mask:
        """The rows of this shard that are present and pass a filter."""
        mask = self.table.present & self._mine
        return mask if filter is None else mask & self.table.matching(filter)

    def search(self, queries: Vectors, depths: Sequence[int]) -> list[list[Found]]:
        """The nearest documents of each query [B, d], best first, at most ``depths`` of each."""
        return self.find("dense", [Wanted("", *each) for each in zip(queries, depths, strict=True)])

    def look(self, wanted: Sequence[Wanted]) -> list[Look]:
        """What both indexes find first: the greatest scores of this shard, and where ``find`` begins."""
        looks: dict[int, Look] = {}
        for rows, queries, allowed in self._batches(wanted):
            first = wanted[rows[0]]
            depth = look_depth(first.fusion, int(allowed.sum()))
            found = self._both.look(queries, allowed, depth, first.floor)
            looks.update(zip(rows, found, strict=True))
        return [looks[row] for row in range(len(wanted))]

    def find(
        self,
        mode: Mode,
        wanted: Sequence[Wanted],
        wholes: Sequence[Whole] | None = None,
        looks: Sequence[Look] | None = None,
    ) -> list[list[Found]]:
        """The best documents of this shard for each query, best first.

        Args:
            mode: compare vectors, words or both.
            wanted: the queries.
            wholes: with ``hybrid``, what fusing each query must know of everything that is searched; by
                default this shard is all there is.
            looks: with ``hybrid``, what ``look`` gave for the same queries, if that was asked.
        """
        if mode == "hybrid":
            looks = self.look(wanted) if looks is None else looks
            if wholes is None:
                wholes = [look.whole(each.fusion) for each, look in zip(wanted, looks, strict=True)]
        grouped = [self._is_grouped(each) for each in wanted]
        depths = [
            each.depth * (_PASSAGES_A_DOCUMENT if by else 1) for each, by in zip(wanted, grouped, strict=True)
        ]
        ranked = self._rank(mode, wanted, depths, wholes, looks)
        for row, each in enumerate(wanted):
            depth = depths[row]
            while grouped[row]:
                best = self._best_of_each(ranked[row], each)
                if len(best.rows) >= each.depth or len(ranked[row].rows) < depth:
                    ranked[row] = best
                    break
                depth *= _PASSAGES_A_DOCUMENT
                own_wholes, own_looks = wholes and [wholes[row]], looks and [looks[row]]
                (ranked[row],) = self._rank(mode, [each], [depth], own_wholes, own_looks)
        return [self._found(mode, each.depth, best) for each, best in zip(wanted, ranked, strict=True)]

    def _is_grouped(self, wanted: Wanted) -> bool:
        by_default = self.table.has_passages and wanted.group_by_parent is None
        return by_default or bool(wanted.group_by_parent)

    def _best_of_each(self, ranked: Fused, wanted: Wanted) -> Fused:
        """The first row of each document."""
        first: dict[str, int] = {}
        for place, row in enumerate(ranked.rows.tolist()):
            first.setdefault(wanted.group(self.table.name(row), self.table.passage(row)), place)
        places = list(first.values())
        return Fused(ranked.rows[places], ranked.scores[places], ranked.cosines[places], ranked.bm25[places])

    def _rank(
        self,
        mode: Mode,
        wanted: Sequence[Wanted],
        depths: Sequence[int],
        wholes: Sequence[Whole] | None,
        looks: Sequence[Look] | None,
    ) -> list[Fused]:
        """The best rows for each query, at least so many if there are; exact."""
        found: dict[int, Fused] = {}
        for rows, queries, allowed in self._batches(wanted):
            depth = max(depths[row] for row in rows)
            if mode == "dense":
                hits = self._dense.search(queries, depth, allowed)
                best = [
                    Fused(each.rows, each.scores, each.scores, np.zeros_like(each.scores)) for each in hits
                ]
            elif mode == "lexical":
                best = self._both.by_words(queries, depth, allowed)
            else:
                assert looks is not None
                assert wholes is not None
                weights = [wanted[row].weight for row in rows]
                own, whole = [looks[row] for row in rows], [wholes[row] for row in rows]
                best = self._both.fuse(queries, own, weights, whole, depth, allowed)
            found.update(zip(rows, best, strict=True))
        return [found[row] for row in range(len(wanted))]

    def _batches(self, wanted: Sequence[Wanted]) -> Iterator[tuple[list[int], Queries, Mask]]:
        """Queries that are searched together, with their positions.

        Those without a filter that are fused alike are; others are searched alone.
        """
        batches: dict[tuple[Fusion, float] | int, list[int]] = {}
        for row, each in enumerate(wanted):
            alike = (each.fusion, each.floor) if each.filter is None else row
            batches.setdefault(alike, []).append(row)
        for rows in batches.values():
            queries = Queries(
                [wanted[row].text for row in rows], np.stack([wanted[row].vector for row in rows])
            )
            yield rows, queries, self.allowed(wanted[rows[0]].filter)

    def document(self, document_id: str) -> StoredDocument:
        """A document as it is now, whole.

        Raises:
            KeyError: it is not in this shard, or was deleted.
        """
        rows = self.table.rows(document_id)
        if not rows or not self._mine[rows[0]]:
            raise KeyError(document_id)
        return self.table.whole(document_id)

    def documents(self, offset: int, limit: int, filter: Filter | None = None) -> list[StoredDocument]:
        """Documents of this shard by page, in the order of rows. Each lies where its first passage does."""
        rows = np.flatnonzero(self.allowed(filter) & self.table.first)[offset : offset + limit]
        return [self.table.whole(self.table.name(row)) for row in rows.tolist()]

    @property
    def _both(self) -> HybridIndex:
        assert self.hybrid is not None, "opened without a lexical index"
        return self.hybrid

    def _found(self, mode: Mode, depth: int, best: Fused) -> list[Found]:
        words = [None] * len(best.rows) if mode == "dense" else best.bm25.tolist()
        columns = (best.rows.tolist(), best.scores.tolist(), best.cosines.tolist(), words)
        return [
            Found(score, self.table.document(row), cosine, word, self.table.passage(row))
            for row, score, cosine, word in list(zip(*columns, strict=True))[:depth]
        ]

    def _take(self, change: arrow.Table, number: int) -> None:
        newest = {each.id: each for each in read_rows(change)}
        gone = self.table.delete(each.id for each in newest.values() if each.document is None)
        present = [each for each in newest.values() if each.document is not None]
        replaced = self.table.append(present)
        entries = [entry for each in present for entry in each.entries]
        mine = np.array([self._is_mine(entry.document.id) for entry in entries], dtype=bool)
        self._mine = np.concatenate([self._mine, mine])
        for index in self._indexes:
            index.append(entries)
            index.delete(np.concatenate([gone, replaced]))
        if self.table.hidden_in_tail > max(_RECLAIM_ROWS, len(self.table) // 2):
            self._reclaim()
        self.change = number  # at once: the next one may be out of reach

    def _reclaim(self) -> None:
        """Drop the rows of documents that came and were replaced or deleted since."""
        vectors_of = self._dense.vectors
        first, kept = self.table.reclaim()
        vectors = vectors_of(np.array(kept, dtype=np.int64))
        entries = [Entry(self.table.document(first + i), vector) for i, vector in enumerate(vectors)]
        self._mine = np.concatenate([self._mine[:first], self._mine[np.array(kept, dtype=np.int64)]])
        for index in self._indexes:
            index.truncate(first)
            index.append(entries)

    def _is_mine(self, document_id: str) -> bool:
        return crc32(document_id.encode()) % self._shards == self._shard
