"""Asking somebody else's HTTP endpoint: what may pass is tried again; the key comes from the environment.

Knows nothing of what is asked; ``generation.endpoint`` and ``training.rerankers`` do.
"""

from __future__ import annotations

import math
import os
import re
import time
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_exponential, wait_random

from routerretriever.errors import RouterRetrieverError

_LONGEST_PAUSE = 20.0
_FIRST_PAUSE = 0.25
_FIRST_PAUSE_AT_LIMIT = 2.0
"""Limits are counted by the second or the minute."""
_NO_CREDIT, _FORBIDDEN, _LIMIT = 402, 403, 429
_TRANSIENT_STATUSES = {408, 409, 425, _LIMIT}


class Passing(Exception):
    """An attempt failed, and another may not."""

    def __init__(
        self, problem: str, pause: float | None = None, first_pause: float = _FIRST_PAUSE, reason: str = ""
    ) -> None:
        super().__init__(f"{problem}: {reason}" if reason else problem)
        self.problem = problem
        """In a few words."""
        self.pause = pause
        """Seconds that the endpoint asks to wait."""
        self.first_pause = first_pause
        """Seconds, if it does not ask; they grow from attempt to attempt."""
        self.reason = reason
        """As the endpoint told it, on one line; empty if it did not."""


def retrying(attempts: int) -> Retrying:
    """Calls a function again while it raises ``Passing``, at growing intervals; then raises that."""
    return Retrying(
        retry=retry_if_exception_type(Passing), wait=_pause, stop=stop_after_attempt(attempts), reraise=True
    )


def open_client(
    headers: dict[str, str], seconds: float, concurrency: int, error: type[RouterRetrieverError]
) -> httpx.Client:
    """What sends requests, through the proxies that the environment names.

    Raises:
        error: one of them cannot be used, as the ``socks://`` that GNOME writes.
    """
    try:
        limits = httpx.Limits(max_connections=concurrency)
        return httpx.Client(headers=headers, timeout=seconds, limits=limits)
    except (ImportError, ValueError, httpx.InvalidURL) as problem:
        raise error(
            f"a proxy of the environment cannot be used ({problem}); mend or unset all_proxy, http_proxy, "
            "https_proxy and no_proxy, which may stand in capitals"
        ) from None


def post(http: httpx.Client, url: str, body: dict[str, Any]) -> httpx.Response:
    """Send one request. An answer below status 500 may still be a refusal.

    Raises:
        Passing: no connection, no answer in time, or an answer that asks to try later.
    """
    try:
        response = http.post(url, json=body)
    except httpx.TimeoutException:
        raise Passing("no answer in time") from None
    except httpx.DecodingError:
        raise Passing("answered what cannot be decompressed") from None
    except httpx.TransportError as error:
        raise Passing(f"no connection ({type(error).__name__})") from None
    if response.has_redirect_location:
        raise Passing(f"status {response.status_code}, sends to {response.headers['Location'][:200]}")
    if response.status_code >= 500 or response.status_code in _TRANSIENT_STATUSES:
        first = _FIRST_PAUSE_AT_LIMIT if response.status_code == _LIMIT else _FIRST_PAUSE
        raise Passing(f"status {response.status_code}", _asked_pause(response), first, reason_told(response))
    return response


def key_header(variable: str | None, field: str, error: type[RouterRetrieverError]) -> dict[str, str]:
    """The header with the key that an environment variable holds. It is kept nowhere else.

    Args:
        variable: its name; None: no key.
        field: the setting that names it.
        error: what is raised if the variable is not set, or holds no key.
    """
    if variable is None:
        return {}
    key = os.environ.get(variable, "").strip()
    if not key:
        raise error(f"{field}: the environment variable {variable} is not set; set it to the endpoint's key")
    if not re.fullmatch(r"[!-~]+", key):
        raise error(
            f"{field}: {variable} holds a space, a line break or a letter that no key has; set it anew"
        )
    return {"Authorization": f"Bearer {key}"}


def key_refused(response: httpx.Response, url: str, variable: str | None, field: str) -> str | None:
    """What to tell if an endpoint refuses all requests with this key, or without one; None if it does not."""
    if response.status_code == _NO_CREDIT:
        return (
            f"{field}: {url} wants to be paid first (status {_NO_CREDIT}); add credit there and run the same "
            "command again: what was answered is kept"
        )
    if response.status_code not in (401, _FORBIDDEN):
        return None
    held = f"the key in {variable}" if variable else "a request without a key"
    if response.status_code == _FORBIDDEN and media_type(response) == "application/json":
        # Not always for the key: of a model that it may not use, or a place that is not served.
        told = reason_told(response)
        return f"{field}: {url} refused {held} (status 403: {told}); mend that, or set key_variable"
    return f"{field}: {url} refused {held} (status {response.status_code}); set key_variable to a good one"


def reason_told(response: httpx.Response) -> str:
    """Why an endpoint refuses, on one line, in OpenAI's form if it has it; without the key."""
    try:
        told = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        told = response.text
    key = response.request.headers.get("Authorization", "").removeprefix("Bearer ")
    return " ".join((told.replace(key, "***") if key else told)[:200].split())


def media_type(response: httpx.Response) -> str:
    """What an answer says that it is: ``text/html``."""
    return response.headers.get("Content-Type", "").split(";")[0] or "something"


def _asked_pause(response: httpx.Response) -> float | None:
    """Seconds that an answer asks to wait, as a number or until a date; None if it does not say."""
    told = response.headers.get("Retry-After", "")
    try:
        seconds = float(told)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(told).timestamp() - time.time()
        except ValueError:
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, Passing) and error.pause is not None:
        return min(error.pause, _LONGEST_PAUSE)
    first = error.first_pause if isinstance(error, Passing) else _FIRST_PAUSE
    pause = wait_exponential(first, max=_LONGEST_PAUSE) + wait_random(0, _FIRST_PAUSE)
    return pause(state)
