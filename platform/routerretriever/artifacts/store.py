"""The artifact store: folders of files, written once, found by the hash of what they were made from.

Steps talk to each other only through artifacts. An artifact exists when its ``artifact.json`` does. That
file is written last, so a reader never sees half an artifact, on a local disk or on an object store that has
no rename. Workers on any node add single files (``put``); the step's driver seals the artifact (``commit``),
which records every file's hash. Readers get a local folder (``fetch``): the artifact itself on a local disk,
a cached copy otherwise. FAISS, safetensors and Parquet readers only ever see local paths. A reader refuses a
file that is not what was written; the step that made it makes it again (``verify``).

Beside the artifacts lie ``hashes/`` (of the files of unfinished ones), ``leases/`` and ``notes/`` (pointers).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from routerretriever.artifacts.filesystem import FileSystem, cache_folder
from routerretriever.artifacts.leases import Leases
from routerretriever.errors import ArtifactDamaged, ArtifactMissing, StorageError
from routerretriever.hashing import content_hash, file_hash
from routerretriever.runtime.progress import log

MANIFEST = "artifact.json"
_POINTERS = "notes"
_PLAN = "plan.json"
_FIRST_POLL_SECONDS, _POLL_SECONDS = 0.05, 1.0
"""Between looks at what another run is making: the first, and the longest, to which it doubles."""


@dataclass(frozen=True)
class ArtifactStore:
    """All artifacts under one URI. A key is an artifact's path there, such as ``corpora/nfcorpus-1a2b3c``."""

    uri: str

    @classmethod
    def open(cls, uri: str) -> ArtifactStore:
        """Open (and for a local folder create) a store; local paths become absolute, for the workers.

        Raises:
            StorageError: the folder cannot be made, or the package for this kind of URI is missing.
        """
        return cls(FileSystem.open(uri).uri)

    @property
    def files(self) -> FileSystem:
        """The files beneath."""
        return FileSystem(self.uri)

    @property
    def is_local(self) -> bool:
        """Whether artifacts can be read in place."""
        return self.files.is_local

    def location(self, key: str) -> str:
        """The full path or URI of an artifact, for people."""
        return f"{self.uri}/{key}"

    def arrow(self, key: str) -> tuple[Any, str]:
        """A pyarrow filesystem (None: the local disk) and a key's path in it, as Ray Train wants them."""
        return self.files.arrow(key)

    def exists(self, key: str) -> bool:
        """Whether a finished artifact lies at ``key``."""
        return self.files.exists(f"{key}/{MANIFEST}")

    def holds(self, key: str) -> bool:
        """Whether anything lies at ``key``."""
        return self.files.exists(key)

    def has(self, key: str, name: str) -> bool:
        """Whether one file of an unfinished artifact is there."""
        return self.files.exists(f"hashes/{key}/{name}")

    def names(self, key: str) -> list[str]:
        """Names of the files of an unfinished artifact, without a look into them."""
        return self.files.list_files(f"hashes/{key}")

    def finished_below(self, key: str) -> list[str]:
        """Keys of the finished artifacts whose keys begin with ``key`` and a slash."""
        names = self.files.list_files(key)
        return [
            f"{key}/{name.removesuffix(f'/{MANIFEST}')}" for name in names if name.endswith(f"/{MANIFEST}")
        ]

    def unfinished(self, key: str) -> list[str]:
        """Names of the files that an interrupted run has left at ``key``."""
        return [name for name in self.names(key) if name != _PLAN]

    def manifest(self, key: str) -> dict[str, Any]:
        """What ``commit`` recorded; ``files`` are their hashes by name.

        Raises:
            ArtifactMissing: nothing finished lies at ``key``.
            ArtifactDamaged: the manifest is damaged.
        """
        try:
            loaded = json.loads(self.files.read(f"{key}/{MANIFEST}"))
        except FileNotFoundError:
            raise ArtifactMissing(f"{self.location(key)}: no finished artifact here") from None
        except ValueError:
            loaded = None
        if not isinstance(loaded, dict):
            raise ArtifactDamaged(self.location(key), [MANIFEST])
        return loaded

    def put(self, key: str, name: str, write: Callable[[Path], None], lasting: bool = False) -> None:
        """Add one file: ``write`` fills a local temporary file, which then appears whole under its name.

        A lasting one outlives a power cut from then on; what can be made again need not.
        """
        digest = self.files.put(f"{key}/{name}", write, lasting)
        if name != MANIFEST:
            self.files.write(f"hashes/{key}/{name}", digest.encode(), lasting)

    def put_new(self, key: str, name: str, content: bytes) -> bool:
        """Add one lasting file unless there is one of this name; returns whether it was added.

        One that is there without a hash gets it: its writer is at it, or was stopped in between.
        """
        is_new = self.files.create(f"{key}/{name}", content, lasting=True)
        if not is_new:
            try:
                content = self.files.read(f"{key}/{name}")
            except FileNotFoundError:
                return False  # removed since
        self.files.write(f"hashes/{key}/{name}", hashlib.sha256(content).hexdigest().encode(), lasting=True)
        return is_new

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
            self.put(key, MANIFEST, lambda path: _write_text(path, text), lasting=True)
        self.files.remove(f"hashes/{key}")

    def fetch(self, key: str) -> Path:
        """A local folder with a finished artifact's files, each compared with its hash.

        Raises:
            ArtifactMissing: nothing finished lies at ``key``.
            ArtifactDamaged: a file is not what was written.
        """
        manifest = self.manifest(key)
        # Artifacts of before hashes were kept have none.
        hashes = manifest.get("files", {})
        if self.is_local:
            folder = Path(self.files.resolve()[1]) / key
            self._check(key, folder, hashes)
            return folder
        # One that was made again is another one.
        cached = self.files.local_cache() / f"{key}@{content_hash(manifest)}"
        if not cached.exists():
            fresh = cached.with_name(f"{cached.name}.{uuid.uuid4().hex}.tmp")
            try:
                for name in (*hashes, MANIFEST):
                    self._download(key, name, fresh / name)
                self._check(key, fresh, hashes)
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
            FileNotFoundError: there is none, or the artifact is finished.
            ArtifactDamaged: the file is not what was written.
        """
        digest = self.files.read(f"hashes/{key}/{name}").decode(errors="replace")
        if self.is_local:
            file = Path(self.files.resolve()[1]) / key / name
            # Without a mark that it was checked: a service would leave one for every change ever made.
            if not file.is_file() or file_hash(file) != digest:
                raise ArtifactDamaged(self.location(key), [name])
            return file
        cached = self.files.local_cache() / "unfinished" / key / digest / name
        if not cached.exists():
            fresh = cached.with_name(f"{cached.name}.{uuid.uuid4().hex}.tmp")
            try:
                self._download(key, name, fresh)
                if file_hash(fresh) != digest:
                    raise ArtifactDamaged(self.location(key), [name])
                fresh.replace(cached)
            finally:
                fresh.unlink(missing_ok=True)
        return cached

    def drop_copies(self, key: str, names: Sequence[str]) -> None:
        """Remove this machine's copies of an unfinished artifact's files that are gone, once they are many.

        Args:
            key: the artifact.
            names: the files that are there.
        """
        copies = self.files.local_cache() / "unfinished" / key
        if self.is_local or not copies.exists() or len(list(copies.iterdir())) <= 2 * len(names):
            return
        for copy in copies.glob("*/*"):
            if copy.name not in names and copy.suffix != ".tmp":
                copy.unlink(missing_ok=True)
                with suppress(OSError):  # another process is at it, too
                    copy.parent.rmdir()

    def sound_files(self, key: str) -> list[Path]:
        """The files of an unfinished artifact as local paths, in the order of their names.

        One that is damaged or gone is forgotten, so that whoever adds files here makes its content again.
        """
        paths = []
        for name in self.names(key):
            try:
                paths.append(self.local_file(key, name))
            except FileNotFoundError:
                continue  # another run has just forgotten it
            except ArtifactDamaged as damage:
                log.warning("%s; it is forgotten, and its content made again", damage)
                self.remove_file(key, name)
        return paths

    def write_pointer(self, name: str, content: dict[str, Any]) -> None:
        """Keep a small record that, unlike an artifact, may be written again."""
        self.put(_POINTERS, f"{name}.json", lambda path: _write_text(path, json.dumps(content)), lasting=True)

    def read_pointer(self, name: str) -> dict[str, Any] | None:
        """The record as it was last written; None if it never was.

        Raises:
            StorageError: it is not what was written.
        """
        try:
            content: dict[str, Any] = json.loads(self.files.read(f"{_POINTERS}/{name}.json"))
        except FileNotFoundError:
            return None
        except ValueError:
            file = f"{self.location(_POINTERS)}/{name}.json"
            raise StorageError(f"{file}: altered since it was written; restore it from a copy") from None
        return content

    def delete(self, key: str) -> None:
        """Remove an artifact, its manifest first, so that no reader takes the rest for whole."""
        self.files.remove(f"{key}/{MANIFEST}")
        self.files.remove(key)
        self.files.remove(f"hashes/{key}")

    def remove_file(self, key: str, name: str) -> None:
        """Remove one file of an unfinished artifact, its hash first: without that it is not there."""
        self.files.remove(f"hashes/{key}/{name}")
        self.files.remove(f"{key}/{name}")

    def _reopen(self, key: str, damaged: list[str]) -> None:
        try:
            hashes = self.manifest(key)["files"]
        except ArtifactDamaged:
            self.delete(key)
            return
        except ArtifactMissing:
            return  # another run has reopened it
        for name, digest in hashes.items():
            if name not in damaged:
                self.files.write(f"hashes/{key}/{name}", digest.encode())
        self.files.remove(f"{key}/{MANIFEST}")

    def _check(self, key: str, folder: Path, hashes: dict[str, str]) -> None:
        """Compare files with their hashes: on a machine once, for as long as their sizes and times stay."""
        damaged = [name for name in hashes if not (folder / name).is_file()]
        if not damaged:
            stats = [(folder / name).stat() for name in hashes]
            seen = content_hash(str(folder), hashes, [(stat.st_size, stat.st_mtime_ns) for stat in stats])
            checked = cache_folder() / "checked" / seen
            # Unlike the method of Path, also in a home that may not be looked into.
            if os.path.exists(checked):
                return
            damaged = [name for name, digest in hashes.items() if file_hash(folder / name) != digest]
        if damaged:
            raise ArtifactDamaged(self.location(key), damaged)
        with suppress(OSError):  # a home that cannot be written: they are compared again next time
            checked.parent.mkdir(parents=True, exist_ok=True)
            checked.touch()

    def _download(self, key: str, name: str, target: Path) -> None:
        try:
            self.files.download(f"{key}/{name}", target)
        except FileNotFoundError:
            raise ArtifactDamaged(self.location(key), [name]) from None

    def _hashes(self, key: str) -> dict[str, str]:
        # A hash that vanishes meanwhile was removed by another run, which has finished this artifact.
        return {name: digest.decode() for name, digest in self.files.read_folder(f"hashes/{key}").items()}


def build_keys(store: ArtifactStore, keys: Sequence[str], build: Callable[[list[str]], None]) -> bool:
    """Have the artifacts made that are missing or damaged, each by one run if several share the storage.

    Args:
        store: where they lie.
        keys: the artifacts.
        build: makes and commits those that it is given: what nobody else is making. The others, and what it
            leaves out because it needs them, are waited for, and taken over if their maker fails.

    Returns:
        Whether anything was missing.
    """
    leases = Leases(store.files)
    found_missing, pause = False, _FIRST_POLL_SECONDS
    missing = list(dict.fromkeys(keys))
    while missing := [key for key in missing if not store.verify(key)]:
        found_missing = True
        was_waiting = leases.is_waiting
        with leases.hold(missing) as mine:
            # Its maker may have finished between the look and the lease.
            mine = [key for key in mine if not store.exists(key)]
            if mine:
                build(mine)
        if not any(store.exists(key) for key in mine):
            if not was_waiting:
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                log.info("waiting for another run, which is making %s%s", missing[0], more)
            time.sleep(pause)
            pause = min(2 * pause, _POLL_SECONDS)
    return found_missing


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
