"""Artifacts: folders of files, written once, found by the hash of what they were made from.

Steps talk to each other only through artifacts. An artifact exists when its ``artifact.json`` does: that
file is written last, so a reader never sees half of one, on a local disk as on an object store that knows
no rename. Workers on any node add single files (``put``); the step's driver seals the artifact
(``commit``). Readers get a local folder (``fetch``): the artifact itself on a local disk, a cached copy
otherwise, so that FAISS, safetensors and Parquet readers only ever deal with local paths.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

MANIFEST = "artifact.json"


class ArtifactMissing(LookupError):
    """An artifact was asked for that no finished step has left."""


class StorageError(RuntimeError):
    """Storage was reached but does not hold what it should."""


@dataclass(frozen=True)
class ArtifactStore:
    """All artifacts under one URI: a folder, or anything fsspec can open (``s3://``, ``gs://`` ...)."""

    uri: str

    @classmethod
    def open(cls, uri: str) -> ArtifactStore:
        """Open (and for a local folder create) a store; local paths become absolute, for the workers."""
        if "://" not in uri:
            folder = Path(uri).expanduser().resolve()
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(f"storage: cannot make folder {folder}: {error}") from None
            uri = str(folder)
        else:
            url_to_fs(uri)
        return cls(uri.rstrip("/"))

    @property
    def is_local(self) -> bool:
        """Whether artifacts can be read in place."""
        return isinstance(self._filesystem()[0], LocalFileSystem)

    def location(self, key: str) -> str:
        """The full path or URI of an artifact, for people and for Ray Train."""
        return f"{self.uri}/{key}"

    def exists(self, key: str) -> bool:
        """Whether a finished artifact lies at ``key``."""
        return self.has(key, MANIFEST)

    def has(self, key: str, name: str) -> bool:
        """Whether one file of an artifact, finished or not, is there."""
        filesystem, root = self._filesystem()
        return bool(filesystem.exists(f"{root}/{key}/{name}"))

    def manifest(self, key: str) -> dict[str, Any]:
        """What ``commit`` recorded.

        Raises:
            ArtifactMissing: nothing finished lies at ``key``.
            StorageError: the manifest is damaged.
        """
        filesystem, root = self._filesystem()
        try:
            with filesystem.open(f"{root}/{key}/{MANIFEST}", "rt", encoding="utf-8") as file:
                loaded = json.load(file)
        except FileNotFoundError:
            raise ArtifactMissing(f"{self.location(key)}: no finished artifact here") from None
        except json.JSONDecodeError as error:
            raise StorageError(
                f"{self.location(key)}/{MANIFEST}: damaged ({error}); delete it to have it made again"
            ) from None
        if not isinstance(loaded, dict):
            raise StorageError(f"{self.location(key)}/{MANIFEST}: holds no JSON object; delete it")
        return loaded

    def put(self, key: str, name: str, write: Callable[[Path], None]) -> None:
        """Add one file: ``write`` fills a local temporary file, which then appears whole under its name."""
        filesystem, root = self._filesystem()
        target = f"{root}/{key}/{name}"
        filesystem.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        if isinstance(filesystem, LocalFileSystem):
            temporary = Path(f"{target}.{uuid.uuid4().hex}.tmp")
            try:
                write(temporary)
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
        else:
            with tempfile.TemporaryDirectory() as folder:
                local = Path(folder) / Path(name).name
                write(local)
                filesystem.put_file(str(local), target)

    def put_folder(self, key: str, folder: Path) -> None:
        """Add every file below a local folder."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(key, path.relative_to(folder).as_posix(), partial(shutil.copyfile, path))

    def commit(self, key: str, manifest: dict[str, Any]) -> None:
        """Declare an artifact finished."""
        text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False)
        self.put(key, MANIFEST, lambda path: _write_text(path, text))

    def fetch(self, key: str) -> Path:
        """A local folder with a finished artifact's files.

        Raises:
            ArtifactMissing: nothing finished lies at ``key``.
        """
        self.manifest(key)
        filesystem, root = self._filesystem()
        if isinstance(filesystem, LocalFileSystem):
            return Path(root) / key
        cached = _cache_folder() / fsspec.utils.tokenize(self.uri) / key
        if not (cached / MANIFEST).exists():
            fresh = cached.with_name(f"{cached.name}.{uuid.uuid4().hex}.tmp")
            filesystem.get(f"{root}/{key}/", f"{fresh}/", recursive=True)
            try:
                fresh.rename(cached)
            except OSError:
                # Another process of this machine was faster; artifacts never change, so its copy is ours.
                shutil.rmtree(fresh)
        return cached

    def local_file(self, key: str, name: str) -> Path:
        """One file of an artifact that need not be finished, as a local path; for a step's own workers."""
        filesystem, root = self._filesystem()
        source = f"{root}/{key}/{name}"
        if isinstance(filesystem, LocalFileSystem):
            return Path(source)
        cached = _cache_folder() / fsspec.utils.tokenize(self.uri) / "unfinished" / key / name
        if not cached.exists():
            cached.parent.mkdir(parents=True, exist_ok=True)
            fresh = cached.with_name(f"{cached.name}.{uuid.uuid4().hex}.tmp")
            filesystem.get_file(source, str(fresh))
            fresh.replace(cached)
        return cached

    def delete(self, key: str) -> None:
        """Remove an artifact, its manifest first, so that no reader takes the rest for whole."""
        filesystem, root = self._filesystem()
        if filesystem.exists(f"{root}/{key}/{MANIFEST}"):
            filesystem.rm(f"{root}/{key}/{MANIFEST}")
        if filesystem.exists(f"{root}/{key}"):
            filesystem.rm(f"{root}/{key}", recursive=True)

    def _filesystem(self) -> tuple[Any, str]:
        filesystem, root = url_to_fs(self.uri)
        return filesystem, str(root).rstrip("/")


def _cache_folder() -> Path:
    base = os.environ.get("ROUTERRETRIEVER_CACHE")
    return Path(base) if base else Path.home() / ".cache" / "routerretriever"


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
