"""Calls from one deployment to another."""

from __future__ import annotations

from typing import Any

from ray.exceptions import RayActorError

_ATTEMPTS = 3


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
