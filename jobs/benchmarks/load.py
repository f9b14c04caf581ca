"""HTTP load from a process of its own: clients that each ask again as soon as they are answered."""

from __future__ import annotations

import asyncio
import itertools
import math
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

_REFUSED_SECONDS = 0.1
"""Without a pause, clients that are not served would take the machine from whoever is to come back."""


@dataclass
class Load:
    """What the clients saw."""

    seconds: float = 0.0
    milliseconds: list[float] = field(default_factory=list)
    """Of every answer with status 200."""
    failures: list[str] = field(default_factory=list)
    """Status or exception of every other."""
    longest_gap: float = 0.0
    """Longest time, in seconds, in which no good answer came."""

    @property
    def per_second(self) -> float:
        """Good answers a second."""
        return len(self.milliseconds) / self.seconds

    def figures(self) -> dict[str, Any]:
        """Throughput, quantiles, failures by kind, and the longest gap."""
        return {
            "answers": len(self.milliseconds),
            "per_second": self.per_second,
            **{f"p{percent}_ms": self.quantile(percent / 100) for percent in (50, 95, 99)},
            "failures": dict(Counter(self.failures)),
            "longest_gap_s": self.longest_gap,
        }

    def quantile(self, share: float) -> float:
        """Milliseconds within which this share of the answers came; not a number if none did."""
        return float(np.quantile(self.milliseconds, share)) if self.milliseconds else math.nan


def run_load(url: str, bodies: Sequence[dict[str, Any]], clients: int, seconds: float) -> Load:
    """Ask a URL for some seconds; the bodies are posted in turns."""
    with background_load(url, bodies, clients) as load:
        time.sleep(seconds)
    return load


@contextmanager
def background_load(
    url: str, bodies: Sequence[dict[str, Any]], clients: int, per_second: float | None = None
) -> Iterator[Load]:
    """Ask a URL while the block runs, as fast as it answers or so often; the load is filled in at the end."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(
        target=_child, args=(there, url, list(bodies), clients, per_second), daemon=True
    )
    process.start()
    there.close()  # so that a child that ends is noticed, where it would be waited for
    here.recv()
    load = Load()
    try:
        yield load
    finally:
        here.send("stop")
        load.seconds, load.milliseconds, load.failures, load.longest_gap = here.recv()
        process.join()


def _child(
    connection: Connection, url: str, bodies: list[dict[str, Any]], clients: int, per_second: float | None
) -> None:
    asyncio.run(_ask(connection, url, bodies, clients, per_second))


async def _ask(
    connection: Connection, url: str, bodies: list[dict[str, Any]], clients: int, per_second: float | None
) -> None:
    import aiohttp

    milliseconds: list[float] = []
    failures: list[str] = []
    answered: list[float] = []
    stop = asyncio.Event()

    async def client(http: aiohttp.ClientSession, number: int) -> None:
        turn = number * len(bodies) // clients
        due = time.perf_counter() + (number / per_second if per_second else 0.0)
        while not stop.is_set():
            turn += 1
            if per_second is not None:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                due += clients / per_second
            start = time.perf_counter()
            try:
                async with http.post(url, json=bodies[turn % len(bodies)]) as response:
                    await response.read()
                    status = response.status
            except (aiohttp.ClientError, TimeoutError) as error:
                failures.append(type(error).__name__)
                await asyncio.sleep(_REFUSED_SECONDS)
                continue
            if status == 200:
                now = time.perf_counter()
                milliseconds.append((now - start) * 1000)
                answered.append(now)
            else:
                failures.append(str(status))
                await asyncio.sleep(_REFUSED_SECONDS)

    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=clients)) as http:
        connection.send("ready")
        start = time.perf_counter()
        answered.append(start)
        tasks = [asyncio.create_task(client(http, number)) for number in range(clients)]
        await asyncio.to_thread(connection.recv)
        stop.set()
        await asyncio.gather(*tasks)
        seconds = time.perf_counter() - start  # with the last answers, since they are counted
    gaps = [later - earlier for earlier, later in itertools.pairwise([*answered, time.perf_counter()])]
    connection.send((seconds, milliseconds, failures, max(gaps)))
