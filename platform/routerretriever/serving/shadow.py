"""Shadow traffic: the challenger repeats some searches after they were answered; nobody sees what it finds.

Shadows never delay users: they are dropped while queries wait or other shadows run. Failures are counted and
logged. At worst a query finds the encoder busy with one pass of a shadow.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import Protocol

from routerretriever.client.schemas import SearchRequest, SearchResponse
from routerretriever.errors import Overloaded
from routerretriever.serving.access import Access
from routerretriever.serving.ports import MetricsPort

log = logging.getLogger("ray.serve")

_AT_ONCE = 2


class Challenger(Protocol):
    """A release that can repeat a search."""

    @property
    def version(self) -> int:
        """The bundle's number in the registry."""
        ...

    async def shadow_search(self, request: SearchRequest, access: Access) -> SearchResponse:
        """The same search, by this release."""
        ...


class Shadows:
    """The shadowed searches of a router replica."""

    def __init__(self, share: float, seconds: float, metrics: MetricsPort) -> None:
        """Set the bounds.

        Args:
            share: share of the searches that are shadowed.
            seconds: a shadow that takes longer is given up.
            metrics: where it is counted how far the two bundles agree.
        """
        self._share = share
        self._seconds = seconds
        self._metrics = metrics
        self.running: set[asyncio.Task[None]] = set()

    def offer(
        self,
        challenger: Challenger,
        busy: bool,
        request: SearchRequest,
        access: Access,
        response: SearchResponse,
        seconds: float,
    ) -> None:
        """Perhaps have the challenger search too; returns at once.

        Args:
            challenger: what is tried.
            busy: whether users' queries wait.
            request: a search that has been answered.
            access: what who asked may read.
            response: what went out.
            seconds: how long that took.
        """
        if random.random() >= self._share:
            return
        if busy or len(self.running) >= _AT_ONCE:
            self._metrics.shadows.inc(1, {"outcome": "dropped"})
            return
        task = asyncio.create_task(self._answer(challenger, request, access, response, seconds))
        self.running.add(task)
        task.add_done_callback(self.running.discard)

    async def _answer(
        self,
        challenger: Challenger,
        request: SearchRequest,
        access: Access,
        response: SearchResponse,
        seconds: float,
    ) -> None:
        start = time.perf_counter()
        try:
            async with asyncio.timeout(self._seconds):
                shadow = await challenger.shadow_search(request, access)
        except Overloaded:
            self._metrics.shadows.inc(1, {"outcome": "dropped"})
            return
        except Exception as error:
            log.warning("the challenger, version %d, fails at a search: %r", challenger.version, error)
            self._metrics.shadows.inc(1, {"outcome": "failed"})
            return
        self._metrics.shadow_seconds.observe(seconds, {"answer": "sent"})
        self._metrics.shadow_seconds.observe(time.perf_counter() - start, {"answer": "shadow"})
        same = "same expert" if shadow.expert == response.expert else "other expert"
        self._metrics.shadows.inc(1, {"outcome": same})
        mine, theirs = ({(hit.collection, hit.id) for hit in each.results} for each in (response, shadow))
        both = len(mine & theirs)
        for found, count in (("both", both), ("one", len(mine) - both)):
            if count:
                self._metrics.shadow_documents.inc(count, {"found_by": found})
