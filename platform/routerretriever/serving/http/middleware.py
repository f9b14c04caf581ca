"""What every request passes: its id, who asks, its size, how much is in progress, its deadline, the log."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections import Counter

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from routerretriever.config.serving import ServingSettings
from routerretriever.serving.access import Access
from routerretriever.serving.http.auth import Authenticator, Denied
from routerretriever.serving.http.errors import problem
from routerretriever.serving.ports import MetricsPort

log = logging.getLogger("ray.serve")

_PREFIX = re.compile(r"(/[\w.~-]+)+")

_OPEN = {"/", "/healthz", "/readyz", "/docs", "/openapi.json"}
"""Need no token: they tell nothing that was put into the service."""


def _changes_what_is_kept(scope: Scope) -> bool:
    """Whether a request needs a token that may write. Reporting feedback does not; deleting it does."""
    if "/collections" in scope["path"]:
        return bool(scope["method"] != "GET")
    return bool(scope["path"].endswith("/feedback/delete"))


def _plain(scope: Scope) -> Scope:
    """A request as the routes know it: HEAD asks as GET does, and no path ends in a slash.

    A redirect would name the address that this process knows itself by, which behind a proxy is another.
    """
    method, path = scope["method"], scope["path"]
    return {**scope, "method": "GET" if method == "HEAD" else method, "path": path.rstrip("/") or "/"}


class Middleware:
    """Around the whole application: authentication, limits, deadline, access log."""

    def __init__(
        self, app: ASGIApp, settings: ServingSettings, authenticator: Authenticator, metrics: MetricsPort
    ) -> None:
        self.app = app
        self._limits = settings.limits
        self._root_path = settings.root_path
        self._authenticator = authenticator
        self._metrics = metrics
        self.in_progress: Counter[str] = Counter()
        """Requests, by client."""
        self._too_large = f"body: more than {settings.limits.body_bytes} bytes"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or say why not."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        method, scope = scope["method"], _plain(scope)
        headers = dict(scope["headers"])
        # Not longer than an id is, and of characters that are safe in a log.
        request_id = headers.get(b"x-request-id", b"").decode("latin-1")[:128]
        if not request_id or not request_id.replace("-", "").replace("_", "").isalnum():
            request_id = uuid.uuid4().hex
        prefix = headers.get(b"x-forwarded-prefix", b"").decode("latin-1").rstrip("/")
        if not _PREFIX.fullmatch(prefix):
            prefix = self._root_path
        if prefix:
            scope["root_path"] = prefix  # what openapi.json gives as the service's address
        scope["state"] = {"bundle": None, "access": Access(), "id": request_id, "charged": 0}
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # Ray names the id itself, in both directions; without Ray there is nobody else to.
                extra = [] if b"x-request-id" in headers else [(b"x-request-id", request_id.encode())]
                if scope["state"]["bundle"] is not None:
                    extra.append((b"x-bundle-version", str(scope["state"]["bundle"]).encode()))
                message = {**message, "headers": [*message["headers"], *extra]}
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._admit(scope, headers, receive, send_marked)
        except asyncio.CancelledError:
            status = 499
            raise
        except Exception:
            log.exception("request %s failed", request_id)
            if not status:
                message = f"this is our mistake; request id {request_id} finds it in the logs"
                await problem(500, message)(scope, receive, send_marked)
        finally:
            if status == 503:  # the client is asked to come again
                self._authenticator.give_back(scope["state"]["access"].client, scope["state"]["charged"])
            self._note(scope, method, status, time.perf_counter() - start, request_id)

    async def _admit(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        if scope["path"] in _OPEN:
            await self.app(scope, receive, send)
            return
        access = self._authenticator.check(
            headers.get(b"authorization", b"").decode("latin-1"),
            headers.get(b"host", b"localhost").decode("latin-1"),
            (scope.get("client") or [None])[0],
            writes=_changes_what_is_kept(scope),
        )
        if isinstance(access, Denied):
            response = problem(access.status, access.message, retry_after=access.retry_after)
        elif self._is_crowded(access.client):
            response = problem(503, f"{self.in_progress.total()} requests are in progress", retry_after=1)
        else:
            scope["state"]["access"] = access
            await self._run(scope, headers, receive, send)
            return
        await response(scope, receive, send)

    def _is_crowded(self, client: str) -> bool:
        """Whether all room is taken, and a client has its share of it: one alone keeps nobody else out."""
        clients = len(self.in_progress.keys() | {client})
        most = self._limits.requests
        return self.in_progress.total() >= most and self.in_progress[client] >= most // clients

    async def _run(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        client = scope["state"]["access"].client
        self.in_progress[client] += 1
        try:
            encoding = headers.get(b"content-encoding", b"").decode("latin-1")
            if encoding not in ("", "identity"):
                message = f"Content-Encoding: found {encoding!r}; send the body as it is"
                await problem(415, message, "Content-Encoding")(scope, receive, send)
                return
            length = headers.get(b"content-length", b"0")
            if length.isdigit() and int(length) > self._limits.body_bytes:
                await problem(413, self._too_large)(scope, receive, send)
                return
            await self._run_in_time(scope, receive, send)
        finally:
            self.in_progress[client] -= 1
            if not self.in_progress[client]:
                del self.in_progress[client]

    async def _run_in_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        seconds = self._limits.seconds
        started = asyncio.get_running_loop().time()
        deadline = asyncio.timeout(seconds)

        def allow(tokens: int) -> None:
            """Count the tokens that a request has read, and move its deadline by what they may take."""
            nonlocal seconds
            self._authenticator.charge(scope["state"]["access"].client, tokens)
            scope["state"]["charged"] += tokens
            seconds = self._limits.seconds + self._limits.seconds_per_token * tokens
            deadline.reschedule(started + seconds)

        scope["state"]["allow"] = allow
        try:
            async with deadline:
                await self.app(scope, self._bounded(receive), send)
        except TimeoutError:
            if not deadline.expired():
                raise  # somebody else's, as a socket's
            message = f"not done within {seconds:g} seconds"
            await problem(504, message)(scope, receive, send)

    def _bounded(self, receive: Receive) -> Receive:
        read = 0

        async def receive_bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._limits.body_bytes:
                raise HTTPException(413, self._too_large)
            return message

        return receive_bounded

    def _note(self, scope: Scope, method: str, status: int, seconds: float, request_id: str) -> None:
        # The route's pattern, not the path: paths hold names, of which there may be very many.
        route = getattr(scope.get("route"), "path", "unknown")
        bundle = str(scope["state"]["bundle"] or "")
        self._metrics.requests.inc(1, {"route": route, "status": str(status), "bundle": bundle})
        self._metrics.request_seconds.observe(seconds, {"route": route})
        if route not in _OPEN:
            milliseconds = round(seconds * 1000, 1)
            fields = {"request": request_id, "route": route, "status": status, "bundle": bundle}
            log.info(
                "%s %s %s %.1fms", method, route, status, milliseconds,
                extra={**fields, "milliseconds": milliseconds},
            )  # fmt: skip
