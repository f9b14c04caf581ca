"""The index as deployments: each searches one shard of every collection."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ray import serve
from ray.serve.handle import DeploymentHandle

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.errors import RouterRetrieverError
from routerretriever.index.changes import last_change
from routerretriever.index.documents import StoredDocument
from routerretriever.index.hybrid import Look, Whole, whole_of
from routerretriever.index.live import Found, LiveCollection, Wanted
from routerretriever.index.settings import IndexSettings
from routerretriever.serving.deployments.calls import call_with_retry
from routerretriever.serving.executor import SerialExecutor
from routerretriever.serving.ports import CollectionRef, Contents
from routerretriever.serving.questions import Questions
from routerretriever.types import Mode, Vectors

log = logging.getLogger("ray.serve")

R = TypeVar("R")

_LOOKS_KEPT = 64
_SWEEP_SECONDS = 60.0
_IN_USE_SECONDS = 60.0
"""A collection that was asked for within so long is kept up to date without being asked."""
_IDLE_SECONDS = 6 * 3600.0
"""A collection that nobody has asked for in so long is closed, as those of former releases."""
_ASKED_AFTER = 0.8
"""Share of the time after which changes must show when storage is asked for them."""


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
        self.opened: dict[CollectionRef, LiveCollection] = {}
        self._refreshed_at: dict[CollectionRef, float] = {}
        self._used_at: dict[CollectionRef, float] = {}
        self._follower: asyncio.Task[None] | None = None
        self._swept_at = time.monotonic()
        self._looks: OrderedDict[tuple[CollectionRef, str], tuple[int, list[Look]]] = OrderedDict()
        self._storage = Questions()
        # One thread: a collection must not change under a search. FAISS has its own threads.
        self._thread = SerialExecutor()

    async def look(self, collection: CollectionRef, wanted: list[Wanted], token: str) -> list[Whole]:
        """The greatest scores of this shard for each query; ``find`` goes on from there by the token."""
        return await self._in_turn(self._look, collection, wanted, token)

    async def find(
        self,
        collection: CollectionRef,
        mode: Mode,
        wanted: list[Wanted],
        wholes: list[Whole] | None = None,
        token: str = "",
    ) -> list[list[Found]]:
        """The best documents of this shard for each query; see ``LiveCollection.find``."""
        return await self._in_turn(self._find, collection, mode, wanted, wholes, token)

    async def document(self, collection: CollectionRef, document_id: str) -> StoredDocument | None:
        """A document, if it lies in this shard."""
        return await self._in_turn(self._document, collection, document_id)

    async def contents(self, collection: CollectionRef) -> Contents:
        """How far this shard has come."""
        return await self._in_turn(self._contents, collection)

    async def documents(self, collection: CollectionRef, offset: int, limit: int) -> list[StoredDocument]:
        """Documents of this shard by page."""
        return await self._in_turn(self._documents, collection, offset, limit)

    async def _in_turn(self, work: Callable[..., R], *args: Any) -> R:
        """Do something on the thread of searches."""
        if self._refresh_seconds and (self._follower is None or self._follower.done()):
            self._follower = asyncio.create_task(self._follow())
        return await self._thread.run(work, *args)

    async def _follow(self) -> None:
        """Keep collections in use up to date, so that searches need not wait for storage."""
        while True:
            await asyncio.sleep(self._refresh_seconds * _ASKED_AFTER)
            now = time.monotonic()
            in_use = [ref for ref, at in list(self._used_at.items()) if now - at < _IN_USE_SECONDS]
            await asyncio.gather(*map(self._take_news, in_use))

    async def _take_news(self, collection: CollectionRef) -> None:
        live, asked_at = self.opened.get(collection), time.monotonic()
        if live is None:
            return
        try:
            if await asyncio.to_thread(live.has_news):
                await self._thread.run(live.refresh)
        except (RouterRetrieverError, OSError) as error:
            log.warning("%s", error)
            return  # the next search asks, and fails if it must
        if collection in self.opened:
            self._refreshed_at[collection] = asked_at

    def _look(self, collection: CollectionRef, wanted: list[Wanted], token: str) -> list[Whole]:
        live = self._collection(collection)
        looks = live.look(wanted)
        self._looks[collection, token] = live.change, looks
        while len(self._looks) > _LOOKS_KEPT:
            self._looks.popitem(last=False)
        return [look.whole(each.fusion) for each, look in zip(wanted, looks, strict=True)]

    def _find(
        self,
        collection: CollectionRef,
        mode: Mode,
        wanted: list[Wanted],
        wholes: list[Whole] | None,
        token: str,
    ) -> list[list[Found]]:
        live = self._collection(collection)
        # Another replica may have been asked, or documents have changed since.
        change, looks = self._looks.pop((collection, token), (None, None))
        return live.find(mode, wanted, wholes, looks if change == live.change else None)

    def _document(self, collection: CollectionRef, document_id: str) -> StoredDocument | None:
        try:
            return self._collection(collection).document(document_id)
        except KeyError:
            return None

    def _contents(self, collection: CollectionRef) -> Contents:
        live = self._collection(collection)
        return Contents(len(live), live.change, live.rows)

    def _documents(self, collection: CollectionRef, offset: int, limit: int) -> list[StoredDocument]:
        return self._collection(collection).documents(offset, limit)

    def _collection(self, collection: CollectionRef) -> LiveCollection:
        self._close_unused()
        self._used_at[collection] = time.monotonic()
        if collection not in self.opened:
            self.opened[collection] = LiveCollection(
                self._store,
                collection.corpus,
                collection.changes,
                self._settings,
                self._part,
                self._parts,
                collection.lexical,
                collection.passages,
            )
            self._refreshed_at[collection] = time.monotonic()
        elif time.monotonic() - self._refreshed_at[collection] >= self._refresh_seconds:
            live = self.opened[collection]
            if self._storage.ask(("news", collection), live.has_news):
                live.refresh()
            self._refreshed_at[collection] = time.monotonic()
        return self.opened[collection]

    def _close_unused(self) -> None:
        """Let go of collections that were deleted, were never filled, or are not asked for any more."""
        now = time.monotonic()
        if now - self._swept_at < _SWEEP_SECONDS:
            return
        self._swept_at = now
        for ref in list(self.opened):
            unused = now - self._used_at[ref]
            if unused >= _IDLE_SECONDS or (unused >= _SWEEP_SECONDS and self._is_known_empty(ref)):
                del self.opened[ref], self._refreshed_at[ref], self._used_at[ref]

    def _is_known_empty(self, ref: CollectionRef) -> bool:
        """Whether a created collection has no changes in storage. Does not wait: the next sweep may know."""

        def is_empty() -> bool:
            return last_change(self._store, ref.changes) == 0

        return bool(ref.created_for) and self._storage.ask(("empty", ref), is_empty, patient=False)


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
        first, and keep what they found for the second call. Equal scores come in the order of collections,
        then of shards, then of rows.
        """
        places = [(at, ref, shard) for at, ref in enumerate(collections) for shard in self._shards]
        wholes, token = None, ""
        if mode == "hybrid" and len(places) > 1:
            token = uuid.uuid4().hex
            looked = await asyncio.gather(
                *(call_with_retry(shard.look, ref, wanted, token) for _, ref, shard in places)
            )
            wholes = [whole_of(each) for each in zip(*looked, strict=True)]
        shards = await asyncio.gather(
            *(call_with_retry(shard.find, ref, mode, wanted, wholes, token) for _, ref, shard in places)
        )
        merged = []
        for query, *found in zip(wanted, *shards, strict=True):
            hits = [(at, hit) for (at, _, _), own in zip(places, found, strict=True) for hit in own]
            merged.append(_merged(query, hits))
        return merged

    async def document(self, collection: CollectionRef, document_id: str) -> StoredDocument | None:
        """A document, from the shard that has it."""
        found = await asyncio.gather(
            *(call_with_retry(shard.document, collection, document_id) for shard in self._shards)
        )
        return next((document for document in found if document is not None), None)

    async def contents(self, collection: CollectionRef) -> Contents:
        """How many documents a collection has."""
        found: list[Contents] = await asyncio.gather(
            *(call_with_retry(shard.contents, collection) for shard in self._shards)
        )
        return Contents(
            sum(each.documents for each in found),
            max(each.change for each in found),
            sum(each.rows for each in found),
        )

    async def documents(self, collection: CollectionRef, offset: int, limit: int) -> list[StoredDocument]:
        """Documents by page: those of the first shard, then those of the next."""
        page: list[StoredDocument] = []
        for shard in self._shards:
            own: list[StoredDocument] = await call_with_retry(
                shard.documents, collection, offset, limit - len(page)
            )
            page += own
            if len(page) == limit:
                break
            held: Contents = await call_with_retry(shard.contents, collection)
            offset = max(0, offset - held.documents)
        return page


def _merged(wanted: Wanted, hits: list[tuple[int, Found]]) -> list[tuple[int, Found]]:
    """The best of what shards have found; passages of one document may lie in several."""
    ranked = sorted(hits, key=lambda each: -each[1].score)
    if wanted.group_by_parent is not False:
        best: dict[tuple[int, str], tuple[int, Found]] = {}
        for at, hit in ranked:
            best.setdefault((at, wanted.group(hit.document.id, hit.passage)), (at, hit))
        ranked = list(best.values())
    return ranked[: wanted.depth]
