"""Files under one URI: a local folder, or anything that fsspec opens (``s3://``, ``gs://`` ...).

Files appear whole or not at all: a local file is written beside its place and renamed, an object store
shows an object once it is complete. Operations that fail for a reason that may pass are tried again for
some minutes. This module knows nothing of artifacts.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_exponential,
    wait_random,
)

from routerretriever.errors import NO_ROOM, StorageError, Unavailable, first_line, without_secrets
from routerretriever.hashing import file_hash
from routerretriever.runtime.machine import within
from routerretriever.runtime.metrics import STORAGE_RETRIES, increment
from routerretriever.runtime.progress import log

_RETRY_SECONDS = 180.0
_ANSWER_SECONDS = 20.0
_TRANSIENT = {
    errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.ENETUNREACH,
    errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN,
    errno.ENOTEMPTY,  # a folder that is removed while another run still adds to it
    getattr(errno, "EREMOTEIO", errno.EIO),  # s3fs's number for S3's own error 500
}  # fmt: skip
_TRANSIENT_KINDS = {
    "ConnectionError", "HTTPClientError", "ClientConnectionError", "ClientPayloadError", "TransportError",
}  # fmt: skip
"""Of botocore, aiohttp, requests and google.auth, none of which need be installed."""
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What a disk says that knows no links."""
_NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES}
"""What a disk says that cannot sync, or cannot sync folders."""
_TRANSIENT_STATUSES = {408, 429, 500, 502, 503, 504}

P = ParamSpec("P")
T = TypeVar("T")


def is_transient(error: BaseException) -> bool:
    """Whether an operation that failed like this may work a little later."""
    names = {base.__name__ for base in type(error).__mro__}
    if names & _TRANSIENT_KINDS:  # some of them are OSErrors without a number of the operating system's
        return True
    if isinstance(error, OSError):
        return isinstance(error, TimeoutError) or error.errno in _TRANSIENT
    # gcsfs has one error for all answers.
    return "HttpError" in names and getattr(error, "code", None) in _TRANSIENT_STATUSES


def with_retries(
    method: Callable[Concatenate[FileSystem, P], T],
) -> Callable[Concatenate[FileSystem, P], T]:
    """Repeat an operation while its failure is transient; then raise ``StorageError`` with the reason."""

    @wraps(method)
    def call(files: FileSystem, *args: P.args, **kwargs: P.kwargs) -> T:
        def report(state: RetryCallState) -> None:
            increment(STORAGE_RETRIES)
            if state.outcome is not None and state.attempt_number == 1:
                log.warning("%s: %s; trying again", files.uri, state.outcome.exception())

        attempts = Retrying(
            retry=retry_if_exception(is_transient),
            wait=wait_exponential(0.2, max=10) + wait_random(0, 1),
            stop=stop_after_delay(_RETRY_SECONDS),
            before_sleep=report,
            reraise=True,
        )
        try:
            return attempts(method, files, *args, **kwargs)
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            if error.errno in NO_ROOM:
                raise StorageError(
                    f"{files.uri}: no space left ({error}); nothing half-written was kept. Make room and run "
                    "the same command again: finished work stays"
                ) from None
            raise StorageError(f"{files.uri}: {error}") from error
        except Exception as error:
            if is_transient(error) or type(error).__module__.startswith(("botocore", "gcsfs", "google.auth")):
                # Not chained: botocore's errors cannot be carried from a Ray worker to the driver.
                raise StorageError(f"{files.uri}: {error}") from None
            raise

    return call


@dataclass(frozen=True)
class FileSystem:
    """All files under ``uri``. Paths are relative to it."""

    uri: str

    @classmethod
    def open(cls, uri: str) -> FileSystem:
        """Open a file system, and create the folder if it is local. A local path becomes absolute.

        Raises:
            StorageError: the folder cannot be made, or the package for this kind of URI is missing.
        """
        path = local_path(uri)
        if path is None:
            try:
                _, root = url_to_fs(uri)
            except (ImportError, ValueError) as error:
                raise StorageError(f"storage: {uri}: {error}") from None
            if not str(root).strip("/"):
                raise StorageError(f"storage: {uri}: names no bucket or folder; write it as {uri}NAME")
            if found := re.search(r"[*?[]", str(root)):
                raise StorageError(
                    f"storage: {uri}: holds {found[0]!r}, which stands for other characters in a bucket; "
                    "name another place"
                )
            return cls(uri.rstrip("/"))
        try:
            folder = Path(path).expanduser().resolve()
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise StorageError(f"storage: {path} is a file; name a folder") from None
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: ~name of nobody
            reason = getattr(error, "strerror", None) or error
            raise StorageError(f"storage: cannot make folder {path!r}: {reason}; name another") from None
        return cls(str(folder))

    def require_answer(self) -> None:
        """Look into remote storage once, without the patience that a run has later.

        Raises:
            StorageError: it does not answer in time, or refuses.
        """
        if "://" not in self.uri:
            return
        filesystem, root = self.resolve()
        place = f"storage: {without_secrets(self.uri)}"
        try:
            within(_ANSWER_SECONDS, lambda: filesystem.ls(root), place)
        except FileNotFoundError:
            return  # nothing has been written yet
        except Unavailable as error:
            raise StorageError(f"{error}; mend the address, or start what serves it") from None
        except Exception as error:  # each kind of storage has its own
            raise StorageError(f"{place}: {first_line(error)}; mend the address or the credentials") from None

    def resolve(self) -> tuple[Any, str]:
        """The fsspec file system, and the path of ``uri`` in it."""
        if "://" not in self.uri:  # fsspec would take a folder called ``a::b`` for a chain of two places
            return LocalFileSystem(), self.uri.rstrip("/")
        # A remembered listing would hide what other machines have written since.
        filesystem, root = url_to_fs(self.uri, use_listings_cache=False)
        return filesystem, str(root).rstrip("/")

    @property
    def is_local(self) -> bool:
        """Whether files can be read in place."""
        return isinstance(self.resolve()[0], LocalFileSystem)

    def arrow(self, path: str) -> tuple[Any, str]:
        """A pyarrow file system (None: the local disk) and the path in it, as Ray Train wants them."""
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        filesystem, root = self.resolve()
        return None if self.is_local else PyFileSystem(FSSpecHandler(filesystem)), f"{root}/{path}"

    def local_cache(self) -> Path:
        """A folder of this machine for copies of remote files."""
        return cache_folder() / fsspec.utils.tokenize(self.uri)

    @with_retries
    def exists(self, path: str) -> bool:
        """Whether there is a file or folder."""
        filesystem, root = self.resolve()
        return bool(filesystem.exists(f"{root}/{path}"))

    @with_retries
    def list_files(self, folder: str) -> list[str]:
        """Sorted names of all files below a folder, relative to it; none if it is not there."""
        filesystem, root = self.resolve()
        prefix = f"{root}/{folder}/"
        return sorted(path.split(prefix, 1)[1] for path in filesystem.find(prefix) if not _is_passing(path))

    @with_retries
    def read(self, path: str) -> bytes:
        """A file's content.

        Raises:
            FileNotFoundError: there is none.
        """
        filesystem, root = self.resolve()
        return bytes(filesystem.cat_file(f"{root}/{path}"))

    @with_retries
    def read_folder(self, folder: str) -> dict[str, bytes]:
        """The contents of all files below a folder, by name. One that vanishes meanwhile is left out."""
        filesystem, root = self.resolve()
        prefix = f"{root}/{folder}/"
        found = [path for path in filesystem.find(prefix) if not _is_passing(path)]
        # Whole files; ``cat`` would take a folder called ``runs[1]`` for a pattern.
        contents = filesystem.cat_ranges(found, None, None, on_error="return")
        read = {}
        for path, content in zip(found, contents, strict=True):
            if isinstance(content, bytes):
                read[path.split(prefix, 1)[1]] = content
            elif not isinstance(content, FileNotFoundError):
                raise content
        return read

    @with_retries
    def write(self, path: str, content: bytes, lasting: bool = False) -> None:
        """Write a small file, over one that is there; a lasting one outlives a power cut from then on."""
        filesystem, root = self.resolve()
        if isinstance(filesystem, LocalFileSystem):
            with _whole(Path(f"{root}/{path}"), lasting) as temporary, open(temporary, "xb") as file:
                file.write(content)
        else:
            self._send(lambda target: filesystem.pipe_file(target, content), f"{root}/{path}")

    @with_retries
    def create(self, path: str, content: bytes, lasting: bool = False) -> bool:
        """Write a file, whole, unless there is one; of two at once one does, on a local disk, S3 and GCS.

        A lasting one outlives a power cut from then on.
        """
        filesystem, root = self.resolve()

        def send(target: str) -> None:
            if isinstance(filesystem, LocalFileSystem):
                _create_local(target, content, lasting)
            else:
                filesystem.pipe_file(target, content, mode="create")

        try:
            self._send(send, f"{root}/{path}")
        except FileExistsError:
            # It may be ours, from an attempt whose answer was lost.
            with suppress(FileNotFoundError):
                return self.read(path) == content
            return False
        return True

    @with_retries
    def put(self, path: str, write: Callable[[Path], None], lasting: bool = False) -> str:
        """Have ``write`` fill a local temporary file, which then appears whole; returns its hash.

        A lasting one outlives a power cut from then on.
        """
        filesystem, root = self.resolve()
        target = f"{root}/{path}"
        if not isinstance(filesystem, LocalFileSystem):
            with tempfile.TemporaryDirectory() as folder:
                local = Path(folder) / Path(path).name
                write(local)
                digest = file_hash(local)
                self._send(partial(filesystem.put_file, str(local)), target)
            return digest
        with _whole(Path(target), lasting) as temporary:
            write(temporary)
            return file_hash(temporary)

    @with_retries
    def download(self, path: str, target: Path) -> None:
        """Copy a file to a local path.

        Raises:
            FileNotFoundError: there is none.
        """
        filesystem, root = self.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        filesystem.get_file(f"{root}/{path}", str(target))

    @with_retries
    def remove(self, path: str) -> None:
        """Remove a file or a folder with all that is in it; nothing happens if it is not there."""
        filesystem, root = self.resolve()
        with suppress(FileNotFoundError):
            filesystem.rm(f"{root}/{path}", recursive=True)

    def _send(self, send: Callable[[str], None], target: str) -> None:
        filesystem, _ = self.resolve()
        try:
            send(target)
        except FileNotFoundError as error:
            if isinstance(filesystem, AsyncFileSystem):
                # Object stores have no folders: it is the bucket that is missing.
                raise StorageError(f"storage: {self.uri}: {error}; make the bucket first") from None
            filesystem.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            send(target)


def local_path(uri: str) -> str | None:
    """The path of the folder that a storage is, as it is written; None if storage is remote."""
    path = uri.removeprefix("file://")
    return None if "://" in path else path


@contextmanager
def _whole(target: Path, lasting: bool, place: Callable[[Path, Path], None] = os.replace) -> Iterator[Path]:
    """A path beside ``target``; what the block writes there is put in its place, unless the block fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        if lasting:
            _sync(temporary)
        place(temporary, target)
        if lasting:
            _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _is_passing(path: str) -> bool:
    """Whether this is such a path, one that is being written or was when its process died; or nobody's.

    NFS keeps a removed file as ``.nfs...`` while somebody reads it, macOS its own notes on files and folders.
    """
    return re.search(r"\.[0-9a-f]{32}\.tmp$|/(\.nfs[0-9a-f]+|\._[^/]+|\.DS_Store)$", path) is not None


def _sync(path: Path) -> None:
    """Have a file's content on disk, or the names in a folder. Else a power cut may leave an empty file.

    A disk that knows no such thing, as many that are mounted over a network for folders, does without.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _create_local(target: str, content: bytes, lasting: bool) -> None:
    """Write a file, whole, unless there is one; fsspec would look first and write then."""
    path = Path(target)
    if path.exists():
        raise FileExistsError(target)
    with _whole(path, lasting, _place_first) as temporary, open(temporary, "xb") as file:
        file.write(content)


def _place_first(temporary: Path, target: Path) -> None:
    """Give a file its name, unless there is one of this name."""
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        open(target, "xb").close()  # whose it is; for a moment it is empty
        os.replace(temporary, target)


def cache_folder() -> Path:
    """This machine's cache: ``ROUTERRETRIEVER_CACHE``, or a folder in the user's home.

    Raises:
        StorageError: neither is known.
    """
    if base := os.environ.get("ROUTERRETRIEVER_CACHE"):
        return Path(base)
    try:
        return Path.home() / ".cache" / "routerretriever"
    except RuntimeError:
        raise StorageError("this user has no home; set HOME, or ROUTERRETRIEVER_CACHE to a folder") from None
