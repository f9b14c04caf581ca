"""Searching a corpus with FAISS: exact by default, IVF or HNSW as settings."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import faiss as faiss_module
import numpy as np
from numpy.typing import NDArray

from routerretriever.artifacts.store import ArtifactStore, build_keys
from routerretriever.corpus.artifact import Corpus
from routerretriever.datasets.passages import best_passages
from routerretriever.hashing import content_hash
from routerretriever.index.base import Entry, Hits, Mask, Queries, best_hits
from routerretriever.index.settings import IndexSettings
from routerretriever.types import Rows, Scores, Vectors

faiss: Any = faiss_module  # its stubs know less than it has
_INDEX_FILE = "index.faiss"
_PASSAGES_A_DOCUMENT = 8
"""Passages that are searched for every document wanted: several of one document may be found."""
_TRAINING_POINTS_PER_LIST = 64
_HIDDEN_SEARCHED = 256
"""Up to so many hidden vectors are searched, too, then left out: copying all others would take longer."""
_COPIED_AT_ONCE = 8192
"""Vectors that are copied to leave hidden ones out: as many as stay in the processor's caches."""
_FEW_SHARE, _FEW_ROWS = 0.05, 2048
"""Up to this share or number of visible vectors are all compared: IVF and HNSW find too few of them."""


def open_index(corpus: Corpus, settings: IndexSettings, store: ArtifactStore) -> SearchIndex:
    """The index of a corpus.

    Exact search reads the embeddings where they lie, on disk. IVF and HNSW take long to build, so they are
    artifacts of their own, keyed by the corpus and their settings.
    """
    faiss.omp_set_num_threads(_threads())
    if settings.kind == "exact" or not len(corpus):
        return SearchIndex(_Exact(corpus), corpus.ids)
    digest = content_hash(settings.model_dump(), corpus.first, len(corpus.shards))
    key = f"indexes/{corpus.key.split('/')[-1]}-{settings.kind}-{digest}"

    def build(_: list[str]) -> None:
        built = _ivf(corpus, settings) if settings.kind == "ivf" else _hnsw(corpus, settings)
        store.put(key, _INDEX_FILE, lambda path: faiss.write_index(built, str(path)))
        store.commit(key, {"kind": "index", "corpus": corpus.key, "settings": settings.model_dump()})

    build_keys(store, [key], build)
    return SearchIndex(faiss.read_index(str(store.fetch(key) / _INDEX_FILE)), corpus.ids)


def _threads() -> int:
    """What OpenMP's variable says, which may be empty, or a list for nested loops; else all CPUs."""
    stated = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(stated) if stated.isdigit() and int(stated) else os.cpu_count() or 1


def _fill(index: Any, corpus: Corpus) -> Any:
    for shard in range(len(corpus.shards)):
        index.add(np.ascontiguousarray(corpus.embeddings(shard)))
    return index


def _ivf(corpus: Corpus, settings: IndexSettings) -> Any:
    # FAISS wants some 40 training points a list, so small corpora get fewer; more than points it refuses.
    lists = settings.ivf_lists or max(1, min(int(4 * math.sqrt(len(corpus))), len(corpus) // 40))
    lists = min(lists, len(corpus))
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(corpus.dimension), corpus.dimension, lists, faiss.METRIC_INNER_PRODUCT
    )
    sample = np.random.default_rng(0).choice(
        len(corpus), size=min(len(corpus), lists * _TRAINING_POINTS_PER_LIST), replace=False
    )
    index.train(corpus.lookup(np.sort(sample)))
    index.nprobe = min(settings.ivf_probes, lists)
    return _fill(index, corpus)


def _hnsw(corpus: Corpus, settings: IndexSettings) -> Any:
    index = faiss.IndexHNSWFlat(corpus.dimension, settings.hnsw_links, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = settings.hnsw_ef_construction
    index.hnsw.efSearch = settings.hnsw_ef_search
    return _fill(index, corpus)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that all corpora of a process share. Each would have FAISS start as many of its own again."""
    return ThreadPoolExecutor(threads, initializer=faiss.omp_set_num_threads, initargs=(1,))


class _Exact:
    """Exact inner-product search, shard by shard over the memory-mapped embeddings: of a corpus of any size,
    a process holds what the operating system leaves in its cache."""

    def __init__(self, corpus: Corpus) -> None:
        self.shards = [corpus.embeddings(shard) for shard in range(len(corpus.shards))]
        self._starts = np.cumsum([0, *(len(shard) for shard in self.shards)]).tolist()
        self._threads = min(_threads(), len(self.shards))

    def search(
        self, queries: Vectors, depth: int, params: NDArray[np.bool_] | None = None
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """Scores and rows [B, depth], as FAISS returns them; ``params`` says which rows may be found."""

        def nearest(place: int) -> tuple[Vectors, NDArray[np.int64]]:
            start, shard = self._starts[place], self.shards[place]
            visible = None if params is None else params[start : start + len(shard)]
            scores, rows = _nearest(queries, shard, depth, visible)
            return scores, np.where(rows >= 0, rows + start, -1)

        def nearest_of(places: NDArray[np.int64]) -> list[tuple[Vectors, NDArray[np.int64]]]:
            return [nearest(place) for place in places.tolist()]

        found: Iterable[tuple[Vectors, NDArray[np.int64]]] = map(nearest, range(len(self.shards)))
        if len(queries) < self._threads:
            # FAISS spreads queries over its threads, so that a few of them would leave most idle.
            parts = np.array_split(np.arange(len(self.shards)), self._threads)
            found = chain.from_iterable(_pool(self._threads).map(nearest_of, parts))
        best = faiss.ResultHeap(len(queries), depth, keep_max=True)
        for scores, rows in found:
            best.add_result(scores, rows)
        best.finalize()
        return best.D, best.I


def _nearest(
    queries: Vectors, vectors: Vectors, depth: int, visible: Mask | None = None
) -> tuple[Vectors, NDArray[np.int64]]:
    """Scores and rows [B, k] of the nearest vectors that are visible; row -1 where one is not."""
    hidden = 0 if visible is None else len(vectors) - int(visible.sum())
    if visible is not None and hidden > _HIDDEN_SEARCHED:
        return _nearest_of(queries, vectors, np.flatnonzero(visible), depth)
    wanted = min(depth + hidden, len(vectors))
    if not wanted:
        return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    scores, rows = faiss.knn(queries, vectors, wanted, faiss.METRIC_INNER_PRODUCT)
    if visible is not None and hidden:
        gone = ~visible[rows]
        scores[gone], rows[gone] = -np.inf, -1
    return scores, rows


def _nearest_of(
    queries: Vectors, vectors: Vectors, rows: Rows, depth: int
) -> tuple[Vectors, NDArray[np.int64]]:
    """Scores and rows [B, depth] of the nearest of some rows; row -1 where there are too few."""
    best = faiss.ResultHeap(len(queries), depth, keep_max=True)
    for start in range(0, len(rows), _COPIED_AT_ONCE):
        some = rows[start : start + _COPIED_AT_ONCE]
        scores, places = _nearest(queries, vectors[some], depth)
        best.add_result(scores, some[places])
    best.finalize()
    return best.D, best.I


class SearchIndex:
    """An index, FAISS's or our own, with the documents' ids."""

    def __init__(self, index: Any, ids: list[str]) -> None:
        self.index = index
        self.ids = ids

    @classmethod
    def flat(cls, vectors: Sequence[Vectors], ids: list[str], dimension: int) -> SearchIndex:
        """An exact index of a few vectors [d]."""
        index = faiss.IndexFlatIP(dimension)
        if vectors:
            index.add(np.stack(vectors))
        return cls(index, ids)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_exact(self) -> bool:
        """Whether it compares every vector."""
        return isinstance(self.index, _Exact)

    def search(
        self, queries: Vectors, depth: int, visible: NDArray[np.bool_] | None = None
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """Scores and rows [B, k] of the best documents, k at most ``depth``; row -1 where none was found.

        Args:
            queries: vectors [B, d].
            depth: how many documents are wanted for each.
            visible: which documents [N] may be found; all of them by default.
        """
        depth = min(depth, len(self.ids))
        if not depth:
            return np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
        parameters = None if visible is None else self._only(visible)
        scores, rows = self.index.search(
            np.ascontiguousarray(queries, dtype=np.float32), depth, params=parameters
        )
        return scores, rows

    def _only(self, visible: NDArray[np.bool_]) -> Any:
        if self.is_exact:
            return visible
        allowed = faiss.IDSelectorBitmap(np.packbits(visible, bitorder="little"))
        if isinstance(self.index, faiss.IndexIVF):
            return faiss.SearchParametersIVF(sel=allowed, nprobe=self.index.nprobe)
        if isinstance(self.index, faiss.IndexHNSW):
            return faiss.SearchParametersHNSW(sel=allowed, efSearch=self.index.hnsw.efSearch)
        return faiss.SearchParameters(sel=allowed)

    def hits(self, scores: Vectors, rows: NDArray[np.int64]) -> list[list[tuple[str, float]]]:
        """Document ids with their scores, from what ``search`` gave."""
        return [
            [(self.ids[row], score) for row, score in zip(query_rows, query_scores, strict=True) if row >= 0]
            for query_rows, query_scores in zip(rows.tolist(), scores.tolist(), strict=True)
        ]

    def run(
        self,
        query_ids: list[str],
        queries: Vectors,
        depth: int,
        own_kept: Collection[str] = (),
        passages: bool = False,
    ) -> dict[str, dict[str, float]]:
        """Search results as trec_eval reads them.

        Args:
            query_ids: of the queries.
            queries: their vectors [B, d].
            depth: documents of each.
            own_kept: queries that may find the document of their own id. For all others it is left out, as
                BEIR does (in ArguAna queries are documents).
            passages: the index holds passages; a document scores as its best one (MaxP).
        """
        hits = self.hits(*self.search(queries, search_depth(depth, passages)))
        return as_run(query_ids, hits, depth, own_kept, passages)


def search_depth(depth: int, passages: bool) -> int:
    """How many rows must be found, so that ``as_run`` can give ``depth`` documents."""
    return (depth + 1) * (_PASSAGES_A_DOCUMENT if passages else 1)


def as_run(
    query_ids: Sequence[str],
    hits: Sequence[Sequence[tuple[str, float]]],
    depth: int,
    own_kept: Collection[str],
    passages: bool,
) -> dict[str, dict[str, float]]:
    """Ids with scores, best first, as trec_eval reads them; see ``SearchIndex.run``."""
    found = {query_id: dict(own) for query_id, own in zip(query_ids, hits, strict=True)}
    if passages:
        found = best_passages(found, depth + 1)
    for query_id, own in found.items():
        if query_id not in own_kept:
            own.pop(query_id, None)
        found[query_id] = dict(list(own.items())[:depth])
    return found


class DenseIndex:
    """Inner products with the vectors of a corpus, or of one shard of it, and of documents appended since."""

    def __init__(self, base: SearchIndex, corpus: Corpus, first_row: int, rows: int) -> None:
        """An index over a corpus.

        Args:
            base: the index of the corpus's vectors that are searched here.
            corpus: those vectors.
            first_row: the row of the first of them.
            rows: rows of the whole corpus.
        """
        self._base, self._corpus = base, corpus
        self._first, self._rows = first_row, rows
        self._tail = np.empty((0, corpus.dimension), dtype=np.float32)

    def __len__(self) -> int:
        return self._rows + len(self._tail)

    def append(self, documents: Sequence[Entry]) -> None:
        """Documents become the next rows."""
        if documents:
            self._tail = np.concatenate([self._tail, np.stack([entry.vector for entry in documents])])

    def delete(self, rows: Rows) -> None:
        """Nothing to do: rows that are gone are never allowed."""

    def truncate(self, rows: int) -> None:
        """Forget the rows from this number on; only appended ones can be."""
        self._tail = self._tail[: rows - self._rows]

    def search(self, queries: Queries, depth: int, allowed: Mask | None = None) -> list[Hits]:
        """The nearest documents of each query."""
        found: dict[int, Hits] = {}
        left, wanted = list(range(len(queries.vectors))), depth + 1
        while left:
            vectors = np.ascontiguousarray(queries.vectors[left])
            hits = dict(zip(left, self._nearest(vectors, wanted, allowed), strict=True))
            found |= {row: best_hits(*own, depth) for row, own in hits.items()}
            # Who is among the best must not depend on how many are asked for: pages would overlap.
            left = [row for row, own in hits.items() if _is_cut_in_a_tie(own, depth, wanted)]
            wanted *= 4
        return [found[row] for row in range(len(queries.vectors))]

    def _nearest(self, queries: Vectors, depth: int, allowed: Mask | None) -> list[Hits]:
        """The nearest documents of each query [B, d], in any order."""
        here = slice(self._first, self._first + len(self._corpus))
        visible = None if allowed is None or allowed[here].all() else allowed[here]
        scores, rows = self._nearest_in_corpus(queries, depth, visible)
        rows = np.where(rows >= 0, rows + self._first, -1)
        if len(self._tail):
            shown = None if allowed is None else allowed[self._rows :]
            more, places = _nearest(queries, self._tail, depth, shown)
            scores = np.concatenate([scores, more], axis=1)
            rows = np.concatenate([rows, np.where(places >= 0, places + self._rows, -1)], axis=1)
        return [
            Hits(own_rows[own_rows >= 0], own_scores[own_rows >= 0])
            for own_rows, own_scores in zip(rows, scores, strict=True)
        ]

    def _nearest_in_corpus(
        self, queries: Vectors, depth: int, visible: Mask | None
    ) -> tuple[Vectors, NDArray[np.int64]]:
        if visible is not None and not self._base.is_exact:
            few = np.flatnonzero(visible)
            if len(few) <= max(_FEW_ROWS, _FEW_SHARE * len(visible)):
                scores, places = _nearest(queries, self._corpus.lookup(few), depth)
                return scores, few[places]
        return self._base.search(queries, depth, visible)

    def score(self, queries: Queries, rows: Sequence[Rows]) -> list[Scores]:
        """Inner products of each query with given documents; they must be searched here."""
        return [self.vectors(wanted) @ vector for vector, wanted in zip(queries.vectors, rows, strict=True)]

    def vectors(self, rows: Rows) -> Vectors:
        """Vectors [R, d] of some rows."""
        found = np.empty((len(rows), self._corpus.dimension), dtype=np.float32)
        old = rows < self._rows
        found[old] = self._corpus.lookup(rows[old] - self._first)
        found[~old] = self._tail[rows[~old] - self._rows]
        return found


def _is_cut_in_a_tie(hits: Hits, depth: int, wanted: int) -> bool:
    """Whether more documents than were asked for may score as the last that is returned does."""
    if len(hits.rows) < wanted:
        return False
    best = np.sort(hits.scores)[::-1]
    return bool(best[depth - 1] == best[wanted - 1])
