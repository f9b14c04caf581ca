"""Haystack: its document store with our embedders, and a retriever on the service.

Needs: pip install haystack-ai.
"""

from __future__ import annotations

from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore
from routerretriever.client import Client
from routerretriever.client.haystack import RoutedDocumentEmbedder, RoutedRetriever, RoutedTextEmbedder

from examples.documents import DOCUMENTS, QUERY, URL


def main(url: str = URL) -> list[str]:
    """Ids of the documents that answer the query: from a store of Haystack's, then from the service."""
    with Client(url) as client:
        store = InMemoryDocumentStore(embedding_similarity_function="cosine")
        documents = [Document(id=one["id"], content=one["text"]) for one in DOCUMENTS]
        store.write_documents(RoutedDocumentEmbedder(client).run(documents)["documents"])

        pipeline = Pipeline()
        pipeline.add_component("embedder", RoutedTextEmbedder(client))
        pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=2))
        pipeline.connect("embedder.embedding", "retriever.query_embedding")
        stored = pipeline.run({"embedder": {"text": QUERY}})["retriever"]["documents"]

        served = RoutedRetriever(client, "health", top_k=2).run(QUERY)["documents"]
        return [one.id for one in [*stored, *served]]


if __name__ == "__main__":
    print(main())
