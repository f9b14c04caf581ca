"""Collections that change while they are searched, against a plain search over what they should hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routerretriever.config import IndexSettings
from routerretriever.corpus import LiveCollection, last_change, write_change, write_deletion
from routerretriever.corpus.artifact import documents_file, embeddings_file
from routerretriever.datasets import Document
from routerretriever.storage import ArtifactStore

DIMENSION = 8
CORPUS, CHANGES = "corpora/tiny", "changes/tiny"


def unit(seed, count):
    vectors = np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_corpus(folder, shards=(7, 5, 8)):
    """A corpus artifact of random vectors; gives the store, and the documents with their vectors."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    store = ArtifactStore.open(str(folder))
    vectors = unit(0, sum(shards))
    documents = [Document(f"d{row}", f"title {row}", f"text {row}") for row in range(sum(shards))]
    start = 0
    for shard, size in enumerate(shards):
        part = slice(start, start + size)
        table = arrow.Table.from_pylist([document._asdict() for document in documents[part]])
        store.put(CORPUS, documents_file(shard), lambda path, table=table: parquet.write_table(table, path))
        store.put(CORPUS, embeddings_file(shard), lambda path, part=part: save(path, vectors[part]))
        start += size
    store.commit(CORPUS, {"shards": list(shards), "dimension": DIMENSION})
    return store, dict(zip((d.id for d in documents), zip(documents, vectors, strict=True), strict=True))


def save(path, vectors):
    with path.open("wb") as file:
        np.save(file, vectors)


def expected(held, query, depth):
    scores = {document_id: float(vector @ query) for document_id, (_, vector) in held.items()}
    return sorted(scores, key=lambda document_id: -scores[document_id])[:depth]


CHANGE = st.tuples(
    st.sampled_from(["upsert", "delete"]), st.lists(st.integers(0, 25), min_size=1, unique=True)
)


@settings(deadline=None, max_examples=25)
@given(changes=st.lists(CHANGE, max_size=6), parts=st.integers(1, 4), late=st.integers(0, 6))
def test_searches_find_what_a_plain_search_over_the_present_documents_finds(
    tmp_path_factory, changes, parts, late
):
    store, held = make_corpus(tmp_path_factory.mktemp("store"))
    opened = []

    def open_all():
        for part in range(parts):
            opened.append(LiveCollection(store, CORPUS, CHANGES, IndexSettings(), part, parts))

    for number, (kind, rows) in enumerate(changes, start=1):
        if number == late:
            open_all()  # some changes were made before, some come after
        ids = [f"d{row}" for row in rows]
        if kind == "delete":
            write_deletion(store, CHANGES, number, ids)
            for document_id in ids:
                held.pop(document_id, None)
        else:
            vectors = unit(number, len(ids))
            documents = [Document(document_id, "", f"changed {number}") for document_id in ids]
            write_change(store, CHANGES, number, documents, vectors)
            held.update(zip(ids, zip(documents, vectors, strict=True), strict=True))
    if not opened:
        open_all()
    assert last_change(store, CHANGES) == len(changes)
    queries = unit(99, 3)
    found = [[] for _ in queries]
    for collection in opened:
        collection.refresh()
        for row, hits in enumerate(collection.search(queries, [5, 26, 1])):
            found[row].extend(hits)
    assert sum(map(len, opened)) == len(held)
    for query, hits, depth in zip(queries, found, [5, 26, 1], strict=True):
        best = sorted(hits, key=lambda hit: -hit.score)[:depth]
        assert [hit.document.id for hit in best] == expected(held, query, depth)
        assert all(hit.document == held[hit.document.id][0] for hit in best)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_deleted_documents_are_hidden_in_approximate_indexes_too(tmp_path, kind):
    store, held = make_corpus(tmp_path, shards=(300, 300))
    settings_ = IndexSettings(kind=kind, ivf_lists=4, ivf_probes=4)
    (query,) = unit(99, 1)
    gone = expected(held, query, 50)
    write_deletion(store, CHANGES, 1, gone)
    found = LiveCollection(store, CORPUS, CHANGES, settings_).search(query[None], [20])[0]
    left = {document_id: value for document_id, value in held.items() if document_id not in gone}
    assert not {hit.document.id for hit in found} & set(gone)
    assert len({hit.document.id for hit in found} & set(expected(left, query, 20))) >= 18


def test_the_latest_change_is_found_however_many_there_are(tmp_path):
    store, _ = make_corpus(tmp_path)
    for number in range(1, 12):
        assert last_change(store, CHANGES) == number - 1
        write_deletion(store, CHANGES, number, ["d1"])
    assert last_change(store, CHANGES) == 11
