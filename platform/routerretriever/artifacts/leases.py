"""Leases: of several runs that share a storage, one makes an artifact and the others wait.

A lease is a small file that its holder rewrites every few seconds. One that has not changed for a minute, by
the clock of whoever waits for it, is taken over. So is one of a process of this machine that is gone.

Leases only avoid duplicate work. Correctness never depends on them: writes are atomic and verified by hash.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from routerretriever.artifacts.filesystem import FileSystem
from routerretriever.errors import StorageError
from routerretriever.runtime.progress import log

_RENEW_SECONDS = 5.0
EXPIRE_SECONDS = 60.0


@dataclass
class Leases:
    """The leases that one run holds or waits for. Use one object for all attempts at the same artifacts."""

    files: FileSystem
    _seen: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    """Others' leases: what the file said, and when it was first seen to say so (monotonic seconds)."""

    @property
    def is_waiting(self) -> bool:
        """Whether leases of others have been met."""
        return bool(self._seen)

    @contextmanager
    def hold(self, keys: Sequence[str]) -> Iterator[list[str]]:
        """Lease artifacts for the length of a block; gives the keys that nobody else holds."""
        mine: dict[str, str] = {}
        done = threading.Event()

        def renew() -> None:
            number = 0
            while not done.wait(_RENEW_SECONDS):
                number += 1
                for key, holder in list(mine.items()):
                    try:
                        if _holder(self.files.read(_path(key))) == holder:
                            self.files.write(_path(key), _content(holder, number))
                    except (StorageError, FileNotFoundError) as error:
                        log.warning("the lease on %s was not renewed: %s", key, error)

        # From before the first is taken, for taking many on slow storage may last longer than one lives.
        renewing = threading.Thread(target=renew, daemon=True)
        renewing.start()
        try:
            for key in keys:
                holder = f"{_machine()}:{os.getpid()}:{uuid.uuid4().hex}"
                if self._is_abandoned(key):
                    self.files.remove(_path(key))
                if self.files.create(_path(key), _content(holder, 0)):
                    mine[key] = holder
            yield list(mine)
        finally:
            done.set()
            renewing.join()
            for key in mine:
                self.files.remove(_path(key))

    def _is_abandoned(self, key: str) -> bool:
        try:
            found = self.files.read(_path(key))
        except FileNotFoundError:
            return False
        host, _, process = _holder(found).rpartition(":")[0].rpartition(":")
        if host == _machine() and not _is_alive(int(process)):
            return True
        if key not in self._seen or self._seen[key][0] != found:
            self._seen[key] = found, time.monotonic()
        return time.monotonic() - self._seen[key][1] > EXPIRE_SECONDS


def _path(key: str) -> str:
    return f"leases/{key}"


def _content(holder: str, renewals: int) -> bytes:
    return f"{holder} {renewals}".encode()


def _holder(content: bytes) -> str:
    return content.decode().partition(" ")[0]


def _machine() -> str:
    """This machine; on Linux also who sees the same processes. Containers may have one name."""
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
