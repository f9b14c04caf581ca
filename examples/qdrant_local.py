"""Documents in Qdrant (in this process), queries embedded by the router.

Needs: pip install qdrant-client.
"""

from __future__ import annotations

from qdrant_client import QdrantClient
from qdrant_client.models import Distance, PointStruct, VectorParams
from routerretriever.client import Client

from examples.documents import DOCUMENTS, QUERY, URL


def main(url: str = URL) -> list[str]:
    """Ids of the documents that answer the query, best first."""
    with Client(url) as client:
        vectors = client.embed([f"{one['title']} {one['text']}" for one in DOCUMENTS], "documents")
        qdrant = QdrantClient(":memory:")
        # The base's similarity: cosine for MiniLM, Distance.DOT for an encoder with `similarity: dot`.
        qdrant.create_collection("faq", VectorParams(size=vectors.shape[1], distance=Distance.COSINE))
        points = [
            PointStruct(id=row, vector=vector.tolist(), payload=document)
            for row, (vector, document) in enumerate(zip(vectors, DOCUMENTS, strict=True))
        ]
        qdrant.upsert("faq", points)
        query = client.embed([QUERY])[0].tolist()
        found = qdrant.query_points("faq", query, limit=2).points
        return [str((point.payload or {})["id"]) for point in found]


if __name__ == "__main__":
    print(main())
