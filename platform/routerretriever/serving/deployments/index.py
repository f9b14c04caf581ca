"""The index as a deployment: FAISS over all collections, or over one of several parts of each."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.bundle.bundle import Vectors
from routerretriever.datasets.collection import Document
from routerretriever.index.changes import changes_key, compact, last_change, write_change, write_deletion
from routerretriever.index.live import Found, LiveCollection
from routerretriever.index.settings import IndexSettings
from routerretriever.serving.deployments.calls import OneThread, ask

log = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Place:
    """Where a collection lies: its corpus artifact, and the changes made since."""

    corpus: str
    changes: str

    @classmethod
    def of(cls, collection: str, corpus: str, encoder_fingerprint: str) -> Place:
        """A collection's place."""
        return cls(corpus, changes_key(collection, encoder_fingerprint))


@serve.deployment
class Index:
    """Searches collections; each is opened when it is first asked for."""

    def __init__(
        self,
        settings: IndexSettings,
        store: ArtifactStore,
        refresh_seconds: float,
        part: int,
        parts: int,
    ) -> None:
        """Nothing is opened yet: the keeper of releases searches every collection before anybody else does.

        Args:
            settings: kind of index.
            store: where corpora lie.
            refresh_seconds: changes are looked for at most this often.
            part: the part of every collection that is searched here.
            parts: how many there are.
        """
        self._settings = settings
        self._store = store
        self._refresh_seconds = refresh_seconds
        self._part, self._parts = part, parts
        self._open: dict[Place, LiveCollection] = {}
        self._looked: dict[Place, float] = {}
        # One thread: a collection must not change under a search. FAISS has its own threads.
        self._thread = OneThread()

    async def search(self, place: Place, queries: Vectors, depths: list[int]) -> list[list[Found]]:
        """The best documents of this part, for each query [B, d]."""
        return await self._thread.run(self._search, place, queries, depths)

    async def document(self, place: Place, document_id: str) -> Document | None:
        """A document, if it lies in this part."""
        return await self._thread.run(self._document, place, document_id)

    def _search(self, place: Place, queries: Vectors, depths: list[int]) -> list[list[Found]]:
        return self._collection(place).search(queries, depths)

    def _document(self, place: Place, document_id: str) -> Document | None:
        try:
            return self._collection(place).document(document_id)
        except KeyError:
            return None

    def _collection(self, place: Place) -> LiveCollection:
        if place not in self._open:
            self._open[place] = LiveCollection(
                self._store, place.corpus, place.changes, self._settings, self._part, self._parts
            )
            self._looked[place] = time.monotonic()
        elif time.monotonic() - self._looked[place] >= self._refresh_seconds:
            self._open[place].refresh()
            self._looked[place] = time.monotonic()
        return self._open[place]


async def search_parts(
    indexes: Sequence[DeploymentHandle], place: Place, queries: Vectors, depths: list[int]
) -> list[list[Found]]:
    """The best documents of a collection for each query [B, d], from all of its parts."""
    parts = await asyncio.gather(*(ask(index.search, place, queries, depths) for index in indexes))
    return [
        sorted((hit for hits in found for hit in hits), key=lambda hit: -hit.score)[:depth]
        for depth, *found in zip(depths, *parts, strict=True)
    ]


@serve.deployment
class Writer:
    """Gives changes their numbers and writes them. There is one of it, as numbers come from one hand."""

    def __init__(self, store: ArtifactStore, fold_changes: int) -> None:
        """Nothing is read yet.

        Args:
            store: where changes lie.
            fold_changes: a collection's changes are folded whenever so many have been made.
        """
        self._store = store
        self._fold_changes = fold_changes
        self._folding: set[asyncio.Task[None]] = set()
        self._last: dict[str, int] = {}
        self._turn = asyncio.Lock()

    async def upsert(self, place: Place, documents: list[Document], vectors: Vectors) -> int:
        """Add or replace documents with their vectors [n, d]; returns the change's number."""
        return await self._write(place, write_change, documents, vectors)

    async def delete(self, place: Place, ids: list[str]) -> int:
        """Delete documents; returns the change's number."""
        return await self._write(place, write_deletion, ids)

    async def _write(self, place: Place, write: Callable[..., None], *content: Any) -> int:
        async with self._turn:
            if place.changes not in self._last:
                self._last[place.changes] = await asyncio.to_thread(last_change, self._store, place.changes)
            number = self._last[place.changes] + 1
            await asyncio.to_thread(write, self._store, place.changes, number, *content)
            self._last[place.changes] = number
        if number % self._fold_changes == 0:
            task = asyncio.create_task(self._fold(place))
            self._folding.add(task)
            task.add_done_callback(self._folding.discard)
        return number

    async def _fold(self, place: Place) -> None:
        """Beside further changes, which do not wait for it."""
        try:
            await asyncio.to_thread(compact, self._store, place.changes)
        except Exception:
            log.exception("the changes of %s were not folded; the next fold does it", place.changes)
