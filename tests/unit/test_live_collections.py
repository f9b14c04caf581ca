"""Collections that change while they are searched, against a plain search over what they should hold."""

import os
import shutil
import threading
from stat import S_ISDIR

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from routerretriever.artifacts.filesystem import FileSystem
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.corpus.artifact import documents_file, embeddings_file
from routerretriever.datasets.collection import Document
from routerretriever.errors import StorageError
from routerretriever.index.changes import NumberTaken, compact, last_change, write_change, write_deletion
from routerretriever.index.live import LiveCollection
from routerretriever.index.settings import IndexSettings
from routerretriever.serving.catalogue import Catalogue
from routerretriever.serving.ports import CollectionRef
from support.paths import ROOT

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


class Crash(BaseException):
    """A process that ends here."""


def crash_at(store_, step, monkeypatch):
    """The fold ends before the step-th thing that it does to storage; gives whether it came so far."""
    done = 0

    def dying(method):
        def call(*args):
            nonlocal done
            done += 1
            if done > step:
                raise Crash
            return method(*args)

        return call

    with monkeypatch.context() as patch:
        for name in ("write", "remove"):
            patch.setattr(FileSystem, name, dying(getattr(FileSystem, name)))
        try:
            compact(store_, CHANGES)
        except Crash:
            return True
    return False


ACTION = st.one_of(
    CHANGE,
    st.tuples(st.just("compact"), st.none()),
    st.tuples(st.just("crash"), st.integers(0, 12)),
    st.tuples(st.just("refresh"), st.integers(0, 2)),
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(ACTION, max_size=20))
def test_whatever_is_changed_folded_and_broken_off_readers_hold_what_a_dict_would(
    tmp_path_factory, monkeypatch, actions
):
    store, corpus = make_corpus(tmp_path_factory.mktemp("store"), shards=(3, 3))
    held = {document_id: document for document_id, (document, _) in corpus.items()}
    # They look when they are told to, so that they hold older numbers than what has been folded.
    readers = [LiveCollection(store, CORPUS, CHANGES, IndexSettings()) for _ in range(3)]
    seen = [dict(held) for _ in readers]
    number = 0
    for kind, what in actions:
        if kind == "compact":
            compact(store, CHANGES)
        elif kind == "crash":
            crash_at(store, what, monkeypatch)
        elif kind == "refresh":
            readers[what].refresh()
            seen[what] = dict(held)
        else:
            number += 1
            ids = [f"d{row}" for row in what]
            if kind == "delete":
                write_deletion(store, CHANGES, number, ids)
                for document_id in ids:
                    held.pop(document_id, None)
            else:
                documents = [Document(document_id, "", f"changed {number}") for document_id in ids]
                write_change(store, CHANGES, number, documents, unit(number, len(ids)))
                held.update(zip(ids, documents, strict=True))
        assert last_change(store, CHANGES) == number
        for reader, expected_ in zip(readers, seen, strict=True):
            assert contents(reader) == expected_
    fresh = LiveCollection(store, CORPUS, CHANGES, IndexSettings())
    for reader in (*readers, fresh):
        reader.refresh()
        assert (reader.change, contents(reader)) == (number, held)


def contents(reader):
    (found,) = reader.search(unit(99, 1), [1000])
    assert len(found) == len(reader)
    return {hit.document.id: hit.document for hit in found}


def test_files_do_not_become_ever_more_and_those_of_one_fold_before_stay(tmp_path):
    store, _ = make_corpus(tmp_path)
    behind = LiveCollection(store, CORPUS, CHANGES, IndexSettings())
    for number in range(1, 101):
        write_change(store, CHANGES, number, [Document(f"d{number % 7}", "", str(number))], unit(number, 1))
        if number % 10 == 0:
            compact(store, CHANGES)
            assert store.names(CHANGES)[0] == f"{max(0, number - 10) + 1:010d}.parquet"
            assert len(store.names(CHANGES)) <= 10 + 2
    assert len(list((tmp_path / CHANGES).iterdir())) == len(store.names(CHANGES))
    compact(store, CHANGES)
    assert last_change(store, CHANGES) == 100
    behind.refresh()
    assert behind.document("d2").document.text == "100"


def test_a_reader_that_finds_a_file_folded_away_under_its_hands_looks_again(tmp_path, monkeypatch):
    store, _ = make_corpus(tmp_path)
    reader = LiveCollection(store, CORPUS, CHANGES, IndexSettings())
    for number in (1, 2):
        write_deletion(store, CHANGES, number, [f"d{number}"])
    names = ArtifactStore.names

    def late(self, key):
        listed = names(self, key)
        monkeypatch.setattr(ArtifactStore, "names", names)
        for number in (3, 4):
            compact(store, CHANGES)
            write_deletion(store, CHANGES, number, [f"d{number}"])
        compact(store, CHANGES)
        assert f"{1:010d}.parquet" not in names(self, key)
        return listed

    monkeypatch.setattr(ArtifactStore, "names", late)
    reader.refresh()
    assert (reader.change, len(reader)) == (4, 16)


def test_a_change_that_is_gone_or_altered_is_told_and_one_that_a_fold_holds_is_not_missed(tmp_path):
    store, _ = make_corpus(tmp_path)
    reader = LiveCollection(store, CORPUS, CHANGES, IndexSettings())
    for number in (1, 2, 3):
        write_deletion(store, CHANGES, number, [f"d{number}"])
    compact(store, CHANGES)
    (tmp_path / CHANGES / f"{2:010d}.parquet").write_bytes(b"other")
    reader.refresh()
    assert (reader.change, len(reader)) == (3, 17)
    for number in (4, 5):
        write_deletion(store, CHANGES, number, [f"d{number}"])
    (tmp_path / CHANGES / f"{5:010d}.parquet").unlink()
    with pytest.raises(StorageError, match=r"0000000005\.parquet: missing or altered"):
        reader.refresh()
    assert (reader.change, len(reader)) == (4, 16)
    with pytest.raises(StorageError):
        compact(store, CHANGES)
    assert store.names(CHANGES)[0] == f"{1:010d}.parquet"


def test_where_the_newest_checkpoint_is_damaged_the_one_before_and_the_changes_since_stand_for_it(tmp_path):
    store, _ = make_corpus(tmp_path)
    for number in range(1, 6):
        write_deletion(store, CHANGES, number, [f"d{number}"])
        if number in (2, 4):
            compact(store, CHANGES)
    assert not store.has(CHANGES, f"{1:010d}.parquet")
    (tmp_path / CHANGES / f"checkpoint-{4:010d}.parquet").write_bytes(b"")
    reader = LiveCollection(store, CORPUS, CHANGES, IndexSettings())
    assert (reader.change, len(reader)) == (5, 15)


@pytest.mark.parametrize("kind", ["folder", "memory://"])
def test_what_a_machine_keeps_of_changes_does_not_grow_with_their_number(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("ROUTERRETRIEVER_CACHE", str(tmp_path / "cache"))
    store = ArtifactStore.open(str(tmp_path / "store") if kind == "folder" else f"{kind}{tmp_path.name}")
    assert Catalogue(store, "collections").create("new", CollectionRef("corpora/new", CHANGES), DIMENSION)
    reader = LiveCollection(store, "corpora/new", CHANGES, IndexSettings())
    kept = []
    for number in range(1, 41):
        write_change(store, CHANGES, number, [Document("one", "", f"text {number}")], unit(number, 1))
        reader.refresh()
        if number % 4 == 0:
            compact(store, CHANGES)
        kept.append(sum(path.is_file() for path in (tmp_path / "cache").rglob("*")))
    assert max(kept[20:]) <= max(kept[:20])


def test_what_was_acknowledged_outlives_a_power_cut(tmp_path, monkeypatch):
    """Each file, whole, then its name: no disk need keep anything else."""
    synced = []

    def note(descriptor):
        stat = os.fstat(descriptor)
        synced.append((stat.st_ino, None if S_ISDIR(stat.st_mode) else stat.st_size))

    store, _ = make_corpus(tmp_path)
    monkeypatch.setattr(os, "fsync", note)
    write_change(store, CHANGES, 1, [Document("one", "", "one")], unit(1, 1))
    write_deletion(store, CHANGES, 2, ["d1"])
    compact(store, CHANGES)
    assert Catalogue(store, "collections").create("new", CollectionRef("corpora/empty", "changes/new"), 8)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and "tiny-" not in path.name]
    lasting = [path for path in files if CORPUS not in str(path)]
    assert len(lasting) == 9
    for path in lasting:
        file = synced.index((path.stat().st_ino, path.stat().st_size))
        assert (path.parent.stat().st_ino, None) in synced[file:], path


def test_of_two_services_that_give_out_one_number_one_is_refused(tmp_path, monkeypatch):
    store, _ = make_corpus(tmp_path)
    gate, outcomes, has = threading.Barrier(2), {}, ArtifactStore.has

    def both_have_looked(self, key, name):
        found = has(self, key, name)
        gate.wait()
        return found

    def write(name):
        try:
            write_change(store, CHANGES, 1, [Document(name, "", name)], unit(1, 1))
            outcomes[name] = 1
        except NumberTaken:
            outcomes[name] = None

    monkeypatch.setattr(ArtifactStore, "has", both_have_looked)
    threads = [threading.Thread(target=write, args=(name,)) for name in ("mine", "theirs")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    assert sorted(outcomes.values(), key=str) == [1, None]
    reader = LiveCollection(store, CORPUS, CHANGES, IndexSettings())
    assert [reader.document(name).document.text for name, number in outcomes.items() if number] == [
        name for name, number in outcomes.items() if number
    ]


def test_a_change_whose_writer_was_stopped_half_way_is_finished_by_the_next(tmp_path, monkeypatch):
    store, _ = make_corpus(tmp_path)

    def stopped(self, path, content, lasting):
        raise StorageError("stopped")

    with monkeypatch.context() as broken:
        broken.setattr(FileSystem, "write", stopped)
        with pytest.raises(StorageError, match="stopped"):
            write_change(store, CHANGES, 1, [Document("first", "", "first")], unit(1, 1))
    assert last_change(store, CHANGES) == 0
    with pytest.raises(NumberTaken):
        write_change(store, CHANGES, 1, [Document("second", "", "second")], unit(2, 1))
    assert last_change(store, CHANGES) == 1
    write_change(store, CHANGES, 2, [Document("second", "", "second")], unit(2, 1))
    reader = LiveCollection(store, CORPUS, CHANGES, IndexSettings())
    assert [reader.document(name).document.text for name in ("first", "second")] == ["first", "second"]


def test_without_a_collections_two_folders_its_files_count_again_as_the_page_says(tmp_path):
    store, _ = make_corpus(tmp_path)
    write_deletion(store, CHANGES, 1, ["d1"])
    for folder in (CHANGES, f"hashes/{CHANGES}"):
        assert f"`{folder.removesuffix('tiny')}`" in (ROOT / "docs" / "how-to" / "serve.md").read_text()
        shutil.rmtree(tmp_path / folder)
    reader = LiveCollection(store, CORPUS, CHANGES, IndexSettings())
    assert (reader.change, len(reader)) == (0, 20)


def test_changes_taken_before_storage_failed_are_taken_once(tmp_path, monkeypatch):
    store, _ = make_corpus(tmp_path)
    reader = LiveCollection(store, CORPUS, CHANGES, IndexSettings())
    for number in (1, 2, 3):
        write_change(store, CHANGES, number, [Document("new", "", f"text {number}")], unit(number, 1))
    local_file = ArtifactStore.local_file

    def away(self, key, name):
        if name == f"{3:010d}.parquet":
            raise StorageError("no answer")
        return local_file(self, key, name)

    monkeypatch.setattr(ArtifactStore, "local_file", away)
    with pytest.raises(StorageError, match="no answer"):
        reader.refresh()
    assert (reader.change, reader.document("new").document.text) == (2, "text 2")
    monkeypatch.setattr(ArtifactStore, "local_file", local_file)
    reader.refresh()
    assert (reader.change, reader.document("new").document.text) == (3, "text 3")


def test_the_latest_change_is_found_however_many_there_are(tmp_path):
    store, _ = make_corpus(tmp_path)
    for number in range(1, 12):
        assert last_change(store, CHANGES) == number - 1
        write_deletion(store, CHANGES, number, ["d1"])
    assert last_change(store, CHANGES) == 11
