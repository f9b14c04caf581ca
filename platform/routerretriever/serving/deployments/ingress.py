"""The router deployment: takes HTTP requests, routes and embeds queries, has the index search."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from ray import serve
from ray.serve.handle import DeploymentHandle

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.bundle.model import RouterRetriever, Vectors
from routerretriever.client.schemas import (
    ChangeResponse,
    ExpertState,
    Neighbour,
    Route,
    SearchRequest,
    SearchResponse,
    ServiceState,
)
from routerretriever.config.recipe import Recipe
from routerretriever.datasets.collection import Document
from routerretriever.errors import NotFound, UnknownName
from routerretriever.index.live import Found
from routerretriever.serving.batching import Batcher
from routerretriever.serving.deployments.calls import OneThread, ask
from routerretriever.serving.deployments.index import Place, search_parts
from routerretriever.serving.deployments.metrics import Metrics
from routerretriever.serving.deployments.releases import Orders, Release, Report, replica_id
from routerretriever.serving.engine import Embedded, Engine
from routerretriever.serving.http.api import build_api
from routerretriever.serving.http.auth import Doorkeeper, Token
from routerretriever.serving.shadow import Shadows

if TYPE_CHECKING:
    from routerretriever.encoder.encoder import Encoder

log = logging.getLogger("ray.serve")

_ASK_SECONDS = 1.0


class Service:
    """What the HTTP API offers, of one release; requests keep the one that they began with."""

    def __init__(self, router: RouterBase, engine: Engine, release: Release) -> None:
        self._router = router
        self._engine = engine
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
        return list(self._release.places)

    async def embed(self, texts: Sequence[str], model: str) -> list[Embedded]:
        """Route and embed queries; see ``Engine.embed``."""
        return await self._engine.embed(texts, model)

    async def route(self, texts: Sequence[str]) -> list[Route]:
        """Which experts would answer, and why."""
        return [
            Route(
                expert=max(weights, key=weights.__getitem__),
                weights=weights,
                scores=why.scores,
                margin=why.margin,
                gate=why.familiarity,
                nearest=[Neighbour(**asdict(neighbour)) for neighbour in why.nearest],
            )
            for weights, why in await self._engine.explain(texts)
        ]

    async def search(
        self, query: str, collection: str | None, top_k: int, model: str
    ) -> tuple[str, Embedded, list[Found]]:
        """The collection searched, the query's embedding, and the documents found.

        Raises:
            UnknownName: there is no such collection or model.
            Overloaded: too many queries are waiting.
        """
        name, place = self.place(collection)
        (embedded,) = await self._engine.embed([query], model)
        (found,) = await self._router.searches.submit([(place, embedded.vector, top_k)])
        return name, embedded, found

    async def shadow(self, asked: SearchRequest, answer: SearchResponse, seconds: float) -> None:
        """Perhaps have the challenger do a search that has been answered here; returns at once."""
        challenger = self._router.challenger()
        if challenger is not None and challenger.version != self.version:
            self._router.shadows.offer(challenger, self._router.busy, asked, answer, seconds)

    async def shadow_search(
        self, query: str, collection: str, top_k: int, model: str
    ) -> tuple[str, list[str]]:
        """The first expert and the documents' ids; not by way of the queue that users' searches wait in."""
        _, place = self.place(collection)
        (embedded,) = await self._engine.embed([query], model)
        (found,) = await search_parts(self._router.indexes, place, embedded.vector[None], [top_k])
        return max(embedded.weights, key=embedded.weights.__getitem__), [hit.document.id for hit in found]

    async def upsert(self, collection: str, documents: list[Document]) -> ChangeResponse:
        """Add or replace documents of a collection."""
        _, place = self.place(collection)
        embedded = await self._engine.embed_documents([document.content for document in documents])
        vectors = np.stack([one.vector for one in embedded])
        return self._changed(await ask(self._router.writer.upsert, place, documents, vectors))

    async def delete(self, collection: str, ids: list[str]) -> ChangeResponse:
        """Delete documents of a collection."""
        _, place = self.place(collection)
        return self._changed(await ask(self._router.writer.delete, place, ids))

    async def document(self, collection: str, document_id: str) -> Document:
        """One document.

        Raises:
            UnknownName: there is no such collection or document.
        """
        name, place = self.place(collection)
        parts = await asyncio.gather(
            *(ask(index.document, place, document_id) for index in self._router.indexes)
        )
        for document in parts:
            if document is not None:
                return Document(*document)
        raise NotFound(f"id: {name} has no document {document_id!r}")

    async def state(self) -> ServiceState:
        """What is served, by all replicas."""
        return ServiceState(**await ask(self._router.releases.state))

    async def experts(self) -> list[ExpertState]:
        """The experts, and how much of the traffic each gets."""
        return [ExpertState(**expert) for expert in await ask(self._router.releases.experts)]

    def place(self, collection: str | None) -> tuple[str, Place]:
        """The collection named, or the only one."""
        if collection is None and len(self._release.places) == 1:
            (collection,) = self._release.places
        if collection is None or collection not in self._release.places:
            raise UnknownName("collection", collection, self.collections)
        return collection, self._release.places[collection]

    def _changed(self, number: int) -> ChangeResponse:
        seconds = self._router.recipe.serving.refresh_seconds
        return ChangeResponse(change=number, searchable_within_seconds=seconds)


class RouterBase:
    """A router replica, apart from HTTP."""

    async def __init__(  # type: ignore[misc]  # Ray awaits constructors
        self,
        recipe: Recipe,
        tokens: dict[str, Token],
        store: ArtifactStore,
        releases: DeploymentHandle,
        indexes: Sequence[DeploymentHandle],
        writer: DeploymentHandle,
    ) -> None:
        """Load what is to be served and run it once, so that the first query finds it warm."""
        self.recipe = recipe
        self.releases, self.indexes, self.writer = releases, list(indexes), writer
        self.metrics = Metrics()
        self.doorkeeper = Doorkeeper(tokens, recipe.serving.allow_anonymous)
        self._store = store
        self._thread = OneThread()
        sizes = recipe.serving.router
        self.searches: Batcher[tuple[Place, Vectors, int], list[Found]] = Batcher(
            self._search, sizes.max_batch_size, sizes.max_queue, passes=2
        )
        self.shadows = Shadows(
            recipe.serving.releases.shadow_share, recipe.serving.limits.seconds, self.metrics
        )
        self._encoder: Encoder | None = None
        self._engines: dict[int, Engine] = {}
        await self._obey(await ask(releases.orders))
        self._follower = asyncio.create_task(self._follow())

    def service(self) -> Service:
        """The release that the next request is answered by: the current one, or the challenger."""
        challenger = self.challenger()
        if challenger is not None and random.random() < self.recipe.serving.releases.challenger_share:
            return challenger
        return self._service(self._orders.current)

    def challenger(self) -> Service | None:
        """The release that is tried beside the current one."""
        return self._service(self._orders.challenger) if self._orders.challenger else None

    @property
    def busy(self) -> bool:
        """Whether anything waits for its turn."""
        return bool(self.searches.waiting or any(engine.waiting for engine in self._engines.values()))

    def _service(self, release: Release) -> Service:
        return Service(self, self._engines[release.version], release)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_ASK_SECONDS)
            try:
                await self._obey(await self.releases.orders.remote(self._report()))
            except Exception:
                # What is loaded goes on serving while its keeper is replaced.
                log.exception("could not learn what is to be served; asking again")

    async def _obey(self, orders: Orders) -> None:
        """Load what is new beside what is there, switch, and let go of what is old when it is drained."""
        wanted = {release.version: release for release in (orders.current, orders.challenger) if release}
        for version, release in wanted.items():
            if version not in self._engines:
                self._engines[version] = await self._load(release)
        self._orders = orders
        for version in self._engines.keys() - wanted.keys():
            await self._engines.pop(version).drained()

    async def _load(self, release: Release) -> Engine:
        packed = self.recipe.serving.placement == "shared"

        def load() -> RouterRetriever:
            return RouterRetriever(self._store.fetch(release.bundle_key), self._encoder, load_experts=packed)

        bundle = await asyncio.to_thread(load)
        self._encoder = bundle.encoder  # later bundles share it
        experts = None
        if not packed:
            experts = {name: serve.get_app_handle(app) for name, app in release.experts.items()}
        engine = Engine(bundle, self._thread, experts, self.recipe.serving.router, self.metrics)
        await engine.explain(["warm up"])
        if packed:
            await engine.embed(["warm up"], bundle.experts[0])
        return engine

    def _report(self) -> Report:
        weights = {version: engine.take_routed() for version, engine in self._engines.items()}
        return Report(replica_id(), tuple(self._engines), weights)

    async def _search(self, batch: list[tuple[Place, Vectors, int]]) -> list[list[Found]]:
        """Queries to one collection share a search."""
        found: list[list[Found]] = [[] for _ in batch]

        async def search(place: Place, rows: list[int]) -> None:
            vectors = np.stack([batch[row][1] for row in rows])
            answers = await search_parts(self.indexes, place, vectors, [batch[row][2] for row in rows])
            for row, answer in zip(rows, answers, strict=True):
                found[row] = answer

        places: dict[Place, list[int]] = {}
        for row, (place, _, _) in enumerate(batch):
            places.setdefault(place, []).append(row)
        with self.metrics.stage("search"):
            await asyncio.gather(*(search(place, rows) for place, rows in places.items()))
        return found


@serve.deployment
@serve.ingress()
class Router(RouterBase):
    """A router replica with the HTTP API."""

    def __serve_build_asgi_app__(self) -> Any:
        """Ray's name for what makes the application once the constructor is done."""
        return build_api(self.service, self.recipe.serving, self.doorkeeper, self.metrics)
