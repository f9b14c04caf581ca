"""Turns: of several runs that share a storage, one does what must not be done twice at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from routerretriever.artifacts.filesystem import FileSystem
from routerretriever.artifacts.leases import Leases
from routerretriever.runtime.progress import at_work, log

_POLL_SECONDS = 1.0


@contextmanager
def turn(files: FileSystem, key: str) -> Iterator[None]:
    """Hold a lease while a block runs; waits for another run that holds it, and says so.

    Args:
        files: the storage that the runs share.
        key: what is leased.
    """
    leases = Leases(files)
    is_told = False
    while True:
        with leases.hold([key]) as mine:
            if mine:
                yield
                return
        if not is_told:
            log.info("waiting for another run, which holds %s", key)
            is_told = True
        with at_work(f"waiting for another run, which holds {key}"):
            time.sleep(_POLL_SECONDS)
