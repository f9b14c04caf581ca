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

from examples.documents import DOCUMENTS

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
    if path == "/v1/route":
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        route = {"expert": "shell", "weights": {"shell": 1.0}, "scores": {"shell": 1.0}, "nearest": []}
        return {"data": [{**route, "margin": None, "gate": None} for _ in texts]}
    if path.endswith("/documents"):
        return {"change": 1, "searchable_within_seconds": 1.0}
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
