"""Question answering: search by the service, an answer by any OpenAI-compatible generator.

Needs: pip install openai. The generator is any server with OpenAI's chat API, as vLLM or Ollama start one.
"""

from __future__ import annotations

import os

from openai import OpenAI
from routerretriever.client import Client

from examples.documents import QUERY, URL

GENERATOR = os.environ.get("GENERATOR_URL", "http://localhost:11434/v1")
MODEL = os.environ.get("GENERATOR_MODEL", "llama3.2")


def main(url: str = URL, generator: str = GENERATOR, question: str = QUERY) -> str:
    """The answer, with the ids of what it rests on."""
    with Client(url) as client:
        found = client.search(question, "health", top_k=3).results
    sources = "\n\n".join(f"[{hit.id}] {hit.title}\n{hit.text}" for hit in found)
    instruction = "Answer from these sources alone, and name the source in brackets.\n\n" + sources
    chat = OpenAI(base_url=generator, api_key="none").chat.completions.create(
        model=MODEL,
        messages=[{"role": "system", "content": instruction}, {"role": "user", "content": question}],
    )
    return chat.choices[0].message.content or ""


if __name__ == "__main__":
    print(main())
