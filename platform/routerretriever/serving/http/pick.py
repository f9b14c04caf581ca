"""How routes come by the release that answers a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fastapi import Request

from routerretriever.serving.service import Service


class Pick(Protocol):
    """Gives the release that answers a request, and notes which one it is."""

    def __call__(self, request: Request, collections: Sequence[str] | None = ()) -> Service:
        """See ``Replica.service``."""
        ...
