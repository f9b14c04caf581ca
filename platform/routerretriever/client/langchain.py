"""The service in LangChain. Needs langchain-core.

``RoutedEmbeddings`` embeds documents by the base and queries by the router, for any vector store:

    store = InMemoryVectorStore(RoutedEmbeddings(Client("http://localhost:8000")))

``RoutedRetriever`` searches a collection of the service itself.
"""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever

from routerretriever.client.requests import metadata_of
from routerretriever.client.synchronous.client import Client
from routerretriever.types import DOCUMENT_MODEL, ROUTED_MODEL, Mode

_TEXTS_AT_ONCE = 64


class RoutedEmbeddings(Embeddings):
    """Embeds through a service."""

    def __init__(self, client: Client, model: str = ROUTED_MODEL) -> None:
        """``model`` embeds the queries: the router, or one expert by name."""
        self._client = client
        self._model = model

    def embed_query(self, text: str) -> list[float]:
        """One query's vector."""
        vector: list[float] = self._client.embed([text], self._model)[0].tolist()
        return vector

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Documents' vectors."""
        parts = [texts[start : start + _TEXTS_AT_ONCE] for start in range(0, len(texts), _TEXTS_AT_ONCE)]
        return [vector for part in parts for vector in self._client.embed(part, DOCUMENT_MODEL).tolist()]


class RoutedRetriever(BaseRetriever):
    """Searches a collection of a service.

    A result has its document's metadata, and ``id``, ``title``, ``score`` and ``expert`` beside it.
    """

    client: Any
    """A ``Client``."""
    collection: str | None = None
    """May be left out if only one collection is served."""
    top_k: int = 10
    """How many documents are wanted."""
    filter: dict[str, Any] | None = None
    """A condition on metadata, as ``{"field": "year", "gte": 2001}``."""
    mode: Mode | None = None
    """``hybrid``, ``dense`` or ``lexical``; by default as the service chooses."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        found = self.client.search(query, self.collection, self.top_k, filter=self.filter, mode=self.mode)
        return [
            Document(
                hit.text,
                id=hit.id,
                metadata={
                    **metadata_of(hit),
                    "id": hit.id,
                    "score": hit.score,
                    "expert": found.expert,
                },
            )
            for hit in found.results
        ]
