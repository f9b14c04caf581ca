"""An endpoint that behaves and misbehaves like other people's, and a tiny causal language model."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Endpoint:
    """What a test says that the endpoint does, and what it saw."""

    def __init__(self) -> None:
        self.url = ""
        self.tokens = 100
        self.fails: Any = lambda number: False
        """Number of a request -> whether it gets a 500."""
        self.html = False
        self.status = 0
        self.refuses: dict[str, str] = {}
        """Field of a request -> the message of the 400 that it gets."""
        self.finish_reason = "stop"
        self.hold: threading.Event | None = None
        """While it is there and not set, nothing is answered."""
        self.answer: Any = None
        """Prompt -> content; by default two words of the document."""
        self.requests: list[dict[str, Any]] = []
        self.keys: Counter[str] = Counter()
        self.most_at_once = 0
        self._now = 0
        self.lock = threading.Lock()

    @contextmanager
    def counted(self) -> Iterator[int]:
        with self.lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            number = len(self.requests)
        try:
            yield number
        finally:
            with self.lock:
                self._now -= 1


@contextmanager
def endpoint(
    path: str = "chat/completions", reply: Callable[[dict[str, Any]], Any] | None = None
) -> Iterator[Endpoint]:
    """A server in a thread of this process, on a port of its own; ``reply`` answers what are no chats."""
    told = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with told.counted() as number:
                with told.lock:
                    told.requests.append(body)
                    told.keys[self.headers.get("Authorization", "")] += 1
                if told.hold is not None:
                    told.hold.wait(60)
                self._answer(body, number)

        def _answer(self, body: dict[str, Any], number: int) -> None:
            if self.path != f"/v1/{path}":
                self._send(404, "text/plain", b"no such page")
            elif told.html:
                self._send(200, "text/html; charset=utf-8", b"<html><body>Welcome</body></html>")
            elif told.status:
                self._send(told.status, "application/json", b'{"error": {"message": "no"}}')
            elif refused := next((name for name in told.refuses if name in body), None):
                answer = {"error": {"message": told.refuses[refused], "param": refused}}
                self._send(400, "application/json", json.dumps(answer).encode())
            elif told.fails(number):
                self._send(500, "application/json", b'{"error": {"message": "broken"}}')
            elif reply is not None:
                self._send(200, "application/json", json.dumps(reply(body)).encode())
            else:
                prompt = body["messages"][-1]["content"]
                content = told.answer(prompt) if told.answer else _words_of(prompt)
                answer = {
                    "choices": [
                        {
                            "message": {"role": "assistant", "content": content},
                            "finish_reason": told.finish_reason,
                        }
                    ],
                    "usage": {"total_tokens": told.tokens},
                }
                self._send(200, "application/json", json.dumps(answer).encode())

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if status == 500:
                self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield told
    finally:
        if told.hold is not None:
            told.hold.set()
        server.shutdown()
        server.server_close()
        thread.join(30)


def _words_of(prompt: str) -> str:
    """The title and the first word of a document of `support.collections`."""
    words = prompt.rpartition("Document: ")[2].split()
    return f'Query: "where is {words[1]} with {words[0].strip(".")}"'


def write_language_model(folder: Path) -> Path:
    """A random two-layer Llama over bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {char: number for number, char in enumerate(["<end>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.5, max_position_embeddings=4096,
        eos_token_id=0, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(3)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
