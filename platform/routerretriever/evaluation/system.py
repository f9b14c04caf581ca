"""A system: one way to answer queries, measured on test sets. Every method brings its own.

Shapes: Q queries, T experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from routerretriever.measures import Measured, Run
from routerretriever.types import Vectors

Rank = Callable[[str, Sequence[str], int], Run]
"""Given a test set, some of its queries and a depth: what a system finds."""


class Kind(IntEnum):
    """What a system is; tables list systems in this order."""

    BASE = 0
    EXPERT = 1
    """One expert answers everything."""
    OWN = 2
    """Each domain's own model answers it; only sets that have one are measured."""
    SINGLE = 3
    """One model for everything."""
    ROUTER = 4
    """A choice or mixture for each query."""
    HYBRID = 5
    """Words, alone or beside vectors."""
    ORACLE = 6
    """A choice that knows the judgements; the last one is the upper bound."""


@dataclass(frozen=True)
class Routing:
    """Whom a system gives each test query to."""

    experts: list[str]
    weights: Mapping[str, Vectors]
    """Test set -> weights [Q, T] over the experts."""

    def shares(self, dataset: str) -> dict[str, float]:
        """Mean weight of each expert on a test set."""
        return dict(zip(self.experts, self.weights[dataset].mean(axis=0).tolist(), strict=True))


@dataclass(frozen=True)
class System:
    """Measures of one system by test set, query by query."""

    name: str
    kind: Kind
    measured: Mapping[str, Measured]
    """Test set -> arrays [Q]."""
    routing: Routing | None = None
    encodings: Mapping[str, float] | None = None
    """Test set -> how often a query is encoded on average, if that is not once."""
    headline: bool = False
    """Whether the terminal's table shows it; the files show all."""
    served: bool = False
    """Whether a search is answered this way unless its request says otherwise; one system is, or none."""
    rival: bool = False
    """Whether the deployed system is compared with it by a paired test."""
    note: str = ""
    """What to know about it, as what it costs; printed below the table."""
    rank: Rank | None = None
    """Searches again, for those who want to see results; None for a system that cannot, as an oracle."""
