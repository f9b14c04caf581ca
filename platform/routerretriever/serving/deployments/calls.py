"""Calls that wait their turn: for this process's one thread of work, or for another deployment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ray.exceptions import RayActorError

R = TypeVar("R")

_ATTEMPTS = 3


class OneThread:
    """Runs what is not thread-safe, one call after the other, beside the event loop."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1)

    async def run(self, work: Callable[..., R], *args: Any) -> R:
        """The result of a call, when its turn has come."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *args)


async def ask(method: Any, *args: Any) -> Any:
    """Call a deployment's method, again where the replica that had the call died.

    Everything asked this way may be asked twice.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return await method.remote(*args)
        except RayActorError:
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError
