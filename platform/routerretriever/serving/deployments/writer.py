"""The writer as a deployment: it numbers the changes, and keeps the catalogue of created collections."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ray import serve
from ray.serve.handle import DeploymentHandle

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.datasets.collection import Document
from routerretriever.index.changes import NumberTaken, compact, last_change, write_change, write_deletion
from routerretriever.serving.catalogue import Catalogue
from routerretriever.serving.deployments.calls import call_with_retry
from routerretriever.serving.ports import CollectionRef
from routerretriever.types import Vectors

log = logging.getLogger("ray.serve")

R = TypeVar("R")


class WriterClient:
    """The writer's deployment as a ``WriterPort``."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def created(self, encoder_fingerprint: str) -> dict[str, CollectionRef]:
        """The created collections of a base encoder, by name."""
        found: dict[str, CollectionRef] = await call_with_retry(self._handle.created, encoder_fingerprint)
        return found

    async def create(self, name: str, ref: CollectionRef, dimension: int) -> bool:
        """Create a collection without documents; False if another has its name."""
        return bool(await call_with_retry(self._handle.create, name, ref, dimension))

    async def weigh(self, name: str, ref: CollectionRef, weight: float) -> bool:
        """Set the weight of words in a created collection; False if it was dropped."""
        return bool(await call_with_retry(self._handle.weigh, name, ref, weight))

    async def drop(self, name: str, ref: CollectionRef) -> None:
        """Delete a created collection and its documents."""
        await call_with_retry(self._handle.drop, name, ref)

    async def upsert(
        self,
        collection: CollectionRef,
        documents: list[Document],
        vectors: Vectors,
        passages: list[list[str]] | None = None,
    ) -> int | None:
        """Add or replace documents; None if the collection was dropped. See ``WriterPort``."""
        number: int | None = await call_with_retry(
            self._handle.upsert, collection, documents, vectors, passages
        )
        return number

    async def delete(self, collection: CollectionRef, ids: list[str]) -> int | None:
        """Delete documents; None if the collection was dropped."""
        number: int | None = await call_with_retry(self._handle.delete, collection, ids)
        return number


@serve.deployment
class Writer:
    """Gives changes their numbers and writes them. There is one of it, as numbers come from one hand."""

    def __init__(self, store: ArtifactStore, compact_every: int, service: str) -> None:
        """Nothing is read yet.

        Args:
            store: where changes lie.
            compact_every: a collection's changes are compacted whenever so many have been made.
            service: whose catalogue of created collections this is.
        """
        self._store = store
        self._compact_every = compact_every
        self._service = service
        self.tasks: set[asyncio.Task[Any]] = set()
        self._last: dict[str, int] = {}
        self._catalogues: dict[str, Catalogue] = {}
        self._turn = asyncio.Lock()

    async def created(self, encoder_fingerprint: str) -> dict[str, CollectionRef]:
        """The created collections of a base encoder, by name."""
        if encoder_fingerprint not in self._catalogues:
            async with self._turn:
                await self._catalogue(encoder_fingerprint)
        return self._catalogues[encoder_fingerprint].collections

    async def create(self, name: str, ref: CollectionRef, dimension: int) -> bool:
        """Create a collection without documents; False if another has its name."""
        return await self._in_turn(self._change_catalogue, ref, Catalogue.create, name, ref, dimension)

    async def weigh(self, name: str, ref: CollectionRef, weight: float) -> bool:
        """Set the weight of words in a created collection; False if it was dropped."""
        return await self._in_turn(self._change_catalogue, ref, Catalogue.weigh, name, ref, weight)

    async def drop(self, name: str, ref: CollectionRef) -> None:
        """Delete a created collection and its documents."""
        await self._in_turn(self._change_catalogue, ref, Catalogue.drop, name, ref)
        self._last.pop(ref.changes, None)

    async def upsert(
        self,
        collection: CollectionRef,
        documents: list[Document],
        vectors: Vectors,
        passages: list[list[str]] | None = None,
    ) -> int | None:
        """Add or replace documents, or their passages; returns the change's number."""
        return await self._in_turn(self._write, collection, write_change, documents, vectors, passages)

    async def delete(self, collection: CollectionRef, ids: list[str]) -> int | None:
        """Delete documents; returns the change's number."""
        return await self._in_turn(self._write, collection, write_deletion, ids)

    async def _in_turn(self, work: Callable[..., Coroutine[Any, Any, R]], *content: Any) -> R:
        """Make one change after the other.

        One that has begun is carried out even if who asked for it hangs up: its thread cannot be stopped, and
        the next change must not take its number.
        """
        await self._turn.acquire()

        async def whole() -> R:
            try:
                return await work(*content)
            finally:
                self._turn.release()

        return await asyncio.shield(self._start(whole()))

    def _start(self, work: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
        task = asyncio.create_task(work)
        self.tasks.add(task)  # the event loop holds tasks weakly
        task.add_done_callback(self.tasks.discard)
        return task

    async def _change_catalogue(self, ref: CollectionRef, change: Callable[..., R], *content: Any) -> R:
        catalogue = await self._catalogue(ref.created_for)
        return await asyncio.to_thread(change, catalogue, *content)

    async def _catalogue(self, encoder_fingerprint: str) -> Catalogue:
        if encoder_fingerprint not in self._catalogues:
            name = f"collections-{self._service}-{encoder_fingerprint}"
            self._catalogues[encoder_fingerprint] = await asyncio.to_thread(Catalogue, self._store, name)
        return self._catalogues[encoder_fingerprint]

    async def _write(
        self, collection: CollectionRef, write: Callable[..., None], *content: Any
    ) -> int | None:
        key = collection.changes
        if await self._is_dropped(collection):
            return None  # since it was looked up
        number = await self._next_number(key)
        try:
            await asyncio.to_thread(write, self._store, key, number, *content)
        except NumberTaken:  # another service on this storage writes to the collection too
            number = await self._next_number(key)
            await asyncio.to_thread(write, self._store, key, number, *content)
        self._last[key] = number
        if number % self._compact_every == 0:
            self._start(self._compact(collection))
        return number

    async def _next_number(self, key: str) -> int:
        # Not known while a change is written: of one that fails, the file may be there or not.
        last = self._last.pop(key, None)
        if last is None:
            last = await asyncio.to_thread(last_change, self._store, key)
        return last + 1

    async def _is_dropped(self, collection: CollectionRef) -> bool:
        fingerprint = collection.created_for
        return bool(fingerprint) and not (await self._catalogue(fingerprint)).holds(collection)

    async def _remove_if_dropped(self, collection: CollectionRef) -> bool:
        """Compaction may have written a checkpoint after the collection was deleted."""
        is_dropped = await self._is_dropped(collection)
        if is_dropped:
            await asyncio.to_thread(self._store.delete, collection.changes)
        return is_dropped

    async def _compact(self, collection: CollectionRef) -> None:
        """Beside further changes, which do not wait for it."""
        is_dropped = False
        try:
            try:
                await asyncio.to_thread(compact, self._store, collection.changes)
            finally:  # it fails where its files are deleted meanwhile
                if collection.created_for:
                    is_dropped = await self._in_turn(self._remove_if_dropped, collection)
        except Exception:
            if is_dropped:
                return
            log.exception(
                "the changes of %s were not compacted; the next compaction does it", collection.changes
            )
