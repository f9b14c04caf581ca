"""The index as deployments: each searches one shard of every collection. One writer numbers the changes."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.bundle.model import Vectors
from routerretriever.datasets.collection import Document
from routerretriever.index.changes import compact, last_change, write_change, write_deletion
from routerretriever.index.hybrid import Look, Tops
from routerretriever.index.live import Found, LiveCollection, Wanted
from routerretriever.index.settings import IndexSettings
from routerretriever.serving.deployments.calls import call_with_retry
from routerretriever.serving.executor import SerialExecutor
from routerretriever.serving.ports import CollectionRef
from routerretriever.types import Mode

log = logging.getLogger("ray.serve")

_LOOKS_KEPT = 64


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
        """Nothing is opened yet: the release controller searches every collection before anybody else does.

        Args:
            settings: kind of index.
            store: where corpora lie.
            refresh_seconds: changes are looked for at most this often.
            part: the shard of every collection that is searched here.
            parts: how many there are.
        """
        self._settings = settings
        self._store = store
        self._refresh_seconds = refresh_seconds
        self._part, self._parts = part, parts
        self._open: dict[CollectionRef, LiveCollection] = {}
        self._refreshed_at: dict[CollectionRef, float] = {}
        self._looks: OrderedDict[tuple[CollectionRef, str], tuple[int, list[Look]]] = OrderedDict()
        # One thread: a collection must not change under a search. FAISS has its own threads.
        self._thread = SerialExecutor()

    async def look(self, collection: CollectionRef, wanted: list[Wanted], token: str) -> list[Tops]:
        """The greatest scores of this shard for each query; ``find`` goes on from there by the token."""
        return await self._thread.run(self._look, collection, wanted, token)

    async def find(
        self,
        collection: CollectionRef,
        mode: Mode,
        wanted: list[Wanted],
        tops: list[Tops] | None = None,
        token: str = "",
    ) -> list[list[Found]]:
        """The best documents of this shard for each query; see ``LiveCollection.find``."""
        return await self._thread.run(self._find, collection, mode, wanted, tops, token)

    async def document(self, collection: CollectionRef, document_id: str) -> Document | None:
        """A document, if it lies in this shard."""
        return await self._thread.run(self._document, collection, document_id)

    def _look(self, collection: CollectionRef, wanted: list[Wanted], token: str) -> list[Tops]:
        live = self._collection(collection)
        looks = live.look(wanted)
        self._looks[collection, token] = live.change, looks
        while len(self._looks) > _LOOKS_KEPT:
            self._looks.popitem(last=False)
        return [look.tops for look in looks]

    def _find(
        self,
        collection: CollectionRef,
        mode: Mode,
        wanted: list[Wanted],
        tops: list[Tops] | None,
        token: str,
    ) -> list[list[Found]]:
        live = self._collection(collection)
        # Another replica may have been asked, or documents have changed since.
        change, looks = self._looks.pop((collection, token), (None, None))
        return live.find(mode, wanted, tops, looks if change == live.change else None)

    def _document(self, collection: CollectionRef, document_id: str) -> Document | None:
        try:
            return self._collection(collection).document(document_id)
        except KeyError:
            return None

    def _collection(self, collection: CollectionRef) -> LiveCollection:
        if collection not in self._open:
            self._open[collection] = LiveCollection(
                self._store,
                collection.corpus,
                collection.changes,
                self._settings,
                self._part,
                self._parts,
                collection.lexical,
            )
            self._refreshed_at[collection] = time.monotonic()
        elif time.monotonic() - self._refreshed_at[collection] >= self._refresh_seconds:
            self._open[collection].refresh()
            self._refreshed_at[collection] = time.monotonic()
        return self._open[collection]


class IndexShards:
    """All shards of every collection: an ``IndexPort`` over their deployments."""

    def __init__(self, shards: Sequence[DeploymentHandle]) -> None:
        self._shards = list(shards)

    async def search(
        self, collection: CollectionRef, queries: Vectors, depths: list[int]
    ) -> list[list[Found]]:
        """The best documents of a collection for each query [B, d], by vectors."""
        wanted = [Wanted("", *each) for each in zip(queries, depths, strict=True)]
        found = await self.find((collection,), "dense", wanted)
        return [[hit for _, hit in hits] for hits in found]

    async def find(
        self, collections: tuple[CollectionRef, ...], mode: Mode, wanted: list[Wanted]
    ) -> list[list[tuple[int, Found]]]:
        """The best documents of several collections together, each with its collection's position.

        Fusing needs the greatest scores of all shards. Where there are several, they are asked for those
        first, and keep what they found for the second call.
        """
        places = [(at, ref, shard) for at, ref in enumerate(collections) for shard in self._shards]
        tops, token = None, ""
        if mode == "hybrid" and len(places) > 1:
            token = uuid.uuid4().hex
            looked = await asyncio.gather(
                *(call_with_retry(shard.look, ref, wanted, token) for _, ref, shard in places)
            )
            tops = [Tops(*map(max, zip(*each, strict=True))) for each in zip(*looked, strict=True)]
        shards = await asyncio.gather(
            *(call_with_retry(shard.find, ref, mode, wanted, tops, token) for _, ref, shard in places)
        )
        merged = []
        for query, *found in zip(wanted, *shards, strict=True):
            hits = [(at, hit) for (at, _, _), own in zip(places, found, strict=True) for hit in own]
            merged.append(sorted(hits, key=lambda each: -each[1].score)[: query.depth])
        return merged

    async def document(self, collection: CollectionRef, document_id: str) -> Document | None:
        """A document, from the shard that has it."""
        found = await asyncio.gather(
            *(call_with_retry(shard.document, collection, document_id) for shard in self._shards)
        )
        return next((document for document in found if document is not None), None)


class WriterClient:
    """The writer's deployment as a ``WriterPort``."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def upsert(self, collection: CollectionRef, documents: list[Document], vectors: Vectors) -> int:
        """Add or replace documents with their vectors [n, d]."""
        return int(await call_with_retry(self._handle.upsert, collection, documents, vectors))

    async def delete(self, collection: CollectionRef, ids: list[str]) -> int:
        """Delete documents."""
        return int(await call_with_retry(self._handle.delete, collection, ids))


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

    async def upsert(self, collection: CollectionRef, documents: list[Document], vectors: Vectors) -> int:
        """Add or replace documents with their vectors [n, d]; returns the change's number."""
        return await self._write(collection, write_change, documents, vectors)

    async def delete(self, collection: CollectionRef, ids: list[str]) -> int:
        """Delete documents; returns the change's number."""
        return await self._write(collection, write_deletion, ids)

    async def _write(self, collection: CollectionRef, write: Callable[..., None], *content: Any) -> int:
        async with self._turn:
            if collection.changes not in self._last:
                self._last[collection.changes] = await asyncio.to_thread(
                    last_change, self._store, collection.changes
                )
            number = self._last[collection.changes] + 1
            await asyncio.to_thread(write, self._store, collection.changes, number, *content)
            self._last[collection.changes] = number
        if number % self._fold_changes == 0:
            task = asyncio.create_task(self._fold(collection))
            self._folding.add(task)
            task.add_done_callback(self._folding.discard)
        return number

    async def _fold(self, collection: CollectionRef) -> None:
        """Beside further changes, which do not wait for it."""
        try:
            await asyncio.to_thread(compact, self._store, collection.changes)
        except Exception:
            log.exception("the changes of %s were not folded; the next fold does it", collection.changes)
