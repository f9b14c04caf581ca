"""Batches that form by themselves, bounded by cost and shared fairly.

What arrives while a pass runs goes into the next one; nobody waits for a timer. An item's cost is what it
takes to run, such as its tokens. A big call is spread over several passes, and room in them goes to the
client that has had least for its weight (start-time fair queueing, Goyal, Vin and Cheng 1996), within a
client to its calls in turns. A single query beside any number of big calls so waits for the pass that runs,
and no other. While small calls come, big ones get no more than ``bulk_seconds`` of a pass, about, and
nothing of the next if a small one waits: on a CPU a full pass takes twenty times as long as a single query.

Callers share passes and nothing else: an item that fails fails its own call, and a caller that leaves takes
no pass with it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from routerretriever.errors import Overloaded, Unavailable

T = TypeVar("T")
R = TypeVar("R")

RECENT_SECONDS = 10.0
"""Small calls are reckoned with for so long after one came. Short passes cost a tenth of the texts a second;
a full one costs a single query twenty times its time."""
_NEWEST = 0.25
"""How much the last pass counts in what a pass is expected to take."""


@dataclass(eq=False)
class _Call(Generic[T, R]):
    """One caller's items; they may be spread over several passes."""

    items: Sequence[T]
    costs: Sequence[int]
    done: asyncio.Future[list[R]]
    waiting: int
    """Cost of the items that no pass has taken."""
    cost: int
    """Of all items."""
    taken: int = 0
    results: dict[int, R] = field(default_factory=dict)
    """By position; passes may end in any order."""


@dataclass(eq=False)
class _Client(Generic[T, R]):
    """A client that waits: its calls, and what it has been given since it came, from a common start."""

    served: float
    """Cost over weight."""
    weight: float
    calls: deque[_Call[T, R]] = field(default_factory=deque)


class Batcher(Generic[T, R]):
    """Runs ``work`` on batches of items from any number of callers."""

    def __init__(
        self,
        work: Callable[[list[T]], Awaitable[Sequence[R | BaseException]]],
        max_batch: int,
        max_waiting: int,
        passes: int = 1,
        max_cost: int | None = None,
        bulk_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Bounds of the batches.

        Args:
            work: gives one result for every item, in order, or why there is none. What it raises fails all.
            max_batch: most items in a pass.
            max_waiting: most cost that may lie before a new call; more and the call is refused.
            passes: how many passes may run at the same time.
            max_cost: most cost in a pass; an item that alone costs more has a pass to itself.
            bulk_seconds: how long big calls may take in a pass, about, while small ones come; calls of
                several items that take longer are big. Without it, passes are as full as they can be.
            clock: gives the time in seconds.
        """
        self._work = work
        self._max_batch = max_batch
        self._max_cost = max_batch if max_cost is None else max_cost
        self._max_waiting = max_waiting
        self._free_passes = passes
        self._clients: dict[str, _Client[T, R]] = {}
        self._passes: set[asyncio.Task[None]] = set()
        self._bulk_seconds = bulk_seconds
        self._clock = clock
        self._seconds_per_cost: float | None = None
        self._small_came_at = -math.inf
        self._last_was_bulk = False
        self.waiting = 0
        """Items that wait for a pass."""

    async def submit(
        self,
        items: Sequence[T],
        costs: Sequence[int] | None = None,
        client: str = "",
        weight: float = 1.0,
    ) -> list[R]:
        """Results of the items, in order. A cancelled call's items are not run if they have not been yet.

        Args:
            items: what to run.
            costs: of each item, at least 1; 1 if not given.
            client: who asks.
            weight: of the client, positive. Clients share the passes in proportion to their weights.

        Raises:
            Overloaded: too much would run before this call is done. A call's own size is no reason.
        """
        if not items:
            return []
        what = "items" if costs is None else "tokens"
        # A text without a token takes its turn, too.
        costs = [1] * len(items) if costs is None else [max(1, cost) for cost in costs]
        total = sum(costs)
        if (ahead := self._ahead(client, total, weight)) > self._max_waiting:
            raise Overloaded(
                f"the queue is full: {ahead:.0f} {what} come first; the bound is {self._max_waiting}"
            )
        call: _Call[T, R] = _Call(items, costs, asyncio.get_running_loop().create_future(), total, total)
        # The first call of all warms up.
        if self._seconds_per_cost is not None and not self._is_big(call):
            self._small_came_at = self._clock()
        if client not in self._clients:
            # As far as whoever has had least: a client that was away has saved nothing up.
            least = min((other.served for other in self._clients.values()), default=0.0)
            self._clients[client] = _Client(least, weight)
        self._clients[client].calls.append(call)
        self.waiting += len(items)
        self._start_passes()
        try:
            return await call.done
        finally:
            self._drop(client, call)

    @property
    def waiting_cost(self) -> int:
        """Cost of all items that wait for a pass."""
        return sum(call.waiting for client in self._clients.values() for call in client.calls)

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self.waiting and not self._passes

    def _ahead(self, client: str, cost: int, weight: float) -> float:
        """What others are given before a call of this cost is done: at most their shares, by weight."""
        ahead = 0.0
        for name, other in self._clients.items():
            if name == client:
                ahead += sum(min(call.waiting, cost) for call in other.calls)
            else:
                waiting = sum(call.waiting for call in other.calls)
                ahead += min(waiting, cost * other.weight / weight)
        return ahead

    def _drop(self, client: str, call: _Call[T, R]) -> None:
        queue = self._clients.get(client)
        if queue is not None and call in queue.calls:
            queue.calls.remove(call)
            self.waiting -= len(call.items) - call.taken
            if not queue.calls:
                del self._clients[client]

    def _start_passes(self) -> None:
        while self._free_passes and self.waiting:
            self._free_passes -= 1
            # In a context of its own: Ray cancels what was called in that of a request when its client
            # hangs up, and others are in the same pass.
            task = asyncio.create_task(self._run(self._next_batch()), context=Context())
            self._passes.add(task)
            task.add_done_callback(self._passes.discard)

    def _next_batch(self) -> list[tuple[_Call[T, R], int]]:
        """Items for a pass, as (call, position)."""
        batch: list[tuple[_Call[T, R], int]] = []
        room, bulk_room = self._max_cost, self._bulk_room()
        while self._clients and len(batch) < self._max_batch:
            found = self._next_call(bulk_room)
            if found is None:
                break
            name, client, call = found
            cost = call.costs[call.taken]
            if batch and cost > room:
                break
            batch.append((call, call.taken))
            room -= cost
            if self._is_big(call):
                bulk_room -= cost
            client.served += cost / client.weight
            call.taken += 1
            call.waiting -= cost
            client.calls.remove(call)
            if call.taken < len(call.items):
                client.calls.append(call)
            if not client.calls:
                del self._clients[name]
        self.waiting -= len(batch)
        self._last_was_bulk = any(self._is_big(call) for call, _ in batch)
        return batch

    def _next_call(self, bulk_room: float) -> tuple[str, _Client[T, R], _Call[T, R]] | None:
        """Whose turn it is of the calls that there is room for; a big one needs some of ``bulk_room``."""
        for name, client in sorted(self._clients.items(), key=lambda entry: entry[1].served):
            for call in client.calls:
                if bulk_room >= 1 or not self._is_big(call):
                    return name, client, call
        return None

    def _bulk_cost(self) -> float:
        """What big calls may have in a pass while small ones come."""
        if self._bulk_seconds is None or not self._seconds_per_cost:
            return math.inf
        return max(1.0, self._bulk_seconds / self._seconds_per_cost)

    def _is_big(self, call: _Call[T, R]) -> bool:
        return len(call.items) > 1 and call.cost > self._bulk_cost()

    def _bulk_room(self) -> float:
        """What big calls may have in the next pass."""
        if self._clock() - self._small_came_at > RECENT_SECONDS:
            return math.inf
        waits = any(not self._is_big(call) for client in self._clients.values() for call in client.calls)
        return 0.0 if waits and self._last_was_bulk else self._bulk_cost()

    def _learn(self, cost: int, seconds: float) -> None:
        """How long a pass took."""
        found, known = seconds / cost, self._seconds_per_cost
        self._seconds_per_cost = found if known is None else _NEWEST * found + (1 - _NEWEST) * known

    async def _run(self, batch: list[tuple[_Call[T, R], int]]) -> None:
        began = self._clock()
        try:
            results = await self._work([call.items[at] for call, at in batch])
            self._learn(sum(call.costs[at] for call, at in batch), self._clock() - began)
            for (call, at), result in zip(batch, results, strict=True):
                if isinstance(result, BaseException):
                    _fail(call, result)
                    continue
                call.results[at] = result
                if len(call.results) == len(call.items) and not call.done.done():
                    call.done.set_result([call.results[row] for row in range(len(call.items))])
        except (Exception, asyncio.CancelledError) as error:
            for call, _ in batch:
                _fail(call, error)
        finally:
            self._free_passes += 1
            self._start_passes()


def _fail(call: _Call[T, R], error: BaseException) -> None:
    if call.done.done():
        return
    if isinstance(error, asyncio.CancelledError):
        # Nobody cancelled this caller, who would take it for that.
        error = Unavailable("what was asked for was stopped half-way; ask again")
    call.done.set_exception(error)
