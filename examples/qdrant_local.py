"""Documents in Qdrant (in this process), hybrid with words; queries embedded by the router.

Needs: pip install qdrant-client.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from uuid import NAMESPACE_OID, uuid5

from qdrant_client import QdrantClient, models
from routerretriever.client import Client

from examples.documents import DOCUMENTS, QUERY, URL


def words_of(text: str) -> models.SparseVector:
    """Its words and their counts, levelled off as in BM25; Qdrant multiplies each by its rarity."""
    counts = Counter(zlib.crc32(word.encode()) for word in re.findall(r"\w+", text.lower()))
    return models.SparseVector(indices=list(counts), values=[n / (n + 1.2) for n in counts.values()])


def main(url: str = URL) -> list[str]:
    """Ids of the documents that answer the query, best first."""
    with Client(url) as client:
        texts = [f"{one['title']} {one['text']}" for one in DOCUMENTS]
        vectors = client.embed(texts, "documents")
        qdrant = QdrantClient(":memory:")
        meaning = models.VectorParams(size=vectors.shape[1], distance=models.Distance.COSINE)
        words = models.SparseVectorParams(modifier=models.Modifier.IDF)
        qdrant.create_collection("faq", {"meaning": meaning}, {"words": words})
        points = [
            models.PointStruct(
                id=str(uuid5(NAMESPACE_OID, document["id"])),
                vector={"meaning": vector.tolist(), "words": words_of(text)},
                payload=document,
            )
            for document, text, vector in zip(DOCUMENTS, texts, vectors, strict=True)
        ]
        qdrant.upsert("faq", points)

        near = models.Prefetch(query=client.embed([QUERY])[0].tolist(), using="meaning", limit=100)
        alike = models.Prefetch(query=words_of(QUERY), using="words", limit=100)
        fused = models.FusionQuery(fusion=models.Fusion.RRF)
        found = qdrant.query_points("faq", prefetch=[near, alike], query=fused, limit=2).points
        return [str((point.payload or {})["id"]) for point in found]


if __name__ == "__main__":
    print(main())
