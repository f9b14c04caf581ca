"""Documents in LanceDB (a folder), queries embedded by the router; hybrid with its words.

Needs: pip install lancedb.
"""

from __future__ import annotations

import tempfile

import lancedb
from lancedb.index import FTS
from routerretriever.client import Client

from examples.documents import DOCUMENTS, QUERY, URL


def main(url: str = URL) -> list[str]:
    """Ids of the documents that answer the query, best first."""
    with Client(url) as client, tempfile.TemporaryDirectory() as folder:
        vectors = client.embed([f"{one['title']} {one['text']}" for one in DOCUMENTS], "documents")
        rows = [{**one, "vector": vector.tolist()} for one, vector in zip(DOCUMENTS, vectors, strict=True)]
        table = lancedb.connect(folder).create_table("faq", rows)
        table.create_index("text", config=FTS())
        asked = client.embed([QUERY])[0].tolist()
        search = table.search(query_type="hybrid").vector(asked).text(QUERY).distance_type("cosine")
        return [row["id"] for row in search.limit(2).to_list()]


if __name__ == "__main__":
    print(main())
