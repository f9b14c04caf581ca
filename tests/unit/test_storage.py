"""Artifacts on a local disk, in memory and on servers with the interfaces of S3 and GCS."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import Mock

import aiohttp
import numpy as np
import pytest
import requests
from botocore.exceptions import ClientError
from gcsfs.retry import HttpError
from google.auth.exceptions import RefreshError, TransportError
from routerretriever.artifacts import filesystem as file_system
from routerretriever.artifacts import leases as leasing
from routerretriever.artifacts import store as storage
from routerretriever.artifacts.leases import Leases
from routerretriever.artifacts.store import ArtifactStore, build_keys
from routerretriever.errors import ArtifactDamaged, ArtifactMissing, StorageError
from routerretriever.measures import mean_ndcg, measure
from routerretriever.runtime.metrics import STORAGE_RETRIES, drain
from s3fs.errors import translate_boto_error

# In calls of our own: what is deprecated will be gone one day.
pytestmark = pytest.mark.filterwarnings("error::DeprecationWarning:routerretriever")

KEY = "kind/one"


SERVERS = [pytest.param(f"{kind}://bucket/", marks=pytest.mark.component) for kind in ("s3", "gs")]


@pytest.fixture(params=["folder", "memory://", *SERVERS])
def store(request, tmp_path):
    """An empty store of each kind."""
    if "bucket" in request.param:
        request.getfixturevalue({"s3": "s3", "gs": "gcs"}[request.param[:2]])
    return ArtifactStore.open(
        str(tmp_path) if request.param == "folder" else f"{request.param}{tmp_path.name}"
    )


@pytest.fixture
def told(monkeypatch):
    """What the user is told."""
    messages = []
    monkeypatch.setattr(storage.log, "warning", lambda form, *values: messages.append(form % values))
    return messages


def write(text):
    return lambda path: path.write_text(text)


def make(store, key=KEY, **files):
    for name, text in (files or {"a": "one", "b": "two"}).items():
        store.put(key, name, write(text))
    store.commit(key, {"kind": "test"})


def overwrite(store, name, text):
    filesystem, root = store.files.resolve()
    filesystem.pipe_file(f"{root}/{name}", text.encode())


def test_an_artifact_is_there_once_it_is_committed(store):
    store.put(KEY, "sub/file.txt", write("hello"))
    assert store.has(KEY, "sub/file.txt")
    assert not store.exists(KEY)
    assert store.local_file(KEY, "sub/file.txt").read_text() == "hello"
    assert store.names("kind/other") == []
    store.put(KEY, "other", write("more"))
    assert store.names(KEY) == ["other", "sub/file.txt"]
    store.remove_file(KEY, "other")
    store.remove_file(KEY, "other")  # as a second run may
    assert store.names(KEY) == ["sub/file.txt"]
    with pytest.raises(ArtifactMissing, match=KEY):
        store.fetch(KEY)
    store.commit(KEY, {"kind": "test", "name": "ünï"})
    manifest = store.manifest(KEY)
    assert list(manifest.pop("files")) == ["sub/file.txt"]
    assert manifest == {"kind": "test", "name": "ünï"}
    folder = store.fetch(KEY)
    assert (folder / "sub/file.txt").read_text() == "hello"
    # Nothing but the artifact is in its folder: it is copied into bundles as it is.
    assert {p.name for p in folder.rglob("*")} == {"sub", "file.txt", "artifact.json"}
    store.delete(KEY)
    assert not store.exists(KEY)


def test_an_altered_file_is_named_and_refused_and_only_it_is_made_again(store, told):
    make(store)
    overwrite(store, f"{KEY}/b", "tw0")
    with pytest.raises(ArtifactDamaged, match=r"kind/one: .*hash mismatch\): b$"):
        store.fetch(KEY)
    assert store.exists(KEY)

    def mend(keys):
        assert keys == [KEY]
        assert [store.has(KEY, name) for name in "ab"] == [True, False]
        store.put(KEY, "b", write("two"))
        store.commit(KEY, {"kind": "test"})

    build_keys(store, [KEY], mend)
    assert (store.fetch(KEY) / "b").read_text() == "two"
    assert len(told) == 1
    assert "made again" in told[0]


def test_an_unfinished_file_that_is_damaged_or_lost_is_forgotten_and_the_others_stay(store, told):
    for name in "abcd":
        store.put(KEY, name, write(name))
    overwrite(store, f"{KEY}/a", "other")
    overwrite(store, f"hashes/{KEY}/b", "")
    filesystem, root = store.files.resolve()
    filesystem.rm(f"{root}/{KEY}/c")
    assert [path.read_text() for path in store.sound_files(KEY)] == ["d"]
    assert store.names(KEY) == ["d"]
    assert len(told) == 3
    assert "forgotten" in told[0]
    store.put(KEY, "a", write("a"))
    assert [path.read_text() for path in store.sound_files(KEY)] == ["a", "d"]


def test_a_lost_file_is_named(store):
    make(store)
    filesystem, root = store.files.resolve()
    filesystem.rm(f"{root}/{KEY}/a")
    with pytest.raises(ArtifactDamaged, match=r"a$"):
        store.fetch(KEY)


def test_a_damaged_manifest_is_named_and_the_artifact_made_again(store, told):
    make(store)
    overwrite(store, f"{KEY}/artifact.json", "{")
    with pytest.raises(ArtifactDamaged, match=r"artifact\.json"):
        store.manifest(KEY)
    assert not store.verify(KEY)
    make(store)
    assert store.verify(KEY)


def test_a_fetched_copy_is_not_taken_for_an_artifact_that_was_made_again(store):
    make(store, a="first")
    assert (store.fetch(KEY) / "a").read_text() == "first"
    store.delete(KEY)
    make(store, a="other")
    assert (store.fetch(KEY) / "a").read_text() == "other"


def test_a_checked_file_is_not_read_again_until_it_changes(tmp_path, monkeypatch):
    store = ArtifactStore.open(str(tmp_path))
    make(store)
    store.fetch(KEY)
    monkeypatch.setattr(storage, "file_hash", lambda path: pytest.fail(f"read {path} again"))
    store.fetch(KEY)
    monkeypatch.undo()
    (tmp_path / KEY / "a").write_text("longer")
    with pytest.raises(ArtifactDamaged):
        store.fetch(KEY)


def test_leftovers_of_another_plan_are_cleared_away(store):
    store.begin(KEY, {"shard_size": 10})
    store.put(KEY, "0", write("ten"))
    store.begin(KEY, {"shard_size": 10})
    assert store.has(KEY, "0")
    store.begin(KEY, {"shard_size": 20})
    assert not store.has(KEY, "0")


def test_a_full_disk_is_told_and_leaves_nothing_half_written(tmp_path):
    store = ArtifactStore.open(str(tmp_path))

    def fill(path):
        path.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageError, match="no space left"):
        store.put("a", "file", fill)
    assert list((tmp_path / "a").iterdir()) == []
    assert not store.has("a", "file")


def test_a_file_that_a_full_disk_refuses_stays_what_it_was(tmp_path, monkeypatch):
    files = ArtifactStore.open(str(tmp_path)).files
    files.write("notes/one", b"before")
    monkeypatch.setattr(file_system, "open", open_full, raising=False)
    with pytest.raises(StorageError, match="no space left"):
        files.write("notes/one", b"after")
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["one"]
    assert files.read("notes/one") == b"before"
    monkeypatch.undo()
    files.write("notes/one", b"after")
    assert files.read("notes/one") == b"after"


def test_a_copy_that_a_full_disk_cut_short_does_not_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("ROUTERRETRIEVER_CACHE", str(tmp_path))
    store = ArtifactStore.open("memory://full")
    store.put(KEY, "a", write("one"))

    def cut_short(_, path, target):
        target.parent.mkdir(parents=True)
        target.write_text("o")
        raise StorageError("no space left")

    with monkeypatch.context() as full:
        full.setattr(file_system.FileSystem, "download", cut_short)
        with pytest.raises(StorageError, match="no space left"):
            store.local_file(KEY, "a")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert store.local_file(KEY, "a").read_text() == "one"


def test_what_is_half_written_is_seen_by_nobody(tmp_path):
    files = ArtifactStore.open(str(tmp_path)).files
    seen = []

    def look(path):
        path.write_text("half")
        seen.append((path.is_file(), files.list_files("a"), files.read_folder("a")))

    files.put("a/one", look)
    assert seen == [(True, [], {})]
    assert files.list_files("a") == ["one"]


@pytest.mark.parametrize("store", ["folder", *SERVERS], indirect=True)
def test_of_many_that_create_a_file_one_does(store):
    gate, made = threading.Barrier(4), []

    def create(name):
        gate.wait()
        if store.files.create("leases/one", name.encode()):
            made.append(name)

    threads = [threading.Thread(target=create, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.files.read("leases/one").decode() == made[0]
    assert len(made) == 1
    assert store.files.list_files("leases") == ["one"]


def test_a_file_is_created_on_a_disk_without_links(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    files = ArtifactStore.open(str(tmp_path)).files
    assert files.create("leases/one", b"mine")
    assert not files.create("leases/one", b"another's")
    monkeypatch.setattr(Path, "exists", lambda _: False)  # as it was when both looked
    assert not files.create("leases/one", b"another's")
    assert files.read("leases/one") == b"mine"
    monkeypatch.undo()
    assert files.list_files("leases") == ["one"]
    assert os.listdir(tmp_path / "leases") == ["one"]


@pytest.mark.parametrize(("number", "is_kept"), [(errno.EINVAL, True), (errno.ENOSPC, False)])
def test_a_disk_that_syncs_no_folders_is_written_to_and_a_full_one_is_told(
    tmp_path, monkeypatch, number, is_kept
):
    def fsync(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    files = ArtifactStore.open(str(tmp_path)).files
    if is_kept:
        files.write("one", b"mine", lasting=True)
        assert files.create("two", b"mine", lasting=True)
    else:
        with pytest.raises(StorageError, match="no space left"):
            files.write("one", b"mine", lasting=True)
    assert sorted(os.listdir(tmp_path)) == (["one", "two"] if is_kept else [])


def test_a_lease_that_a_full_disk_refuses_is_held_by_nobody(tmp_path, monkeypatch):
    files = ArtifactStore.open(str(tmp_path)).files
    files.write("leases/other", b"")  # the folder is there

    monkeypatch.setattr(file_system, "open", open_full, raising=False)
    with pytest.raises(StorageError, match="no space left"):
        files.create("leases/one", b"mine")
    assert files.list_files("leases") == ["other"]
    monkeypatch.undo()
    assert files.create("leases/one", b"mine")
    assert not files.create("leases/one", b"another's")


class Full:
    """A file on a full disk."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, _):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def open_full(*given):
    return Full(open(*given))


@pytest.mark.parametrize("cache", ["/dev/null/cache", f"/{'long' * 100}"])  # root may look into any other
def test_a_home_that_cannot_be_written_is_no_hindrance(tmp_path, monkeypatch, cache):
    monkeypatch.setenv("ROUTERRETRIEVER_CACHE", cache)
    store = ArtifactStore.open(str(tmp_path))
    make(store)
    assert (store.fetch(KEY) / "a").read_text() == "one"


def test_who_has_no_home_is_told_what_to_set(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ROUTERRETRIEVER_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(StorageError, match="set HOME, or ROUTERRETRIEVER_CACHE"):
        file_system.cache_folder()


def test_storage_that_fails_for_a_while_is_tried_again(tmp_path, told, monkeypatch):
    store = ArtifactStore.open(str(tmp_path))
    failures = [errno.ESTALE, errno.EIO]

    def flicker(path):
        if failures:
            raise OSError(failures.pop(), "for a while")
        path.write_text("hello")

    drain()
    store.put("a", "file", flicker)
    assert drain() == {STORAGE_RETRIES: 2}
    store.commit("a", {})
    assert (store.fetch("a") / "file").read_text() == "hello"
    assert len(told) == 1
    assert "trying again" in told[0]
    monkeypatch.setattr(file_system, "_RETRY_SECONDS", 0.5)
    failures += [errno.EIO] * 100
    with pytest.raises(StorageError, match="for a while"):
        store.put("a", "file", flicker)


def of_s3(code):
    error = ClientError({"Error": {"Code": code, "Message": "told"}}, "PutObject")
    return translate_boto_error(error)


AWAY = [
    *map(of_s3, ["InternalError", "500", "502", "503", "SlowDown", "ConditionalRequestConflict"]),
    *(HttpError({"code": code, "message": "told"}) for code in (429, 500, 503)),
    requests.exceptions.ProxyError("gcsfs raises it for a 502"),
    aiohttp.ClientOSError(errno.ECONNRESET, "told"),
    aiohttp.ServerDisconnectedError("told"),
    TransportError("told"),
]
REFUSED = [
    *map(of_s3, ["AccessDenied", "InvalidAccessKeyId", "NoSuchBucket", "400"]),
    HttpError({"code": 401, "message": "told"}),
    OSError("Forbidden"),
    RefreshError("told"),
]


@pytest.mark.parametrize("error", [*AWAY, *REFUSED], ids=repr)
def test_what_the_clouds_answer_when_they_are_away_is_tried_again_and_a_refusal_is_not(tmp_path, error):
    store, attempts = ArtifactStore.open(str(tmp_path)), []

    def fail_once(path):
        attempts.append(path)
        if len(attempts) == 1:
            raise error
        path.write_text("hello")

    if error in AWAY:
        store.put("a", "file", fail_once)
    else:
        with pytest.raises((StorageError, FileNotFoundError)):
            store.put("a", "file", fail_once)
    assert len(attempts) == (2 if error in AWAY else 1)


@pytest.mark.component
def test_a_server_that_is_away_for_a_while_is_waited_for(s3, told):
    store = ArtifactStore.open("s3://bucket/away")
    make(store)
    s3.stop()
    back = threading.Timer(3, s3.start)
    back.start()
    try:
        # The copy in the cache saves the download, but only the server knows whether the artifact stands.
        assert store.verify(KEY)
    finally:
        back.join()


@pytest.mark.component
@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_a_missing_bucket_is_told_and_not_made(s3, gcs, kind):
    store = ArtifactStore.open(f"{kind}://no-such-bucket/x")
    with pytest.raises(StorageError, match="make the bucket first"):
        store.put(KEY, "a", write("one"))


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("nonsense://x", "nonsense"),
        ("memory://", "names no bucket or folder"),
        ("memory://runs[1]", r"holds '\[', which stands for other characters"),
        ("~nobody-of-this-name/x", "cannot make folder"),
        ("a\0b", "cannot make folder"),
        ("n" * 300, "cannot make folder"),
        (__file__, "is a file; name a folder"),
        (f"{__file__}/x", "cannot make folder"),
    ],
)
def test_a_storage_that_cannot_be_is_told(uri, told):
    with pytest.raises(StorageError, match=told):
        ArtifactStore.open(uri)


@pytest.mark.parametrize("name", ["runs [1]", "a*b", "a?b", "a::b", "a%20b#c", "-x"])
def test_a_folder_may_have_any_name(tmp_path, name):
    store = ArtifactStore.open(str(tmp_path / name))
    make(store)
    assert sorted(store.manifest(KEY)["files"]) == ["a", "b"]
    assert (store.fetch(KEY) / "a").read_text() == "one"
    store.delete(KEY)
    assert not store.holds(KEY)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", [".nfs0000000000a1b2c300000001", "._0000000001.parquet", ".DS_Store"])
def test_what_file_systems_and_finders_leave_is_no_file_of_ours(tmp_path, name):
    store = ArtifactStore.open(str(tmp_path))
    store.put(KEY, "a", write("one"))
    (tmp_path / "hashes" / KEY / name).write_text("not ours")
    assert store.names(KEY) == ["a"]
    store.commit(KEY, {"kind": "test"})
    assert list(store.manifest(KEY)["files"]) == ["a"]


def test_a_file_uri_is_a_folder(tmp_path):
    assert ArtifactStore.open(f"file://{tmp_path}") == ArtifactStore.open(str(tmp_path))


@pytest.mark.parametrize("store", ["folder", *SERVERS], indirect=True)
def test_of_many_runs_that_need_the_same_one_makes_it(store, monkeypatch):
    monkeypatch.setattr(storage, "_POLL_SECONDS", 0.02)
    made, runs, gate = [], 4, threading.Barrier(4)
    keys = ["kind/one", "kind/two"]

    def make_all(missing):
        for key in missing:
            made.append(key)
            make(store, key)

    def run():
        gate.wait()
        build_keys(store, keys, make_all)
        assert all(store.exists(key) for key in keys)

    threads = [threading.Thread(target=run) for _ in range(runs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == sorted(keys)
    filesystem, root = store.files.resolve()
    assert not filesystem.find(f"{root}/leases")
    assert not filesystem.find(f"{root}/hashes")


def test_what_another_run_fails_to_make_is_taken_over(store, monkeypatch):
    monkeypatch.setattr(storage, "_POLL_SECONDS", 0.02)
    claimed, asked = threading.Event(), threading.Event()

    def fail(_):
        claimed.set()
        assert asked.wait(10)
        raise RuntimeError("lost")

    def first():
        with pytest.raises(RuntimeError, match="lost"):
            build_keys(store, [KEY], fail)

    thread = threading.Thread(target=first)
    thread.start()
    assert claimed.wait(10)
    with Leases(store.files).hold([KEY]) as mine:
        assert mine == []
    asked.set()
    build_keys(store, [KEY], lambda keys: make(store))
    thread.join()
    assert store.exists(KEY)


def test_the_lease_of_a_process_that_died_here_is_taken_over_at_once(tmp_path):
    store = ArtifactStore.open(str(tmp_path))
    code = (
        "import os, sys\n"
        "from routerretriever.artifacts.filesystem import FileSystem\n"
        "from routerretriever.artifacts.leases import Leases\n"
        f"with Leases(FileSystem(sys.argv[1])).hold([{KEY!r}]) as mine: print(mine, flush=True); os._exit(9)"
    )
    path = str(Path(storage.__file__).parents[2])
    died = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (died.returncode, died.stdout) == (9, f"[{KEY!r}]\n")
    with Leases(store.files).hold([KEY]) as mine:
        assert mine == [KEY]


@pytest.mark.parametrize("space", ["pid:[4026532000]", None], ids=["Linux", "macOS"])
def test_a_lease_of_another_container_of_this_name_is_no_dead_processs(tmp_path, monkeypatch, space):
    def read(_):
        if space is None:
            raise FileNotFoundError
        return space

    store = ArtifactStore.open(str(tmp_path))
    with Leases(store.files).hold([KEY]):
        monkeypatch.setattr(os, "readlink", read)
        monkeypatch.setattr(os, "kill", Mock(side_effect=ProcessLookupError))
        with Leases(store.files).hold([KEY]) as others:
            assert others == []


def test_a_lease_of_another_machine_is_taken_over_once_it_is_renewed_no_more(store, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(leasing.time, "monotonic", lambda: clock[0])
    waiting = Leases(store.files)
    for beat in range(3):
        store.files.write(f"leases/{KEY}", f"elsewhere:1:abc {beat}".encode())
        clock[0] += leasing.EXPIRE_SECONDS
        with waiting.hold([KEY]) as mine:
            assert mine == []
    clock[0] += leasing.EXPIRE_SECONDS + 1
    with waiting.hold([KEY]) as mine:
        assert mine == [KEY]


def test_a_lease_is_renewed_while_its_block_runs(store, monkeypatch):
    monkeypatch.setattr(leasing, "_RENEW_SECONDS", 0.01)
    renewed = threading.Event()
    written = []

    def note(_, path, content):
        written.append((path, content))
        renewed.set()

    with Leases(store.files).hold([KEY]):
        first = store.files.read(f"leases/{KEY}")
        monkeypatch.setattr(file_system.FileSystem, "write", note)
        assert renewed.wait(10)
    path, content = written[0]
    assert path == f"leases/{KEY}"
    assert content != first
    assert content.split()[0] == first.split()[0]


def test_two_commits_of_the_same_leave_the_first(store):
    make(store, a="one")
    before = store.manifest(KEY)
    store.put(KEY, "a", write("one"))
    store.commit(KEY, {"kind": "late"})
    assert store.manifest(KEY) == before
    assert store.verify(KEY)


def test_measures_are_trec_evals():
    qrels = {"q1": {"a": 2, "b": 1}, "q2": {"c": 1}}
    run = {"q1": {"x": 3.0, "a": 2.0, "b": 1.0}, "q2": {"x": 1.0}}
    measured = measure(qrels, run, ["q2", "q1", "unknown"])
    # Linear gains: (2/log2(3) + 1/log2(4)) / (2/log2(2) + 1/log2(3))
    np.testing.assert_allclose(measured.ndcg_at_10, [0, 0.6696, 0], atol=1e-4)
    np.testing.assert_allclose(measured.recall_at_100, [0, 1, 0])
    np.testing.assert_allclose(measured.average_precision, [0, (1 / 2 + 2 / 3) / 2, 0])
    np.testing.assert_array_equal(measured.first_relevant_rank, [np.inf, 2, np.inf])
    np.testing.assert_array_equal(measured.reciprocal_rank_at_10, [0, 0.5, 0])
    assert mean_ndcg(qrels, run) == pytest.approx(0.6696 / 2, abs=1e-4)


def test_leases_that_were_taken_are_given_back_if_the_next_cannot_be(store, monkeypatch):
    create = file_system.FileSystem.create

    def fails(self, path, content):
        if path.endswith("second"):
            raise StorageError("no answer")
        return create(self, path, content)

    monkeypatch.setattr(file_system.FileSystem, "create", fails)
    with pytest.raises(StorageError, match="no answer"), Leases(store.files).hold([KEY, "second"]):
        pass
    with Leases(store.files).hold([KEY]) as mine:
        assert mine == [KEY]


def test_a_note_that_is_not_what_was_written_is_told(store):
    assert store.read_pointer("served") is None
    store.write_pointer("served", {"version": 1})
    assert store.read_pointer("served") == {"version": 1}
    store.files.write("notes/served.json", b'{"vers')
    with pytest.raises(StorageError, match=r"notes/served\.json: altered since it was written"):
        store.read_pointer("served")
