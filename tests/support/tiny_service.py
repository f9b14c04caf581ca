"""A service of a few documents over HTTP, for what only needs somebody who answers: examples and pages."""

from __future__ import annotations

import base64
import json
import re
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from routerretriever.client.schemas import FeedbackRequest, SearchRequest

from examples.documents import DOCUMENTS

WIDTH = 64
CREATED = {}
"""Collection -> document id -> document, of what clients have written."""
STATE = {"change": 0, "lexical": None, "created": True, "writable": True}
"""What all of these have in common."""


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
        SearchRequest.model_validate(body)
        query = vector_of(body["query"])
        stored = CREATED.get(body["collection"], {}).values() or DOCUMENTS
        hits = [{"title": "", **one, "score": float(query @ vector_of(one["text"]))} for one in stored]
        hits.sort(key=lambda hit: -hit["score"])
        known = {"collection": body["collection"], "expert": "health", "weights": {"health": 1.0}}
        return {**known, "results": hits[: body["top_k"]]}
    if path == "/v1/route":
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        route = {"expert": "shell", "weights": {"shell": 1.0}, "scores": {"shell": 1.0}, "nearest": []}
        return {"data": [{**route, "margin": None, "gate": None} for _ in texts]}
    if path == "/v1/collections":
        if body:
            CREATED[body["name"]] = {}
        states = [{**STATE, "name": name, "documents": len(stored)} for name, stored in CREATED.items()]
        return states[-1] if body else states
    if path.endswith("/documents"):
        CREATED.setdefault(path.split("/")[-2], {}).update({one["id"]: one for one in body["documents"]})
        return {"change": 1, "searchable_within_seconds": 1.0}
    if path == "/v1/feedback":
        FeedbackRequest.model_validate(body)
        return {"id": body["id"]}
    if path == "/v1/feedback/delete":
        return {"deleted": 1}
    assert path == "/v1/chat/completions"
    first = re.findall(r"\[.*?\]", body["messages"][0]["content"])[0]
    message = {"role": "assistant", "content": f"A pinched nerve {first}."}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "tiny", "choices": [choice]}


class OpenSearch:
    """What little of it the example asks; it takes requests of the documented form only."""

    def __init__(self) -> None:
        self.width, self.weights, self.stored = 0, [], {}

    def answer(self, path, text):
        lines = [json.loads(line) for line in text.splitlines() if line]
        if path == "/faq":
            field = lines[0]["mappings"]["properties"]["vector"]
            assert field["type"] == "knn_vector"
            assert lines[0]["settings"] == {"index.knn": True}
            self.width = field["dimension"]
        elif path.startswith("/faq/_bulk"):
            self.stored = {one["index"]["_id"]: two for one, two in zip(lines[::2], lines[1::2], strict=True)}
            assert {len(one["vector"]) for one in self.stored.values()} == {self.width}
        elif path == "/_search/pipeline/faq-hybrid":
            processor = lines[0]["phase_results_processors"][0]["normalization-processor"]
            self.weights = processor["combination"]["parameters"]["weights"]
        else:
            assert path == "/faq/_search?search_pipeline=faq-hybrid"
            words, near = lines[0]["query"]["hybrid"]["queries"]
            assert len(self.weights) == 2
            assert "text" in words["match"]
            query = near["knn"]["vector"]["vector"]
            scores = {name: float(np.dot(query, one["vector"])) for name, one in self.stored.items()}
            best = sorted(scores, key=lambda name: -scores[name])[: lines[0]["size"]]
            return {"hits": {"hits": [{"_id": name, "_score": scores[name]} for name in best]}}
        return {"acknowledged": True}


class Handler(BaseHTTPRequestHandler):
    opensearch = OpenSearch()

    def do_PUT(self):
        self.do_POST()

    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers["Content-Length"])).decode())

    def do_GET(self):
        self.answer("null")

    def answer(self, text):
        ours = self.path.startswith("/v1/")
        answer = answer_of(self.path, json.loads(text)) if ours else self.opensearch.answer(self.path, text)
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def tiny_service() -> Iterator[str]:
    """Its address, while a block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
