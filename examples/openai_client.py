"""OpenAI's own client, unmodified: queries by the router, documents by the base.

Needs: pip install openai.
"""

from __future__ import annotations

import numpy as np
from openai import OpenAI

from examples.documents import DOCUMENTS, QUERY, URL


def main(url: str = URL) -> list[str]:
    """Ids of the documents, best first."""
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    texts = [one["text"] for one in DOCUMENTS]
    documents = client.embeddings.create(model="documents", input=texts).data
    query = client.embeddings.create(model="router", input=QUERY).data[0].embedding
    scores = np.array([one.embedding for one in documents]) @ np.array(query)
    return [DOCUMENTS[row]["id"] for row in np.argsort(-scores)]


if __name__ == "__main__":
    print(main())
