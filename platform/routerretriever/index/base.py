"""What an index is.

An index ranks rows. A row is the number of a document, or of a passage where documents are cut. The corpus's
come first; every one that is appended gets the next number. ``DocumentTable`` knows which id has which rows;
indexes do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from routerretriever.datasets.collection import Document
from routerretriever.types import Rows, Scores, Vectors

Mask = NDArray[np.bool_]


class Hits(NamedTuple):
    """One query's documents, best first; equal scores in the order of rows."""

    rows: Rows
    scores: Scores


class Entry(NamedTuple):
    """A document as indexes take it in: whole, or a passage of it with the document's id."""

    document: Document
    vector: Vectors
    passage: int | None = None
    """The passage's number, from 1."""


@dataclass(frozen=True)
class Queries:
    """What is searched for: texts, and their vectors [B, d]."""

    texts: Sequence[str]
    vectors: Vectors

    def __len__(self) -> int:
        return len(self.vectors)

    def only(self, place: int) -> Queries:
        """One of them."""
        return Queries([self.texts[place]], self.vectors[place : place + 1])


class Index(Protocol):
    """Something that ranks documents for queries. Not thread-safe."""

    def __len__(self) -> int:
        """How many rows there are, deleted ones among them."""

    def search(self, queries: Queries, depth: int, allowed: Mask | None = None) -> list[Hits]:
        """The best rows for each query, at most ``depth``; only those that are allowed, by default all."""

    def score(self, queries: Queries, rows: Sequence[Rows]) -> list[Scores]:
        """Exact scores of given rows for each query, as ``search`` would give them."""

    def append(self, documents: Sequence[Entry]) -> None:
        """Documents become the next rows."""

    def delete(self, rows: Rows) -> None:
        """Documents are gone. Their rows stay, and are never allowed again."""

    def truncate(self, rows: int) -> None:
        """Forget the rows from this number on; only appended ones can be."""


def best_hits(rows: Rows, scores: Scores, depth: int) -> Hits:
    """The best of some scored rows."""
    if len(rows) > depth:
        edge = np.partition(scores, -depth)[-depth]
        kept = scores >= edge  # ties at the edge stay in until the order is settled
        rows, scores = rows[kept], scores[kept]
    order = np.lexsort((rows, -scores))[:depth]
    return Hits(rows[order].astype(np.int64), scores[order])
