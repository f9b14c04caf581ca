"""Shadow traffic: the challenger answers some searches too, after the answer has gone out, for nobody to see.

It says how a bundle that is not released would answer live queries. It is to cost users nothing: where
queries wait, or other shadows are at it, a shadow is dropped; one that fails is counted and logged. What is
left is that a query may find the encoder at work on a shadow's, for one pass of at most ``_AT_ONCE``.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING

from routerretriever.client.schemas import SearchRequest, SearchResponse
from routerretriever.errors import Overloaded
from routerretriever.serving.deployments.metrics import Metrics

if TYPE_CHECKING:
    from routerretriever.serving.deployments.ingress import Service

log = logging.getLogger("ray.serve")

_AT_ONCE = 2


class Shadows:
    """The shadowed searches of a router replica."""

    def __init__(self, share: float, seconds: float, metrics: Metrics) -> None:
        """Set the bounds.

        Args:
            share: share of the searches that are shadowed.
            seconds: a shadow that takes longer is given up.
            metrics: where it is counted how far the two bundles agree.
        """
        self._share = share
        self._seconds = seconds
        self._metrics = metrics
        self._running: set[asyncio.Task[None]] = set()

    def offer(
        self, challenger: Service, busy: bool, asked: SearchRequest, answer: SearchResponse, seconds: float
    ) -> None:
        """Perhaps have the challenger search too; returns at once.

        Args:
            challenger: what is tried.
            busy: whether users' queries wait.
            asked: a search that has been answered.
            answer: what went out.
            seconds: how long that took.
        """
        if random.random() >= self._share:
            return
        if busy or len(self._running) >= _AT_ONCE:
            self._metrics.shadows.inc(1, {"outcome": "dropped"})
            return
        task = asyncio.create_task(self._answer(challenger, asked, answer, seconds))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _answer(
        self, challenger: Service, asked: SearchRequest, answer: SearchResponse, seconds: float
    ) -> None:
        start = time.perf_counter()
        try:
            async with asyncio.timeout(self._seconds):
                expert, ids = await challenger.shadow_search(
                    asked.query, answer.collection, asked.top_k, asked.model
                )
        except Overloaded:
            self._metrics.shadows.inc(1, {"outcome": "dropped"})
            return
        except Exception as error:
            log.warning("the challenger, version %d, fails at a search: %r", challenger.version, error)
            self._metrics.shadows.inc(1, {"outcome": "failed"})
            return
        self._metrics.shadow_seconds.observe(seconds, {"answer": "sent"})
        self._metrics.shadow_seconds.observe(time.perf_counter() - start, {"answer": "shadow"})
        same = "same expert" if expert == answer.expert else "other expert"
        self._metrics.shadows.inc(1, {"outcome": same})
        both = len({hit.id for hit in answer.results} & set(ids))
        for found, count in (("both", both), ("one", len(answer.results) - both)):
            if count:
                self._metrics.shadow_documents.inc(count, {"found_by": found})
