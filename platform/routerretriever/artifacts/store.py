"""Artifacts: folders of files, written once, found by the hash of what they were made from.

Steps talk to each other only through artifacts. An artifact exists when its ``artifact.json`` does: that
file is written last, so a reader never sees half of one, on a local disk as on an object store that knows
no rename. Workers on any node add single files (``put``); the step's driver seals the artifact
(``commit``), which records every file's hash. Readers get a local folder (``fetch``): the artifact itself on
a local disk, a cached copy otherwise, so that FAISS, safetensors and Parquet readers only ever deal with
local paths. A reader refuses a file that is not what was written; the step that made it makes it again
(``verify``).

Several runs may share a storage (``build_missing``): whoever first claims an artifact makes it, the others
wait. A claim saves work; what is correct does not hang on it, since files appear whole and carry hashes.

Beside the artifacts lie ``hashes/`` (of the files of unfinished ones), ``claims/`` and ``notes/``.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_exponential_jitter

from routerretriever.errors import ArtifactDamaged, ArtifactMissing, StorageError
from routerretriever.hashing import content_hash, file_hash
from routerretriever.runtime.metrics import STORAGE_RETRIES, count
from routerretriever.runtime.progress import log

MANIFEST = "artifact.json"
_NOTES = "notes"
_PLAN = "plan.json"
_RETRY_SECONDS = 180.0
_BEAT_SECONDS = 5.0
_CLAIM_SECONDS = 60.0
_LOOK_SECONDS = 1.0
_PASSING = {
    errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.ENETUNREACH,
    errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN,
    errno.ENOTEMPTY,  # a folder that is removed while another run still adds to it
}  # fmt: skip
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

P = ParamSpec("P")
T = TypeVar("T")


def _patiently(
    method: Callable[Concatenate[ArtifactStore, P], T],
) -> Callable[Concatenate[ArtifactStore, P], T]:
    """Repeat a storage operation that fails for a reason that may pass; tell in plain words why it cannot."""

    @wraps(method)
    def call(store: ArtifactStore, *args: P.args, **kwargs: P.kwargs) -> T:
        def tell(state: RetryCallState) -> None:
            count(STORAGE_RETRIES)
            if state.outcome is not None and state.attempt_number == 1:
                log.warning("%s: %s; trying again", store.uri, state.outcome.exception())

        attempts = Retrying(
            retry=retry_if_exception(_may_pass),
            wait=wait_exponential_jitter(initial=0.2, max=10),
            stop=stop_after_delay(_RETRY_SECONDS),
            before_sleep=tell,
            reraise=True,
        )
        try:
            return attempts(method, store, *args, **kwargs)
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            if error.errno in _FULL:
                raise StorageError(
                    f"{store.uri}: no space left ({error}); nothing half-written was kept. Make room and run "
                    "the same command again: finished work stays"
                ) from None
            raise StorageError(f"{store.uri}: {error}") from error
        except Exception as error:
            if _may_pass(error) or type(error).__module__.startswith(("botocore", "gcsfs")):
                # Not chained: botocore's errors cannot be carried from a Ray worker to the driver.
                raise StorageError(f"{store.uri}: {error}") from None
            raise

    return call


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return isinstance(error, ConnectionError | TimeoutError) or error.errno in _PASSING
    # botocore's and aiohttp's are no OSErrors, and neither need be installed.
    names = {base.__name__ for base in type(error).__mro__}
    return bool(names & {"ConnectionError", "HTTPClientError", "ClientConnectionError", "ClientPayloadError"})


@dataclass(frozen=True)
class ArtifactStore:
    """All artifacts under one URI: a folder, or anything fsspec can open (``s3://``, ``gs://`` ...)."""

    uri: str

    @classmethod
    def open(cls, uri: str) -> ArtifactStore:
        """Open (and for a local folder create) a store; local paths become absolute, for the workers.

        Raises:
            StorageError: the folder cannot be made, or the package for this kind of URI is missing.
        """
        uri = uri.removeprefix("file://")
        if "://" in uri:
            try:
                url_to_fs(uri)
            except (ImportError, ValueError) as error:
                raise StorageError(f"storage: {uri}: {error}") from None
            return cls(uri.rstrip("/"))
        folder = Path(uri).expanduser().resolve()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"storage: cannot make folder {folder}: {error}") from None
        return cls(str(folder))

    @property
    def is_local(self) -> bool:
        """Whether artifacts can be read in place."""
        return isinstance(self._filesystem()[0], LocalFileSystem)

    def location(self, key: str) -> str:
        """The full path or URI of an artifact, for people."""
        return f"{self.uri}/{key}"

    def arrow(self, key: str) -> tuple[Any, str]:
        """A pyarrow filesystem (None: the local disk) and a key's path in it, as Ray Train wants them."""
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        filesystem, root = self._filesystem()
        return None if self.is_local else PyFileSystem(FSSpecHandler(filesystem)), f"{root}/{key}"

    @_patiently
    def exists(self, key: str) -> bool:
        """Whether a finished artifact lies at ``key``."""
        filesystem, root = self._filesystem()
        return bool(filesystem.exists(f"{root}/{key}/{MANIFEST}"))

    @_patiently
    def holds(self, key: str) -> bool:
        """Whether anything lies at ``key``."""
        filesystem, root = self._filesystem()
        return bool(filesystem.exists(f"{root}/{key}"))

    @_patiently
    def has(self, key: str, name: str) -> bool:
        """Whether one file of an unfinished artifact is there."""
        filesystem, root = self._filesystem()
        return bool(filesystem.exists(f"{root}/hashes/{key}/{name}"))

    @_patiently
    def names(self, key: str) -> list[str]:
        """Names of the files of an unfinished artifact, without a look into them."""
        filesystem, root = self._filesystem()
        folder = f"{root}/hashes/{key}/"
        return sorted(path.split(folder, 1)[1] for path in filesystem.find(folder))

    def unfinished(self, key: str) -> list[str]:
        """Names of the files that an interrupted run has left at ``key``."""
        return sorted(self._hashes(key).keys() - {_PLAN})

    def manifest(self, key: str) -> dict[str, Any]:
        """What ``commit`` recorded; ``files`` are their hashes by name.

        Raises:
            ArtifactMissing: nothing finished lies at ``key``.
            ArtifactDamaged: the manifest is damaged.
        """
        try:
            loaded = json.loads(self._read(f"{key}/{MANIFEST}"))
        except FileNotFoundError:
            raise ArtifactMissing(f"{self.location(key)}: no finished artifact here") from None
        except ValueError:
            loaded = None
        if not isinstance(loaded, dict):
            raise ArtifactDamaged(self.location(key), [MANIFEST])
        return loaded

    @_patiently
    def put(self, key: str, name: str, write: Callable[[Path], None]) -> None:
        """Add one file: ``write`` fills a local temporary file, which then appears whole under its name."""
        filesystem, root = self._filesystem()
        target = f"{root}/{key}/{name}"
        if isinstance(filesystem, LocalFileSystem):
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(f"{target}.{uuid.uuid4().hex}.tmp")
            try:
                write(temporary)
                digest = file_hash(temporary)
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
        else:
            with tempfile.TemporaryDirectory() as folder:
                local = Path(folder) / Path(name).name
                write(local)
                digest = file_hash(local)
                self._upload(partial(filesystem.put_file, str(local)), target)
        if name != MANIFEST:
            self._write(f"hashes/{key}/{name}", digest.encode())

    def put_folder(self, key: str, folder: Path) -> None:
        """Add every file below a local folder."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(key, path.relative_to(folder).as_posix(), partial(shutil.copyfile, path))

    def begin(self, key: str, plan: dict[str, Any]) -> None:
        """Keep what an interrupted run has left at ``key`` if it followed this plan; else clear it away."""
        text = json.dumps(plan, sort_keys=True)
        if self._hashes(key).get(_PLAN) != hashlib.sha256(text.encode()).hexdigest():
            self.delete(key)
            self.put(key, _PLAN, lambda path: _write_text(path, text))

    def commit(self, key: str, manifest: dict[str, Any]) -> None:
        """Declare an artifact finished. Of two runs that made the same, the first has the say."""
        files = self._hashes(key)
        # In this order: were the artifact finished before the hashes were listed, some might be gone by then.
        if not self.exists(key):
            text = json.dumps({**manifest, "files": files}, indent=2, sort_keys=True, ensure_ascii=False)
            self.put(key, MANIFEST, lambda path: _write_text(path, text))
        self._remove(f"hashes/{key}")

    def fetch(self, key: str) -> Path:
        """A local folder with a finished artifact's files, each compared with its hash.

        Raises:
            ArtifactMissing: nothing finished lies at ``key``.
            ArtifactDamaged: a file is not what was written.
        """
        manifest = self.manifest(key)
        # Artifacts of before hashes were kept have none.
        files = manifest.get("files", {})
        filesystem, root = self._filesystem()
        if isinstance(filesystem, LocalFileSystem):
            self._check(key, Path(root) / key, files)
            return Path(root) / key
        # One that was made again is another one.
        cached = self._cache() / f"{key}@{content_hash(manifest)}"
        if not cached.exists():
            fresh = cached.with_name(f"{cached.name}.{uuid.uuid4().hex}.tmp")
            try:
                for name in (*files, MANIFEST):
                    self._download(f"{key}/{name}", fresh / name)
                self._check(key, fresh, files)
                fresh.rename(cached)
            except OSError:
                # Another process of this machine was faster; its copy is as good.
                if not cached.exists():
                    raise
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
        return cached

    def verify(self, key: str) -> bool:
        """Whether an artifact is there and sound, for the step that makes it.

        A damaged one is reopened: without the damaged files, and unfinished.
        """
        try:
            self.fetch(key)
        except ArtifactMissing:
            return False
        except ArtifactDamaged as damage:
            log.warning("%s; it is made again", damage)
            self._reopen(key, damage.names)
            return False
        return True

    def local_file(self, key: str, name: str) -> Path:
        """One file of an artifact that need not be finished, as a local path; for a step's own workers.

        Raises:
            ArtifactDamaged: the file is not what was written.
        """
        filesystem, root = self._filesystem()
        digest = self._read(f"hashes/{key}/{name}").decode()
        if isinstance(filesystem, LocalFileSystem):
            self._check(key, Path(root) / key, {name: digest})
            return Path(root) / key / name
        cached = self._cache() / "unfinished" / key / digest / name
        if not cached.exists():
            fresh = cached.with_name(f"{cached.name}.{uuid.uuid4().hex}.tmp")
            self._download(f"{key}/{name}", fresh)
            if file_hash(fresh) != digest:
                fresh.unlink()
                raise ArtifactDamaged(self.location(key), [name])
            fresh.replace(cached)
        return cached

    def write_pointer(self, name: str, content: dict[str, Any]) -> None:
        """Keep a small record that, unlike an artifact, may be written again."""
        self.put(_NOTES, f"{name}.json", lambda path: _write_text(path, json.dumps(content)))

    def read_pointer(self, name: str) -> dict[str, Any] | None:
        """The record as it was last written; None if it never was."""
        try:
            content: dict[str, Any] = json.loads(self._read(f"{_NOTES}/{name}.json"))
        except FileNotFoundError:
            return None
        return content

    def delete(self, key: str) -> None:
        """Remove an artifact, its manifest first, so that no reader takes the rest for whole."""
        self._remove(f"{key}/{MANIFEST}")
        self._remove(key)
        self._remove(f"hashes/{key}")

    def remove_file(self, key: str, name: str) -> None:
        """Remove one file of an unfinished artifact, its hash first: without that it is not there."""
        self._remove(f"hashes/{key}/{name}")
        self._remove(f"{key}/{name}")

    @contextmanager
    def lease(self, keys: Sequence[str], others: dict[str, tuple[bytes, float]]) -> Iterator[list[str]]:
        """Of some artifacts, those that nobody else is making; nobody else will while the block runs.

        A claim is an object that its owner rewrites every few seconds. One that has not changed for a minute,
        by the clock of whoever waits for it, is taken over, and so is one of a process that died here.

        Args:
            keys: artifacts to be made.
            others: the caller's notes on claims of others; pass the same dictionary at each call.
        """
        mine: dict[str, str] = {}
        done = threading.Event()

        def beat() -> None:
            number = 0
            while not done.wait(_BEAT_SECONDS):
                number += 1
                for key, owner in list(mine.items()):
                    try:
                        if _owner(self._read(f"claims/{key}")) == owner:
                            self._write(f"claims/{key}", _claim(owner, number))
                    except (StorageError, FileNotFoundError) as error:
                        log.warning("the claim on %s was not renewed: %s", key, error)

        for key in keys:
            owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}"
            if self._abandoned(key, others):
                self._remove(f"claims/{key}")
            if self._create(f"claims/{key}", _claim(owner, 0)):
                mine[key] = owner
        beating = threading.Thread(target=beat, daemon=True)
        beating.start()
        try:
            yield list(mine)
        finally:
            done.set()
            beating.join()
            for key in mine:
                self._remove(f"claims/{key}")

    def _abandoned(self, key: str, others: dict[str, tuple[bytes, float]]) -> bool:
        try:
            found = self._read(f"claims/{key}")
        except FileNotFoundError:
            return False
        host, _, process = _owner(found).rpartition(":")[0].rpartition(":")
        if host == socket.gethostname() and not _lives(int(process)):
            return True
        if key not in others or others[key][0] != found:
            others[key] = found, time.monotonic()
        return time.monotonic() - others[key][1] > _CLAIM_SECONDS

    def _reopen(self, key: str, damaged: list[str]) -> None:
        try:
            files = self.manifest(key)["files"]
        except ArtifactDamaged:
            self.delete(key)
            return
        for name, digest in files.items():
            if name not in damaged:
                self._write(f"hashes/{key}/{name}", digest.encode())
        self._remove(f"{key}/{MANIFEST}")

    def _check(self, key: str, folder: Path, files: dict[str, str]) -> None:
        """Compare files with their hashes: on a machine once, for as long as their sizes and times stay."""
        damaged = [name for name in files if not (folder / name).is_file()]
        if not damaged:
            stats = [(folder / name).stat() for name in files]
            seen = content_hash(str(folder), files, [(stat.st_size, stat.st_mtime_ns) for stat in stats])
            checked = _cache_folder() / "checked" / seen
            if checked.exists():
                return
            damaged = [name for name, digest in files.items() if file_hash(folder / name) != digest]
        if damaged:
            raise ArtifactDamaged(self.location(key), damaged)
        checked.parent.mkdir(parents=True, exist_ok=True)
        checked.touch()

    @_patiently
    def _hashes(self, key: str) -> dict[str, str]:
        filesystem, root = self._filesystem()
        folder = f"{root}/hashes/{key}/"
        found = filesystem.find(folder)
        contents = filesystem.cat(found, on_error="return") if found else {}
        hashes = {}
        for path, content in contents.items():
            if isinstance(content, bytes):
                hashes[path.split(folder, 1)[1]] = content.decode()
            elif not isinstance(content, FileNotFoundError):
                # One that is gone was removed by another run, which has finished this artifact.
                raise content
        return hashes

    @_patiently
    def _read(self, path: str) -> bytes:
        filesystem, root = self._filesystem()
        return bytes(filesystem.cat_file(f"{root}/{path}"))

    @_patiently
    def _write(self, path: str, content: bytes) -> None:
        filesystem, root = self._filesystem()
        self._upload(lambda target: filesystem.pipe_file(target, content), f"{root}/{path}")

    @_patiently
    def _create(self, path: str, content: bytes) -> bool:
        """Write a file unless there is one; indivisible on a local disk, S3 and GCS."""
        filesystem, root = self._filesystem()

        def send(target: str) -> None:
            if isinstance(filesystem, LocalFileSystem):
                with open(target, "xb") as file:  # fsspec would look first and write then
                    file.write(content)
            else:
                filesystem.pipe_file(target, content, mode="create")

        try:
            self._upload(send, f"{root}/{path}")
        except FileExistsError:
            # It may be ours, from an attempt whose answer was lost.
            with suppress(FileNotFoundError):
                return self._read(path) == content
            return False
        return True

    def _upload(self, send: Callable[[str], None], target: str) -> None:
        filesystem, _ = self._filesystem()
        try:
            send(target)
        except FileNotFoundError as error:
            if isinstance(filesystem, AsyncFileSystem):
                # Object stores have no folders: it is the bucket that is missing.
                raise StorageError(f"storage: {self.uri}: {error}; make the bucket first") from None
            filesystem.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            send(target)

    @_patiently
    def _download(self, path: str, target: Path) -> None:
        filesystem, root = self._filesystem()
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            filesystem.get_file(f"{root}/{path}", str(target))
        except FileNotFoundError:
            key, _, name = path.rpartition("/")
            raise ArtifactDamaged(self.location(key), [name]) from None

    @_patiently
    def _remove(self, path: str) -> None:
        filesystem, root = self._filesystem()
        with suppress(FileNotFoundError):
            filesystem.rm(f"{root}/{path}", recursive=True)

    def _cache(self) -> Path:
        return _cache_folder() / fsspec.utils.tokenize(self.uri)

    def _filesystem(self) -> tuple[Any, str]:
        # A remembered listing would hide what other machines have written since.
        filesystem, root = url_to_fs(self.uri, use_listings_cache=False)
        return filesystem, str(root).rstrip("/")


def build_missing(store: ArtifactStore, keys: Sequence[str], make: Callable[[list[str]], None]) -> None:
    """Have the artifacts made that are missing or damaged, each by one run if several share the storage.

    Args:
        store: where they lie.
        keys: the artifacts.
        make: makes and commits those that it is given: what nobody else is making. The others are waited for,
            and taken over if their maker fails.
    """
    others: dict[str, tuple[bytes, float]] = {}
    missing = list(keys)
    while missing := [key for key in missing if not store.verify(key)]:
        waiting = bool(others)
        with store.lease(missing, others) as mine:
            # Its maker may have finished between the look and the claim.
            mine = [key for key in mine if not store.exists(key)]
            if mine:
                make(mine)
        if not mine:
            if not waiting:
                log.info("waiting for another run, which is making %s", ", ".join(missing))
            time.sleep(_LOOK_SECONDS)


def _claim(owner: str, beat: int) -> bytes:
    return f"{owner} {beat}".encode()


def _owner(claim: bytes) -> str:
    return claim.decode().partition(" ")[0]


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _cache_folder() -> Path:
    base = os.environ.get("ROUTERRETRIEVER_CACHE")
    return Path(base) if base else Path.home() / ".cache" / "routerretriever"


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
