"""A stand-in for the service, the HTTP application around it, and ways to ask it in this process."""

from __future__ import annotations

import asyncio

import httpx
import numpy as np
from routerretriever.client.schemas import (
    Calibrated,
    ChangeResponse,
    CollectionState,
    ExpertState,
    Neighbour,
    Route,
)
from routerretriever.config.serving import FeedbackSettings, LimitSettings, ServingSettings
from routerretriever.datasets.collection import Document
from routerretriever.errors import (
    NotFound,
    Refused,
    UnknownName,
)
from routerretriever.index.documents import StoredDocument
from routerretriever.index.live import Found
from routerretriever.index.settings import LexicalSettings
from routerretriever.serving.deployments.metrics import Metrics
from routerretriever.serving.engine import Embedded
from routerretriever.serving.http.api import build_api
from routerretriever.serving.http.auth import Authenticator
from routerretriever.serving.ports import CollectionRef, Contents
from routerretriever.serving.search import Plan

REF = CollectionRef("corpora/fruit", "changes/fruit", LexicalSettings())


class StandIn:
    """What the API asks of a service, by plain means."""

    version = 7
    dimensions = (3, 2)
    models = ("router", "base", "documents", "fruit")
    collections = ("fruit", "metal")

    def __init__(self):
        self.stored = {"d1": Document("d1", "fig", "a fruit")}
        self.hold: asyncio.Event | None = None
        self.clients: list[str] = []

    def tokens(self, texts, model="router"):
        return sum(map(len, texts))

    async def embed(self, texts, model, access):
        self.clients.append(access.client)
        if model not in self.models:
            raise UnknownName("model", model, self.models)
        if self.hold is not None:
            await self.hold.wait()
        return [
            Embedded(np.full(3, len(text), np.float32), {"fruit": 1.0}, len(text), len(text) > 40)
            for text in texts
        ]

    def cut(self, vector, dimensions):
        return vector[:dimensions]

    async def require_readable(self, name, access):
        visible = [each for each in self.collections if access.reads(each)]
        if name not in visible:
            raise UnknownName("collection", name, visible)

    async def route(self, texts, access, collection=None):
        near = [Neighbour(dataset="fruit", query="a fig?", similarity=0.5)]
        return [
            Route(
                expert="fruit",
                weights={"fruit": 1.0},
                scores={"fruit": 0.1},
                margin=None,
                gate=0.5,
                nearest=near,
            )
            for _ in texts
        ]

    async def search(self, request, access):
        if request.collection not in self.collections:
            raise UnknownName("collection", request.collection, self.collections)
        plan = Plan(request, {request.collection: REF})
        (embedded,) = await self.embed([request.query], request.model, access)
        found = [(0, Found(0.5, one, 0.5, 0.1)) for one in self.stored.values()]
        return plan.answer(embedded, plan.wanted(embedded, 0.1, -1.0), found[: request.wanted])

    async def shadow(self, asked, access, answer, seconds):
        pass

    async def upsert(self, collection, documents, access, allow):
        self.stored.update({document.id: document for document in documents})
        return ChangeResponse(change=1, searchable_within_seconds=1)

    async def delete(self, collection, ids, access):
        for document_id in ids:
            self.stored.pop(document_id, None)
        return ChangeResponse(change=2, searchable_within_seconds=1)

    async def document(self, collection, document_id, access):
        raise NotFound(f"id: {collection} has no document {document_id!r}")

    async def documents(self, collection, offset, limit, access):
        page = [StoredDocument(one, None) for one in self.stored.values()]
        return Contents(len(page), 0, len(page)), page[offset : offset + limit]

    async def collection_states(self, access):
        return [await self.collection_state(name, access) for name in self.collections]

    async def collection_state(self, name, access):
        if name not in self.collections:
            raise UnknownName("collection", name, self.collections)
        return CollectionState(name=name, documents=1, change=0, lexical=None, created=False, writable=True)

    async def create(self, request, access):
        raise Refused(f"name: there is a collection {request.name!r} already")

    async def calibrate(self, name, queries, access):
        await self.collection_state(name, access)
        return Calibrated(collection=name, queries=len(queries), lexical_weight=0.2, ndcg_at_10={"0.2": 0.5})

    async def drop(self, name, access):
        await self.collection_state(name, access)

    async def experts(self):
        common = {"version": "0123", "registered_version": 3, "expected_share": 0.4, "live_share": None}
        return [ExpertState(name="fruit", replicas={"STARTING": 1}, **common)]

    async def state(self, access):
        raise RuntimeError("a mistake of ours, with a secret in it")


def application(service, tokens=None, allow_anonymous=False, feedback=None, **limits):
    """The application over a service; ``feedback`` is the log where it keeps what users mark, if it does."""
    kept = None if feedback is None else FeedbackSettings()
    serving = ServingSettings(limits=LimitSettings(**limits), feedback=kept)
    authenticator = Authenticator(tokens or {}, allow_anonymous)
    return build_api(lambda _: service, serving, authenticator, Metrics(), feedback)


def sent_to(app, client=("127.0.0.1", 1)):
    return httpx.ASGITransport(app=app, client=client, raise_app_exceptions=False)


def caller(app, client=("127.0.0.1", 1), **options):
    return httpx.AsyncClient(transport=sent_to(app, client), base_url="http://localhost", **options)


def ask(app, method, path, **options):
    async def once():
        async with caller(app) as http:
            return await http.request(method, path, **options)

    return asyncio.run(once())
