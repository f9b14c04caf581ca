"""LangChain: its vector store with our embeddings, and a retriever on the service.

Needs: pip install langchain-core.
"""

from __future__ import annotations

from langchain_core.vectorstores import InMemoryVectorStore
from routerretriever.client import Client
from routerretriever.client.langchain import RoutedEmbeddings, RoutedRetriever

from examples.documents import DOCUMENTS, QUERY, URL


def main(url: str = URL) -> list[str]:
    """Ids of the documents that answer the query: from a store of LangChain's, then from the service."""
    with Client(url) as client:
        store = InMemoryVectorStore(RoutedEmbeddings(client))
        store.add_texts([one["text"] for one in DOCUMENTS], ids=[one["id"] for one in DOCUMENTS])
        stored = store.similarity_search(QUERY, k=2)
        served = RoutedRetriever(client=client, collection="health", top_k=2).invoke(QUERY)
        return [str(one.id) for one in [*stored, *served]]


if __name__ == "__main__":
    print(main())
