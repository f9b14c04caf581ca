"""A writer behind an OpenAI-compatible endpoint: bounded concurrency, retries, a budget of tokens.

A request that fails for a reason that may pass is sent again; in the end its row has a problem and the
others go on. What makes every request fail (a wrong key, a model that is not there, no budget left) ends
the writing with one line. The key is read from the environment when it is needed and kept nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from threading import Lock
from typing import Any

import httpx

from routerretriever.errors import WriterError
from routerretriever.generation.prompts import Request, chat, clean
from routerretriever.generation.protocol import Written
from routerretriever.generation.settings import EndpointSettings, GenerationSettings
from routerretriever.hashing import content_hash
from routerretriever.runtime.endpoint import Passing, key_header, media_type, post, retrying
from routerretriever.runtime.progress import log

_LETTERS_A_TOKEN = 3
"""Fewer than there are in most languages, so that the estimate is rather too high."""
_NO_USE = {401, 403, 404, 405}
"""Answers that no other request will better."""


class _Budget:
    """Tokens that may still be spent. What a request may need at most is set aside before it is sent."""

    def __init__(self, tokens: int | None, spent: int) -> None:
        self._tokens, self._spent, self._lock = tokens, spent, Lock()

    def reserve(self, tokens: int) -> None:
        with self._lock:
            if self._tokens is not None and self._spent + tokens > self._tokens:
                raise WriterError(
                    f"generation.writer.token_budget: {self._tokens} tokens, {self._spent} of them spent or "
                    f"set aside: the next request may need {tokens}. What was written is kept: raise the "
                    "budget, or set generation.documents lower, and run the same command again"
                )
            self._spent += tokens

    def settle(self, reserved: int, used: int) -> None:
        with self._lock:
            self._spent += used - reserved


class EndpointWriter:
    """Asks ``/chat/completions`` for one query a request."""

    def __init__(self, settings: GenerationSettings, endpoint: EndpointSettings, spent: int = 0) -> None:
        self._settings = settings
        self._endpoint = endpoint
        self._budget = _Budget(endpoint.token_budget, spent)

    def check(self) -> None:
        """Make sure that there is a key."""
        self._headers()

    def write(self, requests: Sequence[Request]) -> Iterator[tuple[int, Written]]:
        """Send the requests, some at a time."""
        limits = httpx.Limits(max_connections=self._endpoint.concurrency)
        waiting, running = list(enumerate(requests))[::-1], dict[Future[Written], int]()
        failed: WriterError | None = None
        with (
            httpx.Client(
                headers=self._headers(), timeout=self._endpoint.timeout_seconds, limits=limits
            ) as http,
            ThreadPoolExecutor(self._endpoint.concurrency) as pool,
        ):
            while running or (waiting and failed is None):
                while waiting and failed is None and len(running) < self._endpoint.concurrency:
                    number, request = waiting.pop()
                    running[pool.submit(self._ask, http, request)] = number
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    number = running.pop(future)
                    try:
                        written = future.result()
                    except WriterError as error:
                        failed = failed or error
                        continue
                    yield number, written
        if failed is not None:
            raise failed

    def _ask(self, http: httpx.Client, request: Request) -> Written:
        messages = chat(request, self._settings.examples)
        letters = sum(len(message["content"]) for message in messages)
        reserved = letters // _LETTERS_A_TOKEN + self._settings.max_query_tokens
        body = {
            "model": self._endpoint.model,
            "messages": messages,
            "max_tokens": self._settings.max_query_tokens,
            "temperature": self._endpoint.temperature,
            "seed": int(content_hash(self._settings.seed, request.document, request.type)[:7], 16),
        }
        attempts = retrying(self._endpoint.attempts)
        self._budget.reserve(reserved)
        written = Written("")
        try:
            written = attempts(self._send, http, body)
        except Passing as error:
            written = Written("", 0, error.problem)
        finally:
            self._budget.settle(reserved, written.tokens)
        return written

    def _send(self, http: httpx.Client, body: dict[str, Any]) -> Written:
        response = post(http, f"{self._endpoint.url.rstrip('/')}/chat/completions", body)
        if response.status_code in _NO_USE:
            raise WriterError(self._useless(response))
        if response.status_code >= 400:
            # This document is at fault: too long, or refused. It will not be better.
            log.warning("%s: status %d: %s", self._endpoint.url, response.status_code, _message(response))
            return Written("", 0, f"refused (status {response.status_code})")
        try:
            answer = response.json()
            content = answer["choices"][0]["message"]["content"] or ""
            used = int((answer.get("usage") or {}).get("total_tokens") or 0)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise Passing(f"answered {media_type(response)}, no completion") from None
        query = clean(str(content))
        return Written(query, used or _estimate(body, str(content)), "" if query else "empty answer")

    def _headers(self) -> dict[str, str]:
        variable = self._endpoint.key_variable
        return key_header(variable, "generation.writer.key_variable", WriterError)

    def _useless(self, response: httpx.Response) -> str:
        url, status = self._endpoint.url, response.status_code
        if status in (401, 403):
            variable = self._endpoint.key_variable
            held = f"the key in {variable}" if variable else "a request without a key"
            return (
                f"generation.writer: {url} refused {held} (status {status}); set key_variable to a good one"
            )
        return (
            f"generation.writer: {url} knows no chat completions, or no model {self._endpoint.model!r} "
            f"(status {status}); the url usually ends in /v1"
        )


def _message(response: httpx.Response) -> str:
    """What an endpoint says of its refusal, in OpenAI's form if it has it."""
    try:
        return str(response.json()["error"]["message"])[:200]
    except (ValueError, KeyError, TypeError):
        return response.text[:200]


def _estimate(body: dict[str, Any], content: str) -> int:
    letters = sum(len(message["content"]) for message in body["messages"]) + len(content)
    return letters // _LETTERS_A_TOKEN
