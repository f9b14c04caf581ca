"""The client to await. The other is made of this file: `make client`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Self, Unpack

import httpx

from routerretriever.client.requests import (
    COLLECTIONS,
    DEFAULT_LEXICAL,
    LOST,
    Attempts,
    Document,
    EmbedOptions,
    SearchOptions,
    Vectors,
    checked,
    collection_body,
    collection_path,
    documents_path,
    embeddings_body,
    feedback_body,
    headers,
    judged_body,
    route_body,
    search_body,
    vectors_of,
)
from routerretriever.client.schemas import (
    Calibrated,
    ChangeResponse,
    CollectionState,
    DocumentOut,
    DocumentsResponse,
    ExpertState,
    FeedbackResponse,
    ForgetResponse,
    ModelsResponse,
    Route,
    RouteResponse,
    SearchResponse,
    ServiceState,
)
from routerretriever.types import ROUTED_MODEL, as_list


class AsyncClient:
    """Asks a service."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        timeout: float = 60.0,
        patience: float = 20.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Make ready to ask; nothing is sent yet.

        Args:
            url: the service's, without ``/v1``.
            token: what it knows this client by, if it wants to know.
            timeout: seconds that an answer may take.
            patience: seconds for which a request is sent again.
            transport: how requests are sent: one of httpx, such as with a proxy or certificates of your own.
        """
        self._http = httpx.AsyncClient(
            base_url=url, headers=headers(token), timeout=timeout, transport=transport
        )
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
        body = search_body(query, collection, top_k, model, options)
        answer = await self._post("/v1/search", body)
        return SearchResponse.model_validate(answer)

    async def embed(
        self, texts: Sequence[str], model: str = ROUTED_MODEL, **options: Unpack[EmbedOptions]
    ) -> Vectors:
        """Vectors [B, d] of queries, by the router's choice or by the expert named; or of ``documents``.

        Args:
            texts: what is embedded.
            model: one of ``models()``, or ``documents``.
            options: ``dimensions``, the length of the vectors, of an encoder that was trained to be cut; and
                ``truncate``, whether a text that is longer than the encoder reads is refused (``"NONE"``) or
                cut (``"END"``). One that was cut is warned of.
        """
        return vectors_of(await self._post("/v1/embeddings", embeddings_body(texts, model, options)))

    async def models(self) -> list[str]:
        """What can embed queries: the router, the base and every expert."""
        return [one.id for one in ModelsResponse.model_validate(await self._get("/v1/models")).data]

    async def route(self, texts: Sequence[str], collection: str | None = None) -> list[Route]:
        """Which experts would answer each query, and why, with the weight of words in a collection."""
        answer = await self._post("/v1/route", route_body(texts, collection))
        return RouteResponse.model_validate(answer).data

    async def upsert(self, collection: str, documents: Sequence[Document]) -> ChangeResponse:
        """Add documents, or replace those whose ids are there; ``truncated`` of them were read in part."""
        answer = await self._post(documents_path(collection), {"documents": [dict(one) for one in documents]})
        return ChangeResponse.model_validate(answer)

    async def delete(self, collection: str, ids: Sequence[str]) -> ChangeResponse:
        """Delete documents."""
        answer = await self._post(f"{documents_path(collection)}/delete", {"ids": as_list(ids)})
        return ChangeResponse.model_validate(answer)

    async def feedback(self, query: str, collection: str, shown: Sequence[str], **marks: Any) -> str:
        """Report what a user did with results; returns the report's id.

        Args:
            query: what was asked.
            collection: which collection.
            shown: ids of the results, best first.
            marks: lists of ids ``clicked``, ``relevant`` and ``not_relevant``, ``user``, and ``request``, as
                the search's answer has it.
        """
        answer = await self._post("/v1/feedback", feedback_body(query, collection, shown, marks))
        return FeedbackResponse.model_validate(answer).id

    async def forget(self, user: str) -> int:
        """Delete a user's feedback on collections that this client may change; returns how many reports."""
        answer = await self._post("/v1/feedback/delete", {"user": user})
        return ForgetResponse.model_validate(answer).deleted

    async def collections(self) -> list[CollectionState]:
        """The collections that this client may read."""
        return [CollectionState.model_validate(one) for one in await self._get(COLLECTIONS)]

    async def collection(self, name: str) -> CollectionState:
        """One collection: how many documents it has, and how it is searched."""
        return CollectionState.model_validate(await self._get(collection_path(name)))

    async def create_collection(
        self,
        name: str,
        lexical: Mapping[str, Any] | None = DEFAULT_LEXICAL,
        passages: Mapping[str, int] | None = None,
    ) -> CollectionState:
        """Create a collection without documents.

        Args:
            name: its name.
            lexical: as ``LexicalOptions``; None for no words.
            passages: as ``PassageOptions``, to cut documents: ``{"tokens": 200, "overlap": 40}``.
        """
        body = collection_body(name, lexical, passages)
        return CollectionState.model_validate(checked(await self._http.post(COLLECTIONS, json=body)))

    async def calibrate(self, collection: str, queries: Mapping[str, Sequence[str]]) -> Calibrated:
        """Learn how much words count in a created collection; ``queries`` with their relevant ids."""
        answer = await self._post(f"{collection_path(collection)}/calibrate", judged_body(queries))
        return Calibrated.model_validate(answer)

    async def delete_collection(self, name: str) -> None:
        """Delete a collection that was created over HTTP, with its documents."""
        checked(await self._http.delete(collection_path(name)))

    async def documents(self, collection: str, offset: int = 0, limit: int = 100) -> DocumentsResponse:
        """A page of a collection's documents."""
        page = {"offset": offset, "limit": limit}
        return DocumentsResponse.model_validate(await self._get(documents_path(collection), page))

    async def document(self, collection: str, document_id: str) -> DocumentOut:
        """One document as it is now."""
        path = f"{collection_path(collection)}/document"
        return DocumentOut.model_validate(await self._get(path, {"id": document_id}))

    async def service(self) -> ServiceState:
        """What is being served."""
        return ServiceState.model_validate(await self._get("/v1/service"))

    async def experts(self) -> list[ExpertState]:
        """The experts that are served, and how the traffic spreads over them."""
        return [ExpertState.model_validate(one) for one in await self._get("/v1/experts")]

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        return await self._send("POST", path, json=body)

    async def _get(self, path: str, parameters: dict[str, Any] | None = None) -> Any:
        return await self._send("GET", path, params=parameters)

    async def _send(self, method: str, path: str, **content: Any) -> Any:
        """An answer's JSON, of a request that does no harm if it arrives twice."""
        attempts = Attempts(self._patience)
        while True:
            try:
                response = await self._http.request(method, path, **content)
                self._met = True
                if (pause := attempts.pause_after(response)) is None:
                    return checked(response)
            except LOST:
                if not self._met or (pause := attempts.pause()) is None:
                    raise
            await asyncio.sleep(pause)
