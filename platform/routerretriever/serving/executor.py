"""One thread for what is not thread-safe, beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

R = TypeVar("R")


class SerialExecutor:
    """Runs calls one after the other."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1)

    async def run(self, work: Callable[..., R], *args: Any) -> R:
        """The result of a call, when its turn has come."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *args)
