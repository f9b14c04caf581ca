"""Searching a corpus with FAISS: exact by default, IVF or HNSW as settings."""

from __future__ import annotations

import math
import os
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from routerretriever.config import IndexSettings, content_hash
from routerretriever.corpus.artifact import Corpus, Vectors
from routerretriever.storage import ArtifactStore, make_missing

_INDEX_FILE = "index.faiss"
_TRAINING_POINTS_PER_LIST = 64


def open_index(corpus: Corpus, settings: IndexSettings, store: ArtifactStore) -> SearchIndex:
    """The index of a corpus.

    Exact search reads the embeddings where they lie, on disk. IVF and HNSW take long to build, so they are
    artifacts of their own, keyed by the corpus and their settings.
    """
    faiss.omp_set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    if settings.kind == "exact":
        return SearchIndex(_Exact(corpus), corpus.ids)
    key = f"indexes/{corpus.key.split('/')[-1]}-{settings.kind}-{content_hash(settings.model_dump())}"

    def build(_: list[str]) -> None:
        built = _ivf(corpus, settings) if settings.kind == "ivf" else _hnsw(corpus, settings)
        store.put(key, _INDEX_FILE, lambda path: faiss.write_index(built, str(path)))
        store.commit(key, {"kind": "index", "corpus": corpus.key, "settings": settings.model_dump()})

    make_missing(store, [key], build)
    return SearchIndex(faiss.read_index(str(store.fetch(key) / _INDEX_FILE)), corpus.ids)


def _fill(index: Any, corpus: Corpus) -> Any:
    for shard in range(len(corpus.shards)):
        index.add(np.ascontiguousarray(corpus.embeddings(shard)))
    return index


def _ivf(corpus: Corpus, settings: IndexSettings) -> Any:
    # FAISS wants some 40 training points a list; small corpora get fewer lists.
    lists = settings.ivf_lists or max(1, min(int(4 * math.sqrt(len(corpus))), len(corpus) // 40))
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


class _Exact:
    """Exact inner-product search, shard by shard over the memory-mapped embeddings: of a corpus of any size,
    a process holds what the operating system leaves in its cache."""

    def __init__(self, corpus: Corpus) -> None:
        self._shards = [corpus.embeddings(shard) for shard in range(len(corpus.shards))]

    def search(self, queries: Vectors, depth: int) -> tuple[Vectors, NDArray[np.int64]]:
        """Scores and rows [B, depth], as FAISS returns them."""
        best = faiss.ResultHeap(len(queries), depth, keep_max=True)
        start = 0
        for shard in self._shards:
            scores, rows = faiss.knn(queries, shard, min(depth, len(shard)), faiss.METRIC_INNER_PRODUCT)
            best.add_result(scores, rows + start)
            start += len(shard)
        best.finalize()
        return best.D, best.I


class SearchIndex:
    """An index, FAISS's or our own, with the documents' ids."""

    def __init__(self, index: Any, ids: list[str]) -> None:
        self._index = index
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def search(self, queries: Vectors, depth: int) -> tuple[Vectors, NDArray[np.int64]]:
        """Scores and rows [B, k] of the best documents, k at most ``depth``; row -1 where none was found."""
        scores, rows = self._index.search(
            np.ascontiguousarray(queries, dtype=np.float32), min(depth, len(self.ids))
        )
        return scores, rows

    def run(self, query_ids: list[str], queries: Vectors, depth: int) -> dict[str, dict[str, float]]:
        """Search results as trec_eval reads them.

        A document with the query's own id is left out, as BEIR does (in ArguAna queries are documents).
        """
        scores, rows = self.search(queries, depth + 1)
        found: dict[str, dict[str, float]] = {}
        for query_id, query_scores, query_rows in zip(query_ids, scores.tolist(), rows.tolist(), strict=True):
            hits = (
                (self.ids[row], score)
                for row, score in zip(query_rows, query_scores, strict=True)
                if row >= 0 and self.ids[row] != query_id
            )
            found[query_id] = dict(list(hits)[:depth])
        return found
