"""The service in LlamaIndex. Needs llama-index-core.

``RoutedEmbedding`` embeds documents by the base and queries by the router; ``RoutedRetriever`` searches a
collection of the service itself.
"""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from routerretriever.client.requests import metadata_of
from routerretriever.client.synchronous.client import Client
from routerretriever.types import DOCUMENT_MODEL, ROUTED_MODEL, Mode


class RoutedEmbedding(BaseEmbedding):
    """Embeds through a service."""

    client: Any
    """A ``Client``."""
    query_model: str = ROUTED_MODEL
    """What embeds the queries: the router, or one expert by name."""

    def _get_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = self.client.embed([query], self.query_model)[0].tolist()
        return vector

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self.client.embed(texts, DOCUMENT_MODEL).tolist()
        return vectors

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)


class RoutedRetriever(BaseRetriever):
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
        super().__init__()
        self._client = client
        self._collection = collection
        self._top_k = top_k
        self._filter = filter
        self._mode: Mode | None = mode

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = self._client.search(
            query_bundle.query_str, self._collection, self._top_k, filter=self._filter, mode=self._mode
        )
        return [
            NodeWithScore(
                node=TextNode(
                    id_=hit.id,
                    text=hit.text,
                    metadata={**metadata_of(hit), "expert": found.expert},
                ),
                score=hit.score,
            )
            for hit in found.results
        ]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)
