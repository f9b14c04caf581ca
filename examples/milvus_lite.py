"""Documents in Milvus Lite (a file), queries embedded by the router.

Needs: pip install pymilvus milvus-lite.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from pymilvus import MilvusClient
from routerretriever.client import Client

from examples.documents import DOCUMENTS, QUERY, URL


def main(url: str = URL) -> list[str]:
    """Ids of the documents that answer the query, best first."""
    with Client(url) as client, tempfile.TemporaryDirectory() as folder:
        vectors = client.embed([f"{one['title']} {one['text']}" for one in DOCUMENTS], "documents")
        milvus = MilvusClient(str(Path(folder) / "faq.db"))
        milvus.create_collection("faq", dimension=vectors.shape[1], metric_type="COSINE")
        rows = [
            {"id": row, "vector": vector.tolist(), "name": document["id"], "text": document["text"]}
            for row, (vector, document) in enumerate(zip(vectors, DOCUMENTS, strict=True))
        ]
        milvus.insert("faq", rows)
        query = client.embed([QUERY])[0].tolist()
        (found,) = milvus.search("faq", [query], limit=2, output_fields=["name"])
        milvus.close()
        return [hit["entity"]["name"] for hit in found]


if __name__ == "__main__":
    print(main())
