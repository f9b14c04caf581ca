"""What the HTTP API offers: searches, embeddings, routes and changes, by one release."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from routerretriever.bundle.model import Vectors
from routerretriever.client.schemas import (
    ChangeResponse,
    ExpertState,
    Neighbour,
    Route,
    SearchRequest,
    SearchResponse,
    ServiceState,
)
from routerretriever.config.serving import ServingSettings
from routerretriever.datasets.collection import Document
from routerretriever.errors import NotFound, UnknownName
from routerretriever.index.live import Found
from routerretriever.serving.batching import Batcher
from routerretriever.serving.engine import Embedded, Engine
from routerretriever.serving.ports import (
    CollectionRef,
    ControllerPort,
    DesiredState,
    IndexPort,
    MetricsPort,
    Release,
    WriterPort,
)
from routerretriever.serving.shadow import Shadows


class Searches:
    """Searches that arrive together; those of one collection become one call of the index."""

    def __init__(self, index: IndexPort, settings: ServingSettings, metrics: MetricsPort) -> None:
        self._index = index
        self._metrics = metrics
        sizes = settings.router
        self._batcher: Batcher[tuple[CollectionRef, Vectors, int], list[Found]] = Batcher(
            self._run, sizes.max_batch_size, sizes.max_queue, passes=2
        )

    @property
    def waiting(self) -> int:
        """Searches that wait for the index."""
        return self._batcher.waiting

    async def search(
        self, collection: CollectionRef, vector: Vectors, depth: int, client: str = ""
    ) -> list[Found]:
        """The best documents for a query's vector [d]."""
        (found,) = await self._batcher.submit([(collection, vector, depth)], client=client)
        return found

    async def _run(self, batch: list[tuple[CollectionRef, Vectors, int]]) -> list[list[Found]]:
        found: list[list[Found]] = [[] for _ in batch]

        async def search(collection: CollectionRef, rows: list[int]) -> None:
            vectors = np.stack([batch[row][1] for row in rows])
            answers = await self._index.search(collection, vectors, [batch[row][2] for row in rows])
            for row, answer in zip(rows, answers, strict=True):
                found[row] = answer

        rows_of: dict[CollectionRef, list[int]] = {}
        for row, (collection, _, _) in enumerate(batch):
            rows_of.setdefault(collection, []).append(row)
        with self._metrics.stage("search"):
            await asyncio.gather(*(search(collection, rows) for collection, rows in rows_of.items()))
        return found


@dataclass
class Replica:
    """What all releases in one ingress replica share, and the engines that are loaded."""

    settings: ServingSettings
    index: IndexPort
    writer: WriterPort
    controller: ControllerPort
    searches: Searches
    shadows: Shadows
    desired: DesiredState
    engines: dict[int, Engine] = field(default_factory=dict)
    """By bundle version."""
    random: Callable[[], float] = random.random

    def service(self) -> Service:
        """The release that answers the next request: the current one, or by its share the challenger."""
        challenger = self.challenger()
        if challenger is not None and self.random() < self.settings.releases.challenger_share:
            return challenger
        return Service(self, self.desired.current)

    def challenger(self) -> Service | None:
        """The release that is tried beside the current one."""
        return Service(self, self.desired.challenger) if self.desired.challenger else None

    @property
    def busy(self) -> bool:
        """Whether anything waits for its turn."""
        return bool(self.searches.waiting or any(engine.waiting for engine in self.engines.values()))


class Service:
    """One release at work; requests keep the one that they began with."""

    def __init__(self, replica: Replica, release: Release) -> None:
        self._replica = replica
        self._engine = replica.engines[release.version]
        self._release = release

    @property
    def version(self) -> int:
        """The bundle's number in the registry."""
        return self._release.version

    @property
    def models(self) -> list[str]:
        """What a request may name as its model."""
        return self._engine.models

    @property
    def collections(self) -> list[str]:
        """What can be searched."""
        return list(self._release.collections)

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        return self._engine.bundle.encoder.dimension

    async def embed(self, texts: Sequence[str], model: str, client: str = "") -> list[Embedded]:
        """Route and embed queries; see ``Engine.embed``."""
        return await self._engine.embed(texts, model, client)

    async def route(self, texts: Sequence[str]) -> list[Route]:
        """Which experts would answer, and why."""
        return [
            Route(
                expert=max(weights, key=weights.__getitem__),
                weights=weights,
                scores=why.scores,
                margin=why.margin,
                familiarity=why.gate,
                gate=why.gate,
                nearest=[Neighbour(**asdict(neighbour)) for neighbour in why.nearest],
            )
            for weights, why in await self._engine.explain(texts)
        ]

    async def search(
        self, query: str, collection: str | None, top_k: int, model: str, client: str = ""
    ) -> tuple[str, Embedded, list[Found]]:
        """The collection searched, the query's embedding, and the documents found.

        Raises:
            UnknownName: there is no such collection or model.
            Overloaded: too many queries are waiting.
        """
        name, ref = self._collection(collection)
        (embedded,) = await self._engine.embed([query], model, client)
        return name, embedded, await self._replica.searches.search(ref, embedded.vector, top_k, client)

    async def shadow(self, request: SearchRequest, response: SearchResponse, seconds: float) -> None:
        """Perhaps have the challenger repeat a search that has been answered; returns at once."""
        challenger = self._replica.challenger()
        if challenger is not None and challenger.version != self.version:
            self._replica.shadows.offer(challenger, self._replica.busy, request, response, seconds)

    async def shadow_search(
        self, query: str, collection: str, top_k: int, model: str
    ) -> tuple[str, list[str]]:
        """The first expert and the documents' ids; past the queue that users' searches wait in."""
        _, ref = self._collection(collection)
        (embedded,) = await self._engine.embed([query], model)
        (found,) = await self._replica.index.search(ref, embedded.vector[None], [top_k])
        return max(embedded.weights, key=embedded.weights.__getitem__), [hit.document.id for hit in found]

    async def upsert(self, collection: str, documents: list[Document], client: str = "") -> ChangeResponse:
        """Add or replace documents of a collection."""
        _, ref = self._collection(collection)
        contents = [document.content for document in documents]
        embedded = await self._engine.embed_documents(contents, client)
        vectors = np.stack([one.vector for one in embedded])
        return self._changed(await self._replica.writer.upsert(ref, documents, vectors))

    async def delete(self, collection: str, ids: list[str]) -> ChangeResponse:
        """Delete documents of a collection."""
        _, ref = self._collection(collection)
        return self._changed(await self._replica.writer.delete(ref, ids))

    async def document(self, collection: str, document_id: str) -> Document:
        """One document.

        Raises:
            UnknownName: there is no such collection.
            NotFound: it has no such document.
        """
        name, ref = self._collection(collection)
        document = await self._replica.index.document(ref, document_id)
        if document is None:
            raise NotFound(f"id: {name} has no document {document_id!r}")
        return Document(*document)

    async def state(self) -> ServiceState:
        """What is served, by all replicas."""
        return ServiceState(**await self._replica.controller.state())

    async def experts(self) -> list[ExpertState]:
        """The experts, and how much of the traffic each gets."""
        return [ExpertState(**expert) for expert in await self._replica.controller.experts()]

    def _collection(self, name: str | None) -> tuple[str, CollectionRef]:
        """The collection named, or the only one."""
        if name is None and len(self._release.collections) == 1:
            (name,) = self._release.collections
        if name is None or name not in self._release.collections:
            raise UnknownName("collection", name, self.collections)
        return name, self._release.collections[name]

    def _changed(self, number: int) -> ChangeResponse:
        return ChangeResponse(change=number, searchable_within_seconds=self._replica.settings.refresh_seconds)
