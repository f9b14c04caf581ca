"""Back-ups: a local storage, with the registry in it, as a folder or one file, and its way back to any place.

A back-up may be taken at any moment, while runs and a service write. MLflow's database is copied first, by
SQLite's own means, so that what it names is there when the files are copied after it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import routerretriever
from routerretriever.artifacts.filesystem import FileSystem
from routerretriever.bundle.archive import ARCHIVE_MODES
from routerretriever.datasets.archives import require_safe_tar
from routerretriever.errors import (
    NO_ROOM,
    ArtifactDamaged,
    BadInput,
    NotFound,
    Refused,
    RegistryError,
    first_line,
    without_secrets,
)
from routerretriever.hashing import file_hash
from routerretriever.registry.connection import ARTIFACTS, DATABASE, default_tracking_uri, relocate
from routerretriever.registry.loading import fetch_manifest
from routerretriever.registry.registry import Registry

_MANIFEST = "backup.json"
_HASHES = "hashes/"
_LEASES = "leases/"
_LASTING = (f"{ARTIFACTS}/", "changes/", "feedback/", "notes/", "corpora/empty-")
"""What cannot be made again, and the corpora that collections created over HTTP begin with."""
_OTHER_ARCHIVES = (".zip", ".bz2", ".xz", ".zst", ".7z")
"""Endings of files that would become folders of these names."""
_DUMPS = {
    "sqlite": "copy it with `sqlite3 FILE '.backup COPY'`, then the artifacts that it names",
    "postgresql": "dump it with `pg_dump`, then copy its artifact store",
    "mysql": "dump it with `mysqldump --single-transaction`, then copy its artifact store",
    "mssql": "use its `BACKUP DATABASE`, then copy its artifact store",
}
_SERVER = "dump its database (`pg_dump`, if that is PostgreSQL), then copy its artifact store"

Add = Callable[[str, Path], str]
"""Puts a file into a back-up under a name; gives its SHA-256."""


@dataclass(frozen=True)
class Backup:
    """What was written."""

    place: Path
    files: int
    left_out: str | None
    """The registry, and how to back it up, where it lies elsewhere than in storage."""


def back_up(registry: Registry, to: Path, minimal: bool = False) -> Backup:
    """Write a back-up of the storage that a registry belongs to; it appears whole or not at all.

    Args:
        registry: with its storage.
        to: a new folder, or a new file whose name ends with .tar, .tar.gz or .tgz.
        minimal: only what cannot be made again, and the documents that the released bundle searches.

    Raises:
        BadInput: its name is that of another kind of archive.
        Refused: storage is remote, or ``to`` is there already or inside of it.
        NotFound: storage is empty.
    """
    files = registry.store.files
    if not files.is_local:
        raise Refused(
            f"storage: {without_secrets(files.uri)}: a bucket is backed up by its own means: turn versioning "
            f"on, or copy it. {_left_out(registry.tracking_uri)}"
        )
    root, to = Path(files.uri), to.expanduser().absolute()
    if to.suffix in _OTHER_ARCHIVES:
        raise BadInput(f"--to {to}: end its name with .tar or .tar.gz, or name a folder")
    if to.exists():
        raise Refused(f"--to {to}: is there already; name a new folder or file")
    if to.resolve().is_relative_to(root):
        raise Refused(f"--to {to}: lies in the storage that is backed up; name a place outside of it")
    if not any(root.iterdir()):
        raise NotFound(f"storage: {root}: nothing is there to back up")
    is_inside = registry.tracking_uri == default_tracking_uri(files.uri)
    prefixes = _prefixes(registry) if minimal else None
    with _fresh(to) as fresh, _writing(fresh, to) as add, tempfile.TemporaryDirectory() as scratch:
        hashes = {}
        if is_inside and (root / DATABASE).exists():
            _copy_database(root / DATABASE, Path(scratch) / DATABASE)
            hashes[DATABASE] = add(DATABASE, Path(scratch) / DATABASE)
        hashes |= _copy_files(files, prefixes, add)
        manifest = Path(scratch) / _MANIFEST
        made = {"version": routerretriever.__version__, "made": datetime.now(UTC).isoformat()}
        manifest.write_text(json.dumps({**made, "storage": files.uri, "files": hashes}, indent=2))
        add(_MANIFEST, manifest)
    return Backup(to, len(hashes), None if is_inside else _left_out(registry.tracking_uri))


def restore(backup: Path, to: Path) -> int:
    """Make a storage of a back-up, all or nothing; the database then names the files where they are now.

    Args:
        backup: what ``back_up`` has written.
        to: a folder that is new or empty.

    Returns:
        How many files were restored.

    Raises:
        BadInput: there is no back-up.
        ArtifactDamaged: files of it are missing or altered; nothing is restored.
        Refused: something is in the folder.
    """
    to = to.expanduser().resolve()
    if to.exists() and not (to.is_dir() and not any(to.iterdir())):
        raise Refused(f"--to {to}: is not empty; name a new folder, and then that as `storage`")
    with _fresh(to) as fresh:
        _unpack(backup, fresh)
        hashes = _expected(backup, fresh)
        found = {name: file_hash(fresh / name) for name in _names(fresh)}
        if damaged := [name for name in {**hashes, **found} if hashes.get(name) != found.get(name)]:
            raise ArtifactDamaged(str(backup), sorted(damaged))
        if DATABASE in hashes:
            relocate(fresh / DATABASE, to)
    return len(hashes)


def _prefixes(registry: Registry) -> tuple[str, ...]:
    """Beginnings of the names of all files that a service of the released bundle needs."""
    corpora: list[str] = []
    if registry.released() is not None:
        corpora = list(fetch_manifest(registry.bundle_uri, registry.tracking_uri)["corpora"].values())
    return (*_LASTING, *(f"{key}/" for key in corpora))


def _left_out(uri: str) -> str:
    how = _DUMPS.get(urlsplit(uri).scheme.split("+")[0], _SERVER)
    return f"registry.tracking_uri: {without_secrets(uri)}: not in the back-up; {how}"


def _copy_database(source: Path, target: Path) -> None:
    """A consistent copy, also while others write."""
    try:
        with (
            closing(sqlite3.connect(f"{source.as_uri()}?mode=ro", uri=True)) as there,
            closing(sqlite3.connect(target)) as here,
        ):
            there.backup(here)
    except sqlite3.Error as error:
        raise RegistryError(f"registry.tracking_uri: {source}: {error}") from None


def _copy_files(files: FileSystem, prefixes: tuple[str, ...] | None, add: Add) -> dict[str, str]:
    """Put files of a storage that others may write to into a back-up; gives their hashes by name.

    What goes meanwhile was replaced by something else (changes by a checkpoint, the hashes of a finished
    artifact by its manifest), so storage is looked through until all that is there is copied.
    """
    copied: dict[str, str] = {}
    before: set[str] = set()
    while (todo := set(_wanted(files, prefixes)) - copied.keys()) and todo != before:
        before = todo
        # The hash of a file says that it is there: it comes after it.
        for name in sorted(todo, key=lambda name: (name.startswith(_HASHES), name)):
            if name.startswith(_HASHES) and name.removeprefix(_HASHES) not in copied:
                continue
            with suppress(FileNotFoundError):
                copied[name] = add(name, Path(files.uri) / name)
    return copied


def _wanted(files: FileSystem, prefixes: tuple[str, ...] | None) -> Iterator[str]:
    folders = [path.name for path in Path(files.uri).iterdir() if path.is_dir()]
    for name in (f"{folder}/{name}" for folder in folders for name in files.list_files(folder)):
        kept = prefixes is None or name.removeprefix(_HASHES).startswith(prefixes)
        if kept and not name.startswith(_LEASES):
            yield name


@contextmanager
def _fresh(to: Path) -> Iterator[Path]:
    """A path beside ``to``; what the block has put there takes its place, unless the block fails."""
    to.parent.mkdir(parents=True, exist_ok=True)
    fresh = to.with_name(f".{to.name}.new")
    _remove(fresh)  # one that was interrupted
    try:
        yield fresh
        fresh.rename(to)
    finally:
        _remove(fresh)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _writing(fresh: Path, to: Path) -> Iterator[Add]:
    """What puts files into a new archive or folder; the name of ``to`` says which it is."""
    if to.suffix not in ARCHIVE_MODES:
        fresh.mkdir()
        yield lambda name, source: _copy(source, fresh / name)
        return
    # A file that has two names (hard links) would be packed once, and as an empty one.
    with tarfile.open(fresh, ARCHIVE_MODES[to.suffix], dereference=True) as archive:  # type: ignore[call-overload]
        yield lambda name, source: _pack(source, name, archive)


class _Hashed:
    """A file that is hashed as it is read: others may put another in its place meanwhile."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._sum = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self._sum.update(content)
        return content

    @property
    def hash(self) -> str:
        return self._sum.hexdigest()


def _copy(source: Path, target: Path) -> str:
    with source.open("rb") as file:
        read = _Hashed(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as copy:
            shutil.copyfileobj(read, copy)
    return read.hash


def _pack(source: Path, name: str, archive: tarfile.TarFile) -> str:
    with source.open("rb") as file:
        read = _Hashed(file)
        archive.addfile(archive.gettarinfo(arcname=name, fileobj=file), read)
    return read.hash


def _unpack(backup: Path, into: Path) -> None:
    try:
        if backup.is_dir():
            shutil.copytree(backup, into)
        elif backup.is_file():
            require_safe_tar(backup)
            with tarfile.open(backup) as archive:
                archive.extractall(into, filter="data")  # refuses what points outside
        else:
            raise BadInput(f"{backup}: no such file or folder")
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        if isinstance(error, OSError) and (error.errno in NO_ROOM or backup.is_dir()):
            raise
        reason = first_line(error).removesuffix(":")  # tarfile adds a line for each of its formats
        raise BadInput(f"{backup}: no archive, or damaged ({reason}); take another back-up") from None


def _expected(backup: Path, unpacked: Path) -> dict[str, str]:
    """Hashes by name, as the back-up's manifest says, which is removed."""
    try:
        hashes: dict[str, str] = json.loads((unpacked / _MANIFEST).read_text())["files"]
        (unpacked / _MANIFEST).unlink()
    except (OSError, ValueError, KeyError, TypeError):
        raise BadInput(
            f"{backup}: has no sound {_MANIFEST}, so it is no back-up, as `routerretriever backup` writes it"
        ) from None
    return hashes


def _names(folder: Path) -> Iterator[str]:
    return (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
