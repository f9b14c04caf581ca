"""Documents in Milvus Lite (a file), hybrid with its BM25; queries embedded by the router.

Needs: pip install pymilvus "milvus-lite>=3".
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from pymilvus import AnnSearchRequest, DataType, Function, FunctionType, MilvusClient, RRFRanker
from routerretriever.client import Client

from examples.documents import DOCUMENTS, QUERY, URL


def main(url: str = URL) -> list[str]:
    """Ids of the documents that answer the query, best first."""
    with Client(url) as client, tempfile.TemporaryDirectory() as folder:
        vectors = client.embed([f"{one['title']} {one['text']}" for one in DOCUMENTS], "documents")
        milvus = MilvusClient(str(Path(folder) / "faq.db"))
        schema = milvus.create_schema()
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=100)
        schema.add_field("text", DataType.VARCHAR, max_length=65_535, enable_analyzer=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
        schema.add_field("words", DataType.SPARSE_FLOAT_VECTOR)
        schema.add_function(Function("bm25", FunctionType.BM25, ["text"], ["words"]))
        indexes = milvus.prepare_index_params()
        indexes.add_index("vector", index_type="AUTOINDEX", metric_type="COSINE")
        indexes.add_index("words", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25")
        milvus.create_collection("faq", schema=schema, index_params=indexes)
        rows = [
            {"id": document["id"], "text": document["text"], "vector": vector.tolist()}
            for document, vector in zip(DOCUMENTS, vectors, strict=True)
        ]
        milvus.upsert("faq", rows)

        near = AnnSearchRequest([client.embed([QUERY])[0].tolist()], "vector", {}, limit=100)
        alike = AnnSearchRequest([QUERY], "words", {}, limit=100)
        (found,) = milvus.hybrid_search("faq", [near, alike], RRFRanker(60), limit=2, output_fields=["text"])
        milvus.close()
        return [hit["id"] for hit in found]


if __name__ == "__main__":
    print(main())
