"""Documents in Postgres with pgvector, hybrid with its full-text search; queries embedded by the router.

Needs: pip install pgvector "psycopg[binary]", and a Postgres that has the extension `vector`.
"""

from __future__ import annotations

import os

import psycopg
from pgvector.psycopg import register_vector
from routerretriever.client import Client

from examples.documents import DOCUMENTS, QUERY, URL

DATABASE = os.environ.get("DATABASE_URL", "postgresql://localhost/postgres")
UPSERT = """
INSERT INTO faq VALUES (%s, %s, %s)
ON CONFLICT (id) DO UPDATE SET text = excluded.text, vector = excluded.vector
"""
# Ranks of both sides are fused: 1 / (60 + rank), as is usual (reciprocal rank fusion).
SEARCH = """
WITH near AS (
    SELECT id, row_number() OVER (ORDER BY vector <=> %(vector)s) AS rank FROM faq
    ORDER BY vector <=> %(vector)s LIMIT 100
), words AS (
    SELECT id, row_number() OVER (ORDER BY ts_rank(to_tsvector('english', text), query) DESC) AS rank
    FROM faq, websearch_to_tsquery('english', %(words)s) AS query
    WHERE to_tsvector('english', text) @@ query ORDER BY rank LIMIT 100
)
SELECT id FROM near FULL JOIN words USING (id)
ORDER BY coalesce(1.0 / (60 + near.rank), 0) + coalesce(1.0 / (60 + words.rank), 0) DESC LIMIT 2
"""


def main(url: str = URL, database: str = DATABASE) -> list[str]:
    """Ids of the documents that answer the query, best first."""
    with Client(url) as client, psycopg.connect(database) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        register_vector(connection)
        vectors = client.embed([f"{one['title']} {one['text']}" for one in DOCUMENTS], "documents")
        width = vectors.shape[1]
        connection.execute(f"CREATE TEMP TABLE faq (id text PRIMARY KEY, text text, vector vector({width}))")
        connection.execute("CREATE INDEX ON faq USING hnsw (vector vector_cosine_ops)")
        connection.execute("CREATE INDEX ON faq USING gin (to_tsvector('english', text))")
        for document, vector in zip(DOCUMENTS, vectors, strict=True):
            connection.execute(UPSERT, (document["id"], document["text"], vector))
        asked = {"vector": client.embed([QUERY])[0], "words": QUERY}
        return [name for (name,) in connection.execute(SEARCH, asked).fetchall()]


if __name__ == "__main__":
    print(main())
