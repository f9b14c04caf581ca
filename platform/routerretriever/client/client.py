"""A client of the service, for programs: ``Client``, and ``AsyncClient`` with the same methods to await.

    with Client("http://localhost:8000", token="...") as client:
        hits = client.search("undo my last commit", collection="shell").results

A request that is refused for load, or meets a replica or a proxy that is being replaced, is sent again for a
while; only creating and deleting a collection is not.
"""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self, TypedDict, Unpack

import httpx
import numpy as np
from numpy.typing import NDArray

from routerretriever.client.schemas import (
    Calibrated,
    ChangeResponse,
    CollectionState,
    DocumentOut,
    DocumentsResponse,
    EmbeddingsResponse,
    ExpertState,
    FeedbackResponse,
    ForgetResponse,
    Route,
    RouteResponse,
    SearchResponse,
    ServiceState,
)
from routerretriever.types import ROUTED_MODEL, Mode

Vectors = NDArray[np.float32]
Document = Mapping[str, Any]
"""``id``, ``text`` and, if there are any, ``title`` and ``metadata``."""

_PASSING = (429, 502, 503)
_JSON = "application/json"
_COLLECTIONS = "/v1/collections"
_DEFAULT_LEXICAL: Mapping[str, Any] = MappingProxyType({})
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 2.0


class ServiceError(RuntimeError):
    """The service answered with an error; the message is the service's own."""

    def __init__(self, response: httpx.Response) -> None:
        try:
            message = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = response.text[:200]
        super().__init__(f"{response.status_code}: {message}")
        self.status = response.status_code


_LOST = (httpx.NetworkError, httpx.RemoteProtocolError)
"""A connection that was refused or broke. One that never was is an address to be corrected."""


class _Attempts:
    """When one request is sent again."""

    def __init__(self, patience: float) -> None:
        self._until = time.monotonic() + patience
        self._next = _FIRST_PAUSE

    def pause_after(self, response: httpx.Response) -> float | None:
        """Seconds to wait before another attempt; None if this answer stands."""
        # A proxy that has just been started anew finds no route; our own 404s are JSON.
        lost = response.status_code == 404 and _JSON not in response.headers.get("Content-Type", "")
        if response.status_code not in _PASSING and not lost:
            return None
        told = response.headers.get("Retry-After", "")  # ours is in seconds; a proxy's may be a date
        return self.pause(float(told) if told.isdecimal() else None)

    def pause(self, seconds: float | None = None) -> float | None:
        """The same when there was no answer; so many seconds if they are given."""
        if seconds is None:
            seconds, self._next = self._next, min(2 * self._next, _LONGEST_PAUSE)
        return seconds if time.monotonic() + seconds <= self._until else None


class SearchOptions(TypedDict, total=False):
    """What a search may say besides; see ``SearchRequest``."""

    collections: list[str]
    mode: Mode
    weight: float
    filter: dict[str, Any]
    offset: int
    min_score: float
    fields: list[str]
    group_by_parent: bool | None
    highlight: bool


class Client:
    """Asks a service, one request at a time."""

    def __init__(
        self, url: str, token: str | None = None, timeout: float = 60.0, patience: float = 20.0
    ) -> None:
        """Make ready to ask; nothing is sent yet.

        Args:
            url: the service's, without ``/v1``.
            token: what it knows this client by, if it wants to know.
            timeout: seconds that an answer may take.
            patience: seconds for which a request is sent again.
        """
        self._http = httpx.Client(base_url=url, headers=_headers(token), timeout=timeout)
        self._patience = patience
        self._met = False

    def search(
        self,
        query: str,
        collection: str | None = None,
        top_k: int = 10,
        model: str = ROUTED_MODEL,
        **options: Unpack[SearchOptions],
    ) -> SearchResponse:
        """Documents for a query, best first, and who answered."""
        body = _search(query, collection, top_k, model, options)
        answer = self._post("/v1/search", body)
        return SearchResponse.model_validate(answer)

    def embed(self, texts: Sequence[str], model: str = ROUTED_MODEL) -> Vectors:
        """Vectors [B, d] of queries, by the router's choice or by the expert named; or of ``documents``."""
        return _vectors(self._post("/v1/embeddings", _embeddings(texts, model)))

    def route(self, texts: Sequence[str]) -> list[Route]:
        """Which experts would answer each query, and why."""
        return RouteResponse.model_validate(self._post("/v1/route", {"input": list(texts)})).data

    def upsert(self, collection: str, documents: Sequence[Document]) -> ChangeResponse:
        """Add documents, or replace those whose ids are there; ``truncated`` of them were read in part."""
        answer = self._post(_documents(collection), {"documents": [dict(one) for one in documents]})
        return ChangeResponse.model_validate(answer)

    def delete(self, collection: str, ids: Sequence[str]) -> ChangeResponse:
        """Delete documents."""
        answer = self._post(f"{_documents(collection)}/delete", {"ids": list(ids)})
        return ChangeResponse.model_validate(answer)

    def feedback(self, query: str, collection: str, shown: Sequence[str], **marks: Any) -> str:
        """Report what a user did with results; returns the report's id.

        Args:
            query: what was asked.
            collection: which collection.
            shown: ids of the results, best first.
            marks: lists of ids ``clicked``, ``relevant`` and ``not_relevant``, and ``user``.
        """
        answer = self._post("/v1/feedback", _feedback(query, collection, shown, marks))
        return FeedbackResponse.model_validate(answer).id

    def forget(self, user: str) -> int:
        """Delete all feedback of a user; returns how many reports there were."""
        answer = self._post("/v1/feedback/delete", {"user": user})
        return ForgetResponse.model_validate(answer).deleted

    def collections(self) -> list[CollectionState]:
        """The collections that this client may read."""
        return [CollectionState.model_validate(one) for one in _checked(self._http.get(_COLLECTIONS))]

    def collection(self, name: str) -> CollectionState:
        """One collection: how many documents it has, and how it is searched."""
        return CollectionState.model_validate(_checked(self._http.get(f"{_COLLECTIONS}/{name}")))

    def create_collection(
        self,
        name: str,
        lexical: Mapping[str, Any] | None = _DEFAULT_LEXICAL,
        passages: Mapping[str, int] | None = None,
    ) -> CollectionState:
        """Create a collection without documents.

        Args:
            name: its name.
            lexical: as ``LexicalOptions``; None for no words.
            passages: as ``PassageOptions``, to cut documents: ``{"tokens": 200, "overlap": 40}``.
        """
        body = _collection(name, lexical, passages)
        return CollectionState.model_validate(_checked(self._http.post(_COLLECTIONS, json=body)))

    def calibrate(self, collection: str, queries: Mapping[str, Sequence[str]]) -> Calibrated:
        """Learn how much words count in a created collection; ``queries`` with their relevant ids."""
        answer = self._post(f"{_COLLECTIONS}/{collection}/calibrate", _judged(queries))
        return Calibrated.model_validate(answer)

    def delete_collection(self, name: str) -> None:
        """Delete a collection that was created over HTTP, with its documents."""
        _checked(self._http.delete(f"{_COLLECTIONS}/{name}"))

    def documents(self, collection: str, offset: int = 0, limit: int = 100) -> DocumentsResponse:
        """A page of a collection's documents."""
        page = {"offset": offset, "limit": limit}
        answer = _checked(self._http.get(_documents(collection), params=page))
        return DocumentsResponse.model_validate(answer)

    def document(self, collection: str, document_id: str) -> DocumentOut:
        """One document as it is now."""
        path = f"{_COLLECTIONS}/{collection}/document"
        return DocumentOut.model_validate(_checked(self._http.get(path, params={"id": document_id})))

    def service(self) -> ServiceState:
        """What is being served."""
        return ServiceState.model_validate(_checked(self._http.get("/v1/service")))

    def experts(self) -> list[ExpertState]:
        """The experts that are served, and how the traffic spreads over them."""
        return [ExpertState.model_validate(one) for one in _checked(self._http.get("/v1/experts"))]

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        attempts = _Attempts(self._patience)
        while True:
            try:
                response = self._http.post(path, json=body)
                self._met = True
                if (pause := attempts.pause_after(response)) is None:
                    return _checked(response)
            except _LOST:
                if not self._met or (pause := attempts.pause()) is None:
                    raise
            time.sleep(pause)


class AsyncClient:
    """Asks a service, any number of requests at a time."""

    def __init__(
        self, url: str, token: str | None = None, timeout: float = 60.0, patience: float = 20.0
    ) -> None:
        """As ``Client``."""
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(token), timeout=timeout)
        self._patience = patience
        self._met = False

    async def search(
        self,
        query: str,
        collection: str | None = None,
        top_k: int = 10,
        model: str = ROUTED_MODEL,
        **options: Unpack[SearchOptions],
    ) -> SearchResponse:
        """Documents for a query, best first, and who answered."""
        body = _search(query, collection, top_k, model, options)
        answer = await self._post("/v1/search", body)
        return SearchResponse.model_validate(answer)

    async def embed(self, texts: Sequence[str], model: str = ROUTED_MODEL) -> Vectors:
        """Vectors [B, d] of queries, by the router's choice or by the expert named; or of ``documents``."""
        return _vectors(await self._post("/v1/embeddings", _embeddings(texts, model)))

    async def route(self, texts: Sequence[str]) -> list[Route]:
        """Which experts would answer each query, and why."""
        return RouteResponse.model_validate(await self._post("/v1/route", {"input": list(texts)})).data

    async def upsert(self, collection: str, documents: Sequence[Document]) -> ChangeResponse:
        """Add documents, or replace those whose ids are there."""
        answer = await self._post(_documents(collection), {"documents": [dict(one) for one in documents]})
        return ChangeResponse.model_validate(answer)

    async def delete(self, collection: str, ids: Sequence[str]) -> ChangeResponse:
        """Delete documents."""
        answer = await self._post(f"{_documents(collection)}/delete", {"ids": list(ids)})
        return ChangeResponse.model_validate(answer)

    async def feedback(self, query: str, collection: str, shown: Sequence[str], **marks: Any) -> str:
        """As ``Client.feedback``."""
        answer = await self._post("/v1/feedback", _feedback(query, collection, shown, marks))
        return FeedbackResponse.model_validate(answer).id

    async def forget(self, user: str) -> int:
        """Delete all feedback of a user; returns how many reports there were."""
        answer = await self._post("/v1/feedback/delete", {"user": user})
        return ForgetResponse.model_validate(answer).deleted

    async def collections(self) -> list[CollectionState]:
        """The collections that this client may read."""
        return [CollectionState.model_validate(one) for one in _checked(await self._http.get(_COLLECTIONS))]

    async def collection(self, name: str) -> CollectionState:
        """One collection: how many documents it has, and how it is searched."""
        return CollectionState.model_validate(_checked(await self._http.get(f"{_COLLECTIONS}/{name}")))

    async def create_collection(
        self,
        name: str,
        lexical: Mapping[str, Any] | None = _DEFAULT_LEXICAL,
        passages: Mapping[str, int] | None = None,
    ) -> CollectionState:
        """As ``Client.create_collection``."""
        body = _collection(name, lexical, passages)
        return CollectionState.model_validate(_checked(await self._http.post(_COLLECTIONS, json=body)))

    async def calibrate(self, collection: str, queries: Mapping[str, Sequence[str]]) -> Calibrated:
        """Learn how much words count in a created collection; ``queries`` with their relevant ids."""
        answer = await self._post(f"{_COLLECTIONS}/{collection}/calibrate", _judged(queries))
        return Calibrated.model_validate(answer)

    async def delete_collection(self, name: str) -> None:
        """Delete a collection that was created over HTTP, with its documents."""
        _checked(await self._http.delete(f"{_COLLECTIONS}/{name}"))

    async def documents(self, collection: str, offset: int = 0, limit: int = 100) -> DocumentsResponse:
        """A page of a collection's documents."""
        page = {"offset": offset, "limit": limit}
        answer = _checked(await self._http.get(_documents(collection), params=page))
        return DocumentsResponse.model_validate(answer)

    async def document(self, collection: str, document_id: str) -> DocumentOut:
        """One document as it is now."""
        path = f"{_COLLECTIONS}/{collection}/document"
        return DocumentOut.model_validate(_checked(await self._http.get(path, params={"id": document_id})))

    async def service(self) -> ServiceState:
        """What is being served."""
        return ServiceState.model_validate(_checked(await self._http.get("/v1/service")))

    async def experts(self) -> list[ExpertState]:
        """The experts that are served, and how the traffic spreads over them."""
        return [ExpertState.model_validate(one) for one in _checked(await self._http.get("/v1/experts"))]

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        attempts = _Attempts(self._patience)
        while True:
            try:
                response = await self._http.post(path, json=body)
                self._met = True
                if (pause := attempts.pause_after(response)) is None:
                    return _checked(response)
            except _LOST:
                if not self._met or (pause := attempts.pause()) is None:
                    raise
            await asyncio.sleep(pause)


def _headers(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def _checked(response: httpx.Response) -> Any:
    if response.is_error:
        raise ServiceError(response)
    return response.json()


def _search(
    query: str, collection: str | None, top_k: int, model: str, options: SearchOptions
) -> dict[str, Any]:
    return {"query": query, "collection": collection, "top_k": top_k, "model": model, **options}


def _embeddings(texts: Sequence[str], model: str) -> dict[str, Any]:
    return {"input": list(texts), "model": model, "encoding_format": "base64"}


def _feedback(query: str, collection: str, shown: Sequence[str], marks: Mapping[str, Any]) -> dict[str, Any]:
    # An id of its own, so that a report that is sent again counts once.
    return {"query": query, "collection": collection, "shown": list(shown), "id": uuid.uuid4().hex, **marks}


def _collection(
    name: str, lexical: Mapping[str, Any] | None, passages: Mapping[str, int] | None
) -> dict[str, Any]:
    options = {"lexical": lexical, "passages": passages}
    return {"name": name, **{key: None if one is None else dict(one) for key, one in options.items()}}


def _judged(queries: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    return {"queries": [{"query": query, "relevant": list(ids)} for query, ids in queries.items()]}


def _documents(collection: str) -> str:
    return f"{_COLLECTIONS}/{collection}/documents"


def _vectors(answer: Any) -> Vectors:
    data = EmbeddingsResponse.model_validate(answer).data
    return np.stack([np.frombuffer(base64.b64decode(str(one.embedding)), "<f4") for one in data])
