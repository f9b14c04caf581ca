"""A log line of what is being done whenever none has been written for a while: silence looks like a hang."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SILENT_SECONDS = 25.0


class Heartbeat(logging.Handler):
    """Notes when a logger last wrote, and what is at work; writes a line itself when that is long ago."""

    def __init__(self, logger: logging.Logger, seconds: float = SILENT_SECONDS) -> None:
        super().__init__()
        self._logger, self._seconds = logger, seconds
        self._wrote = time.monotonic()
        self._work: list[tuple[float, Callable[[], str]]] = []
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Somebody has written a line."""
        self._wrote = time.monotonic()

    def close(self) -> None:
        """Logging is shut down."""
        self._closed.set()
        super().close()

    @contextmanager
    def during(self, describe: Callable[[], str]) -> Iterator[None]:
        """Something is at work while a block runs; what began last is what is told."""
        work = (time.monotonic(), describe)
        self._work.append(work)
        try:
            yield
        finally:
            self._work.remove(work)

    def start(self) -> None:
        """Look every second from now on, in a thread that ends with logging or the process."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
            self._thread.start()

    def beat(self) -> None:
        """Write a line if it is time, and if this is still one of the logger's handlers."""
        if self not in self._logger.handlers:
            return
        now = time.monotonic()
        begun, describe = self._work[-1] if self._work else (now, str)
        if now - max(self._wrote, begun) >= self._seconds:
            self._logger.info("still %s (%.0f s)", describe(), now - begun)

    def _watch(self) -> None:
        while not self._closed.wait(1):
            self.beat()
