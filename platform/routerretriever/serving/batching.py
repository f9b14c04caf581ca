"""Batches that form by themselves: what arrives while one pass is running goes into the next.

Nobody waits for a timer. A lone query is run at once; under load the batches grow to their bound, and beyond
the bound on what may wait new work is refused, so that the service answers late or not at all to none.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from routerretriever.errors import Overloaded

T = TypeVar("T")
R = TypeVar("R")


@dataclass(eq=False)
class _Call(Generic[T, R]):
    """One caller's items; they may be spread over several passes."""

    items: Sequence[T]
    done: asyncio.Future[list[R]]
    results: dict[int, R] = field(default_factory=dict)
    """By position; passes may end in any order."""
    taken: int = 0


class Batcher(Generic[T, R]):
    """Runs ``work`` on batches of items from any number of callers."""

    def __init__(
        self,
        work: Callable[[list[T]], Awaitable[Sequence[R]]],
        max_batch: int,
        max_waiting: int,
        passes: int = 1,
    ) -> None:
        """Bounds of the batches.

        Args:
            work: gives one result for every item, in order.
            max_batch: most items in a pass.
            max_waiting: most items that may wait for a pass. A call that finds nobody waiting is always let
                in, however large it is.
            passes: how many passes may run at the same time.
        """
        self._work = work
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._free_passes = passes
        self._calls: deque[_Call[T, R]] = deque()
        self._passes: set[asyncio.Task[None]] = set()
        self.waiting = 0
        """Items that wait for a pass."""

    async def submit(self, items: Sequence[T]) -> list[R]:
        """Results of the items, in order. A cancelled call's items are not run if they have not been yet.

        Raises:
            Overloaded: too much is waiting.
        """
        if not items:
            return []
        if self.waiting and self.waiting + len(items) > self._max_waiting:
            raise Overloaded(f"{self.waiting} queries are waiting; the bound is {self._max_waiting}")
        call: _Call[T, R] = _Call(items, asyncio.get_running_loop().create_future())
        self._calls.append(call)
        self.waiting += len(items)
        self._start_passes()
        try:
            return await call.done
        finally:
            if call in self._calls:
                self._calls.remove(call)
                self.waiting -= len(call.items) - call.taken

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self._calls and not self._passes

    def _start_passes(self) -> None:
        while self._free_passes and self._calls:
            self._free_passes -= 1
            task = asyncio.create_task(self._run(self._next_batch()))
            self._passes.add(task)
            task.add_done_callback(self._passes.discard)

    def _next_batch(self) -> list[tuple[_Call[T, R], range]]:
        """Items of the calls in turns, so that a question does not wait for a whole book before it."""
        batch = []
        room = self._max_batch
        for _ in range(len(self._calls)):
            share = max(1, room // len(self._calls))
            call = self._calls.popleft()
            positions = range(call.taken, min(call.taken + min(share, room), len(call.items)))
            call.taken = positions.stop
            batch.append((call, positions))
            room -= len(positions)
            if call.taken < len(call.items):
                self._calls.append(call)
            if not room:
                break
        self.waiting -= self._max_batch - room
        return batch

    async def _run(self, batch: list[tuple[_Call[T, R], range]]) -> None:
        try:
            results = iter(
                await self._work([call.items[at] for call, positions in batch for at in positions])
            )
            for call, positions in batch:
                call.results.update(zip(positions, results))  # noqa: B905  # takes its share of them all
                if len(call.results) == len(call.items) and not call.done.done():
                    call.done.set_result([call.results[at] for at in range(len(call.items))])
        except Exception as error:
            for call, _ in batch:
                if not call.done.done():
                    call.done.set_exception(error)
        finally:
            self._free_passes += 1
            self._start_passes()
