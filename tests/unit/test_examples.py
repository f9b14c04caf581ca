"""Every example runs against a tiny service, if the package that it shows is installed."""

from __future__ import annotations

import base64
import importlib
import json
import re
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from support.paths import ROOT

from examples.documents import DOCUMENTS

NEEDS = {
    "haystack_pipeline": "haystack",
    "lancedb_local": "lancedb",
    "langchain_store": "langchain_core",
    "llama_index_store": "llama_index.core",
    "milvus_lite": "pymilvus",
    "openai_client": "openai",
    "qdrant_local": "qdrant_client",
    "rag": "openai",
}
WIDTH = 64


def vector_of(text):
    """Words as a vector of length one: what shares words is near."""
    vector = np.zeros(WIDTH, np.float32)
    for word in re.findall(r"\w+", text.lower()):
        vector[zlib.crc32(word.encode()) % WIDTH] += 1
    return vector / np.linalg.norm(vector)


def answer_of(path, body):
    if path == "/v1/embeddings":
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        vectors = [vector_of(text) for text in texts]
        packed = body.get("encoding_format") == "base64"
        shown = [base64.b64encode(each.tobytes()).decode() if packed else each.tolist() for each in vectors]
        data = [{"object": "embedding", "index": row, "embedding": one} for row, one in enumerate(shown)]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return {"object": "list", "data": data, "model": body["model"], "usage": usage}
    if path == "/v1/search":
        query = vector_of(body["query"])
        hits = [{**one, "score": float(query @ vector_of(one["text"]))} for one in DOCUMENTS]
        hits.sort(key=lambda hit: -hit["score"])
        known = {"collection": body["collection"], "expert": "health", "weights": {"health": 1.0}}
        return {**known, "results": hits[: body["top_k"]]}
    assert path == "/v1/chat/completions"
    first = re.findall(r"\[.*?\]", body["messages"][0]["content"])[0]
    message = {"role": "assistant", "content": f"A pinched nerve {first}."}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "tiny", "choices": [choice]}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = json.dumps(answer_of(self.path, body)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_every_example_is_tested_and_listed():
    files = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"documents"}
    assert files == set(NEEDS)
    page = (ROOT / "docs" / "how-to" / "integrate.md").read_text()
    assert [name for name in files if f"examples/{name}.py" not in page] == []


@pytest.mark.parametrize("name", sorted(set(NEEDS) - {"rag"}))
def test_an_example_finds_the_document(name, url):
    pytest.importorskip(NEEDS[name])
    ids = importlib.import_module(f"examples.{name}").main(url)
    assert ids[0] == "d1"
    if len(ids) == 4:  # a store's two, and the service's two
        assert ids[2] == "d1"


def test_an_answer_is_generated_from_what_was_found(url):
    pytest.importorskip("openai")
    rag = importlib.import_module("examples.rag")
    assert rag.main(url, f"{url}/v1") == "A pinched nerve [d1]."


def test_question_answering_stays_short():
    assert len((ROOT / "examples" / "rag.py").read_text().splitlines()) <= 40
