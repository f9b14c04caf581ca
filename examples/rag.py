"""Answers from a folder: searched by the service, written by any OpenAI-compatible generator.

Needs: pip install openai. Run it: python -m examples.rag FOLDER QUESTION
"""

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from openai import OpenAI
from routerretriever.client import Client
from routerretriever.datasets.collection import open_collection
from routerretriever.datasets.importing import import_data

from examples.documents import URL

GENERATOR = os.environ.get("GENERATOR_URL", "http://localhost:11434/v1")  # vLLM, Ollama, ...


def main(folder: Path, question: str, url: str = URL, generator: str = GENERATOR) -> str:
    """The answer. Markdown, text, HTML, PDF and Word files become a collection of the folder's name."""
    with TemporaryDirectory() as scratch, Client(url) as client:
        import_data(folder, Path(scratch, "imported"))
        if folder.name not in [known.name for known in client.collections()]:
            client.create_collection(folder.name, passages={"tokens": 200, "overlap": 40})
        for one in open_collection(folder.name, f"{scratch}/imported").documents():
            change = client.upsert(folder.name, [{"id": one.id, "title": one.title, "text": one.text}])
        time.sleep(change.searchable_within_seconds)
        hits = client.search(question, folder.name, top_k=3, mode="hybrid").results
    sources = "\n\n".join(f"[{hit.id}] {hit.title}\n{hit.text}" for hit in hits)
    instruction = f"Answer from these sources alone, and name the source in brackets.\n\n{sources}"
    turns = [{"role": "system", "content": instruction}, {"role": "user", "content": question}]
    ask = OpenAI(base_url=generator, api_key="none").chat.completions.create
    return ask(model=os.environ.get("GENERATOR_MODEL", "llama3.2"), messages=turns).choices[0].message.content


if __name__ == "__main__":
    print(main(Path(sys.argv[1]).resolve(), sys.argv[2]))
