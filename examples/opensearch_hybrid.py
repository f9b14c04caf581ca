"""Documents in OpenSearch (2.10 or later), hybrid with its BM25; queries embedded by the router.

Needs: an OpenSearch at OPENSEARCH_URL. The requests are those of its documentation; they were not run
against a server.
"""

from __future__ import annotations

import json
import os

import httpx
from routerretriever.client import Client

from examples.documents import DOCUMENTS, QUERY, URL

OPENSEARCH = os.environ.get("OPENSEARCH_URL", "http://localhost:9200")
WEIGHTS = [0.1, 0.9]  # of words and of vectors, in the order of the queries below
PIPELINE = {
    "phase_results_processors": [
        {
            "normalization-processor": {
                "normalization": {"technique": "min_max"},
                "combination": {"technique": "arithmetic_mean", "parameters": {"weights": WEIGHTS}},
            }
        }
    ]
}


def main(url: str = URL, opensearch: str = OPENSEARCH) -> list[str]:
    """Ids of the documents that answer the query, best first."""
    with Client(url) as client, httpx.Client(base_url=opensearch) as http:
        vectors = client.embed([f"{one['title']} {one['text']}" for one in DOCUMENTS], "documents")
        method = {"name": "hnsw", "engine": "lucene", "space_type": "cosinesimil"}
        vector_field = {"type": "knn_vector", "dimension": vectors.shape[1], "method": method}
        index = {
            "settings": {"index.knn": True},
            "mappings": {"properties": {"text": {"type": "text"}, "vector": vector_field}},
        }
        http.put("/faq", json=index).raise_for_status()
        lines = []
        for document, vector in zip(DOCUMENTS, vectors, strict=True):
            lines += [
                {"index": {"_id": document["id"]}},
                {"text": document["text"], "vector": vector.tolist()},
            ]
        bulk = "".join(json.dumps(line) + "\n" for line in lines)
        headers = {"Content-Type": "application/x-ndjson"}
        http.post("/faq/_bulk?refresh=true", content=bulk, headers=headers).raise_for_status()
        http.put("/_search/pipeline/faq-hybrid", json=PIPELINE).raise_for_status()

        near = {"knn": {"vector": {"vector": client.embed([QUERY])[0].tolist(), "k": 2}}}
        body = {"size": 2, "query": {"hybrid": {"queries": [{"match": {"text": QUERY}}, near]}}}
        found = http.post("/faq/_search?search_pipeline=faq-hybrid", json=body).raise_for_status().json()
        return [hit["_id"] for hit in found["hits"]["hits"]]


if __name__ == "__main__":
    print(main())
