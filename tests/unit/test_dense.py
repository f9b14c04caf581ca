"""Searches by vectors: what is found does not depend on how many are asked for, or how few may be."""

import os
import threading

import faiss
import numpy as np
import pytest
from routerretriever.corpus.artifact import open_corpus
from routerretriever.datasets.collection import Document
from routerretriever.index import dense
from routerretriever.index.base import Entry, Queries
from routerretriever.index.dense import DenseIndex, open_index
from routerretriever.index.settings import IndexSettings
from support.corpora import CORPUS, write_corpus

KINDS = [
    IndexSettings(),
    IndexSettings(kind="ivf", ivf_lists=8, ivf_probes=1),
    IndexSettings(kind="hnsw", hnsw_ef_search=16),
]


def unit(seed, count):
    vectors = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def opened(folder, vectors, settings=KINDS[0], appended=()):
    """An index of vectors in two shards, and some that came later."""
    documents = [(Document(f"d{row}", "", ""), vector) for row, vector in enumerate(vectors)]
    store = write_corpus(folder, [documents[: len(documents) // 2], documents[len(documents) // 2 :]])
    corpus = open_corpus(store, CORPUS)
    index = DenseIndex(open_index(corpus, settings, store), corpus, 0, len(corpus))
    index.append([Entry(Document(f"late{row}", "", ""), vector) for row, vector in enumerate(appended)])
    return index


def found(index, vector, depth, allowed=None):
    return index.search(Queries([""], vector[None]), depth, allowed)[0].rows.tolist()


def test_pages_of_equal_documents_do_not_overlap(tmp_path):
    other, same = unit(0, 40), unit(1, 1)[0]
    vectors = np.concatenate([other[:20], np.tile(same, (60, 1)), other[20:]])
    index = opened(tmp_path, vectors, appended=np.tile(same, (30, 1)))
    equal = [*range(20, 80), *range(100, 130)]
    for depth in (1, 10, 11, 50, 89, 90):
        assert found(index, same, depth) == equal[:depth]
    assert len(found(index, same, 200)) == 130


@pytest.mark.parametrize("settings", KINDS, ids=lambda settings: settings.kind)
@pytest.mark.parametrize("visible", [0, 3, 40])
def test_a_filter_that_leaves_few_documents_finds_all_of_them(tmp_path, settings, visible):
    vectors, queries = unit(0, 3000), unit(1, 4)
    index = opened(tmp_path, vectors, settings)
    allowed = np.zeros(3000, dtype=bool)
    allowed[np.random.default_rng(2).choice(3000, visible, replace=False)] = True
    for query in queries:
        best = [row for row in np.argsort(-(vectors @ query)).tolist() if allowed[row]]
        assert found(index, query, 10, allowed) == best[:10]


@pytest.mark.parametrize(
    ("stated", "threads"), [("2", 2), ("3,1", 3), ("", None), ("0", None), ("all", None)]
)
def test_a_search_has_the_threads_that_openmps_variable_says(tmp_path, monkeypatch, stated, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", stated)
    opened(tmp_path, unit(0, 6), IndexSettings())
    assert faiss.omp_get_max_threads() == (threads or os.cpu_count())


def test_a_lone_query_has_all_threads_and_many_queries_leave_them_to_faiss(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    vectors, search, threads = unit(0, 100), faiss.knn, []
    index, together = opened(tmp_path, vectors), threading.Barrier(2)

    def knn(queries, *others):
        threads.append(threading.current_thread())
        if len(queries) == 1:
            together.wait(10)  # broken unless both shards are searched at the same time
        return search(queries, *others)

    monkeypatch.setattr(faiss, "knn", knn)
    assert found(index, vectors[7], 3) == np.argsort(-(vectors @ vectors[7]))[:3].tolist()
    assert threading.main_thread() not in threads
    threads.clear()
    index.search(Queries([""] * 2, vectors[:2]), 3)
    assert set(threads) == {threading.main_thread()}


def test_a_collection_may_have_fewer_documents_than_ivf_lists_are_wanted(tmp_path):
    vectors = unit(0, 6)
    index = opened(tmp_path, vectors, IndexSettings(kind="ivf", ivf_lists=64))
    assert found(index, vectors[2], 6) == np.argsort(-(vectors @ vectors[2])).tolist()


@pytest.mark.parametrize("hidden", [0, 1, 256, 257, 900, 1000])
def test_hidden_documents_are_left_out_however_many(tmp_path, monkeypatch, hidden):
    monkeypatch.setattr(dense, "_COPIED_AT_ONCE", 64)
    vectors, (query,) = unit(0, 1000), unit(1, 1)
    index = opened(tmp_path, vectors[:700], appended=vectors[700:])
    allowed = np.ones(1000, dtype=bool)
    allowed[np.random.default_rng(2).choice(1000, hidden, replace=False)] = False
    best = [row for row in np.argsort(-(vectors @ query)).tolist() if allowed[row]]
    assert found(index, query, 30, allowed) == best[:30]
