"""LlamaIndex: its vector index with our embeddings, and a retriever on the service.

Needs: pip install llama-index-core.
"""

from __future__ import annotations

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from routerretriever.client import Client
from routerretriever.client.llama_index import RoutedEmbedding, RoutedRetriever

from examples.documents import DOCUMENTS, QUERY, URL


def main(url: str = URL) -> list[str]:
    """Ids of the documents that answer the query: from an index of LlamaIndex's, then from the service."""
    with Client(url) as client:
        nodes = [TextNode(id_=one["id"], text=one["text"]) for one in DOCUMENTS]
        index = VectorStoreIndex(nodes, embed_model=RoutedEmbedding(client=client))
        stored = index.as_retriever(similarity_top_k=2).retrieve(QUERY)
        served = RoutedRetriever(client, "health", top_k=2).retrieve(QUERY)
        return [one.node.node_id for one in [*stored, *served]]


if __name__ == "__main__":
    print(main())
