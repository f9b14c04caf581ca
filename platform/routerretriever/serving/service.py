"""What the HTTP API offers: searches, embeddings, routes and changes, by one release."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

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
from routerretriever.errors import NotFound, UnknownName, WrongField
from routerretriever.serving.engine import Embedded, Engine
from routerretriever.serving.ports import (
    CollectionRef,
    ControllerPort,
    DesiredState,
    IndexPort,
    Release,
    WriterPort,
)
from routerretriever.serving.search import Plan, Searches
from routerretriever.serving.shadow import Shadows


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
                familiarity=why.familiarity,
                gate=why.familiarity,
                lexical_weight=self._engine.lexical_weight(weights),
                nearest=[Neighbour(**asdict(neighbour)) for neighbour in why.nearest],
            )
            for weights, why in await self._engine.explain(texts)
        ]

    async def search(self, request: SearchRequest, client: str = "") -> SearchResponse:
        """The best documents for a query, and who answered.

        Raises:
            UnknownName: there is no such collection or model.
            WrongField: something in the request does not fit.
            Overloaded: too many queries are waiting.
        """
        plan = Plan(request, self._collections(request))
        (embedded,) = await self._engine.embed([request.query], request.model, client)
        wanted = plan.wanted(embedded)
        found = await self._replica.searches.find(plan.refs, plan.mode, wanted, client)
        if request.highlight:  # texts may be long
            return await asyncio.to_thread(plan.answer, embedded, wanted, found)
        return plan.answer(embedded, wanted, found)

    async def shadow(self, request: SearchRequest, response: SearchResponse, seconds: float) -> None:
        """Perhaps have the challenger repeat a search that has been answered; returns at once."""
        challenger = self._replica.challenger()
        if challenger is not None and challenger.version != self.version:
            self._replica.shadows.offer(challenger, self._replica.busy, request, response, seconds)

    async def shadow_search(self, request: SearchRequest) -> SearchResponse:
        """The same search; past the queue that users' searches wait in."""
        plan = Plan(request, self._collections(request))
        (embedded,) = await self._engine.embed([request.query], request.model)
        wanted = plan.wanted(embedded)
        (found,) = await self._replica.index.find(plan.refs, plan.mode, [wanted])
        return plan.answer(embedded, wanted, found)

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

    def _collections(self, request: SearchRequest) -> dict[str, CollectionRef]:
        """The collections that a search means."""
        if request.collections is None:
            return dict([self._collection(request.collection)])
        if request.collection is not None:
            raise WrongField("collections", "stands beside `collection`; name them all in one of the two")
        return dict(self._collection(name, "collections") for name in request.collections)

    def _collection(self, name: str | None, field: str = "collection") -> tuple[str, CollectionRef]:
        """The collection named, or the only one."""
        if name is None and len(self._release.collections) == 1:
            (name,) = self._release.collections
        if name is None or name not in self._release.collections:
            raise UnknownName(field, name, self.collections)
        return name, self._release.collections[name]

    def _changed(self, number: int) -> ChangeResponse:
        return ChangeResponse(change=number, searchable_within_seconds=self._replica.settings.refresh_seconds)
