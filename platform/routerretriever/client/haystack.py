"""The service in Haystack. Needs haystack-ai.

``RoutedDocumentEmbedder`` embeds documents by the base, ``RoutedTextEmbedder`` queries by the router;
``RoutedRetriever`` searches a collection of the service itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from haystack import Document, component

from routerretriever.client.requests import metadata_of
from routerretriever.client.synchronous.client import Client
from routerretriever.types import DOCUMENT_MODEL, ROUTED_MODEL, Mode

_TEXTS_AT_ONCE = 64


@component
class RoutedTextEmbedder:
    """Embeds a query through a service."""

    def __init__(self, client: Client, model: str = ROUTED_MODEL) -> None:
        """``model`` is the router, or one expert by name."""
        self._client = client
        self._model = model

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, list[float]]:
        """The query's vector."""
        return {"embedding": self._client.embed([text], self._model)[0].tolist()}


@component
class RoutedDocumentEmbedder:
    """Embeds documents through a service."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """The documents with their vectors."""
        embedded: list[Document] = []
        for start in range(0, len(documents), _TEXTS_AT_ONCE):
            part = documents[start : start + _TEXTS_AT_ONCE]
            vectors = self._client.embed([one.content or " " for one in part], DOCUMENT_MODEL).tolist()
            embedded += [replace(one, embedding=vector) for one, vector in zip(part, vectors, strict=True)]
        return {"documents": embedded}


@component
class RoutedRetriever:
    """Searches a collection of a service.

    A result has its document's metadata, and ``title`` and ``expert`` beside it.
    """

    def __init__(
        self,
        client: Client,
        collection: str | None = None,
        top_k: int = 10,
        filter: dict[str, Any] | None = None,
        mode: Mode | None = None,
    ) -> None:
        """A retriever.

        Args:
            client: of the service.
            collection: may be left out if only one is served.
            top_k: how many documents are wanted.
            filter: a condition on metadata, as ``{"field": "year", "gte": 2001}``.
            mode: ``hybrid``, ``dense`` or ``lexical``; by default as the service chooses.
        """
        self._client = client
        self._collection = collection
        self._top_k = top_k
        self._filter = filter
        self._mode: Mode | None = mode

    @component.output_types(documents=list[Document])
    def run(self, query: str, filter: dict[str, Any] | None = None) -> dict[str, list[Document]]:
        """Documents for a query, best first; a filter stands instead of the retriever's own."""
        wanted = self._filter if filter is None else filter
        found = self._client.search(query, self._collection, self._top_k, filter=wanted, mode=self._mode)
        return {
            "documents": [
                Document(
                    id=hit.id,
                    content=hit.text,
                    meta={**metadata_of(hit), "expert": found.expert},
                    score=hit.score,
                )
                for hit in found.results
            ]
        }
