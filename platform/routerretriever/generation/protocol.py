"""What a writer of queries is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from routerretriever.generation.prompts import Request


@dataclass(frozen=True)
class Written:
    """What came of one request."""

    query: str
    """Empty if there is a problem."""
    tokens: int = 0
    """Read and written."""
    problem: str = ""
    """Why there is no query, in a few words; rows are counted by it."""


class Writer(Protocol):
    """Writes queries about documents."""

    def check(self) -> None:
        """Make sure that it can write, before any worker starts.

        Raises:
            WriterError: it cannot; the message says what to do.
        """

    def write(self, requests: Sequence[Request]) -> Iterator[tuple[int, Written]]:
        """Write the queries; gives each request's number and what came of it, as soon as it is there.

        Raises:
            WriterError: nothing more can be written. What was given before stands.
        """
