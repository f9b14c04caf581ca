"""Made of asynchronous/client.py by `make client`; change that file, not this one."""

from __future__ import annotations

import time
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


class Client:
    """Asks a service."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        timeout: float = 60.0,
        patience: float = 20.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Make ready to ask; nothing is sent yet.

        Args:
            url: the service's, without ``/v1``.
            token: what it knows this client by, if it wants to know.
            timeout: seconds that an answer may take.
            patience: seconds for which a request is sent again.
            transport: how requests are sent: one of httpx, such as with a proxy or certificates of your own.
        """
        self._http = httpx.Client(base_url=url, headers=headers(token), timeout=timeout, transport=transport)
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
        body = search_body(query, collection, top_k, model, options)
        answer = self._post("/v1/search", body)
        return SearchResponse.model_validate(answer)

    def embed(
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
        return vectors_of(self._post("/v1/embeddings", embeddings_body(texts, model, options)))

    def models(self) -> list[str]:
        """What can embed queries: the router, the base and every expert."""
        return [one.id for one in ModelsResponse.model_validate(self._get("/v1/models")).data]

    def route(self, texts: Sequence[str], collection: str | None = None) -> list[Route]:
        """Which experts would answer each query, and why, with the weight of words in a collection."""
        answer = self._post("/v1/route", route_body(texts, collection))
        return RouteResponse.model_validate(answer).data

    def upsert(self, collection: str, documents: Sequence[Document]) -> ChangeResponse:
        """Add documents, or replace those whose ids are there; ``truncated`` of them were read in part."""
        answer = self._post(documents_path(collection), {"documents": [dict(one) for one in documents]})
        return ChangeResponse.model_validate(answer)

    def delete(self, collection: str, ids: Sequence[str]) -> ChangeResponse:
        """Delete documents."""
        answer = self._post(f"{documents_path(collection)}/delete", {"ids": as_list(ids)})
        return ChangeResponse.model_validate(answer)

    def feedback(self, query: str, collection: str, shown: Sequence[str], **marks: Any) -> str:
        """Report what a user did with results; returns the report's id.

        Args:
            query: what was asked.
            collection: which collection.
            shown: ids of the results, best first.
            marks: lists of ids ``clicked``, ``relevant`` and ``not_relevant``, ``user``, and ``request``, as
                the search's answer has it.
        """
        answer = self._post("/v1/feedback", feedback_body(query, collection, shown, marks))
        return FeedbackResponse.model_validate(answer).id

    def forget(self, user: str) -> int:
        """Delete a user's feedback on collections that this client may change; returns how many reports."""
        answer = self._post("/v1/feedback/delete", {"user": user})
        return ForgetResponse.model_validate(answer).deleted

    def collections(self) -> list[CollectionState]:
        """The collections that this client may read."""
        return [CollectionState.model_validate(one) for one in self._get(COLLECTIONS)]

    def collection(self, name: str) -> CollectionState:
        """One collection: how many documents it has, and how it is searched."""
        return CollectionState.model_validate(self._get(collection_path(name)))

    def create_collection(
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
        return CollectionState.model_validate(checked(self._http.post(COLLECTIONS, json=body)))

    def calibrate(self, collection: str, queries: Mapping[str, Sequence[str]]) -> Calibrated:
        """Learn how much words count in a created collection; ``queries`` with their relevant ids."""
        answer = self._post(f"{collection_path(collection)}/calibrate", judged_body(queries))
        return Calibrated.model_validate(answer)

    def delete_collection(self, name: str) -> None:
        """Delete a collection that was created over HTTP, with its documents."""
        checked(self._http.delete(collection_path(name)))

    def documents(self, collection: str, offset: int = 0, limit: int = 100) -> DocumentsResponse:
        """A page of a collection's documents."""
        page = {"offset": offset, "limit": limit}
        return DocumentsResponse.model_validate(self._get(documents_path(collection), page))

    def document(self, collection: str, document_id: str) -> DocumentOut:
        """One document as it is now."""
        path = f"{collection_path(collection)}/document"
        return DocumentOut.model_validate(self._get(path, {"id": document_id}))

    def service(self) -> ServiceState:
        """What is being served."""
        return ServiceState.model_validate(self._get("/v1/service"))

    def experts(self) -> list[ExpertState]:
        """The experts that are served, and how the traffic spreads over them."""
        return [ExpertState.model_validate(one) for one in self._get("/v1/experts")]

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._send("POST", path, json=body)

    def _get(self, path: str, parameters: dict[str, Any] | None = None) -> Any:
        return self._send("GET", path, params=parameters)

    def _send(self, method: str, path: str, **content: Any) -> Any:
        """An answer's JSON, of a request that does no harm if it arrives twice."""
        attempts = Attempts(self._patience)
        while True:
            try:
                response = self._http.request(method, path, **content)
                self._met = True
                if (pause := attempts.pause_after(response)) is None:
                    return checked(response)
            except LOST:
                if not self._met or (pause := attempts.pause()) is None:
                    raise
            time.sleep(pause)
