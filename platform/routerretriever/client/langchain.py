"""The service as LangChain's embeddings: documents by the base, queries by the router. Needs langchain-core.

store = InMemoryVectorStore(RoutedEmbeddings(Client("http://localhost:8000")))
"""

from __future__ import annotations

from langchain_core.embeddings import Embeddings

from routerretriever.client.client import Client
from routerretriever.types import DOCUMENT_MODEL, ROUTED_MODEL

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
