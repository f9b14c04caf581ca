"""Calls to another deployment."""

from __future__ import annotations

from typing import Any

from ray.exceptions import RayActorError, RayTaskError

from routerretriever.errors import RouterRetrieverError

_ATTEMPTS = 3


async def call_with_retry(method: Any, *args: Any) -> Any:
    """Call a deployment's method, again if the replica that had the call died.

    Only for calls that do no harm when they run twice.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return await method.remote(*args)
        except RayActorError:
            if attempt == _ATTEMPTS:
                raise
        except RayTaskError as error:
            if isinstance(error.cause, RouterRetrieverError):
                raise error.cause from None  # in its own words, without the traceback
            raise
    raise AssertionError
