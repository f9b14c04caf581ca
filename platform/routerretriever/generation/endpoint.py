"""A language model behind an OpenAI-compatible endpoint: bounded concurrency, retries, a budget of tokens.

A request that fails for a reason that may pass is sent again; in the end its answer says so and the others
go on. Fields that a model does not take, as reasoning models take no temperature, are left out. What makes
every request fail (a wrong key, a model that is not there, no budget or credit left) ends the work with one
line. The key is read from the environment when it is needed and kept nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from threading import Lock
from typing import Any

import httpx

from routerretriever.datasets.reading import mend
from routerretriever.errors import WriterError
from routerretriever.generation.budget import Budget
from routerretriever.generation.prompts import Prompt, estimated_tokens, most_tokens, without_thoughts
from routerretriever.generation.protocol import Answer, still_thinking
from routerretriever.generation.settings import EndpointSettings
from routerretriever.runtime.endpoint import (
    Passing,
    key_header,
    key_refused,
    media_type,
    open_client,
    post,
    reason_told,
    retrying,
)
from routerretriever.runtime.progress import log

_NO_USE = {401, 402, 403, 404, 405}
"""Answers that no other request will better."""
_WRONG_FIELD = {400, 422}
_UNSUPPORTED = re.compile(
    r"(?i)unsupported|not support|unrecognized|unknown|unexpected|forbidden|not permitted"
)
"""As endpoints say that a model takes no such field; a document that is too long is refused otherwise."""
_OPTIONAL = {
    "max_completion_tokens": None,
    "max_tokens": "max_completion_tokens",
    "seed": None,
    "temperature": None,
}
"""Fields that some models refuse, and under what name they may take them."""


class EndpointModel:
    """Asks ``/chat/completions`` for one answer a request."""

    def __init__(self, endpoint: EndpointSettings, max_tokens: int, spent: int, field: str) -> None:
        """Nothing is asked yet; see ``open_model``."""
        self._endpoint = endpoint
        own = (endpoint.extra_body.get(name) for name in ("max_tokens", "max_completion_tokens"))
        self._max_tokens = max([max_tokens, *(tokens for tokens in own if isinstance(tokens, int))])
        self._field = field
        self._budget = Budget(endpoint.token_budget, spent, field)
        self._refused = set[str]()
        """Fields that the model does not take."""
        self._learning = Lock()

    def check(self) -> None:
        """Make sure that there is a key, and that the environment's proxies can be used."""
        self._open().close()

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer]]:
        """Send the prompts, some at a time."""
        waiting, running = list(enumerate(prompts))[::-1], dict[Future[Answer], int]()
        failed: WriterError | None = None
        with (
            self._open() as http,
            ThreadPoolExecutor(self._endpoint.concurrency) as pool,
        ):
            while running or (waiting and failed is None):
                while waiting and failed is None and len(running) < self._endpoint.concurrency:
                    number, prompt = waiting.pop()
                    running[pool.submit(self._ask, http, prompt)] = number
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    number = running.pop(future)
                    try:
                        answer = future.result()
                    except WriterError as error:
                        failed = failed or error
                        continue
                    yield number, answer
        if failed is not None:
            raise failed

    def _open(self) -> httpx.Client:
        settings = self._endpoint
        return open_client(self._headers(), settings.timeout_seconds, settings.concurrency, WriterError)

    def _ask(self, http: httpx.Client, prompt: Prompt) -> Answer:
        reserved = most_tokens(prompt, self._max_tokens)
        attempts = retrying(self._endpoint.attempts)
        self._budget.reserve(reserved)
        answer = Answer("")
        try:
            answer = attempts(self._send, http, prompt)
        except Passing as error:
            if error.reason:  # as that there is no credit left, which no waiting will better
                log.warning("%s: %s", self._endpoint.url, error)
            answer = Answer("", 0, error.problem, passing=True)
        finally:
            self._budget.settle(reserved, answer.tokens)
        return answer

    def _send(self, http: httpx.Client, prompt: Prompt) -> Answer:
        url = f"{self._endpoint.url.rstrip('/')}/chat/completions"
        response = post(http, url, body := self._body(prompt))
        while self._has_learned(response, body):
            response = post(http, url, body := self._body(prompt))
        if response.status_code in _NO_USE:
            raise WriterError(self._useless(response))
        if response.status_code >= 400:
            # This document is at fault: too long, or refused. It will not be better.
            log.warning("%s: status %d: %s", self._endpoint.url, response.status_code, reason_told(response))
            return Answer("", 0, f"refused (status {response.status_code})")
        try:
            answer = response.json()
            choice = answer["choices"][0]
            text = mend(choice["message"]["content"] or "")  # half a character could not be kept
            is_whole = choice.get("finish_reason") != "length" or without_thoughts(text).strip()
            used = max(int((answer.get("usage") or {}).get("total_tokens") or 0), 0)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError):
            # OpenRouter answers 200 when a model's own server fails or limits its rate, and says so there.
            problem = f"answered {media_type(response)}, no completion"
            raise Passing(problem, reason=reason_told(response)) from None
        asked = (message["content"] for message in prompt.messages)
        problem = "" if is_whole else still_thinking(self._max_tokens)
        return Answer(text, used or estimated_tokens(*asked, text), problem)

    def _body(self, prompt: Prompt) -> dict[str, Any]:
        """A request, without what the model has refused."""
        refused = set(self._refused)
        options = {
            "max_tokens": self._max_tokens,
            "temperature": self._endpoint.temperature,
            "seed": prompt.seed,
        }
        for name in sorted(refused & options.keys()):
            value, instead = options.pop(name), _OPTIONAL[name]
            if instead is not None and instead not in refused:
                options[instead] = value
        own = {"model": self._endpoint.model, "messages": prompt.messages}
        return self._endpoint.complete(own | options)

    def _has_learned(self, response: httpx.Response, body: dict[str, Any]) -> bool:
        """Whether the model has refused a field of this request that it can be asked without."""
        if response.status_code not in _WRONG_FIELD or not _UNSUPPORTED.search(response.text):
            return False
        for name in _OPTIONAL.keys() & body.keys() - self._endpoint.extra_body.keys():
            if re.search(rf"\b{name}\b", response.text):
                with self._learning:
                    if name not in self._refused:
                        told = "%s: %s takes no %s; it is asked without"
                        log.info(told, self._endpoint.url, self._endpoint.model, name)
                    self._refused.add(name)
                return True
        return False

    def _headers(self) -> dict[str, str]:
        return key_header(self._endpoint.key_variable, f"{self._field}.key_variable", WriterError)

    def _useless(self, response: httpx.Response) -> str:
        url, told = self._endpoint.url, ""
        if media_type(response) == "application/json":  # as Ollama: model not found, try pulling it first
            told = f": {reason_told(response)}"
        return key_refused(response, url, self._endpoint.key_variable, self._field) or (
            f"{self._field}: {url} knows no chat completions, or no model {self._endpoint.model!r} "
            f"(status {response.status_code}{told}); the url usually ends in /v1"
        )
