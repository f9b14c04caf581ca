"""Who asks: what a client may see and change, and its share."""

from __future__ import annotations

from dataclasses import dataclass

Names = frozenset[str]


@dataclass(frozen=True)
class Access:
    """A client's name, its collections, and its share."""

    client: str = ""
    read: Names | None = None
    """Collections that it may read; None for all."""
    write: Names | None = None
    """Collections that it may change; None for all that it may read."""
    weight: float = 1.0
    """What its share of the passes is in proportion to."""

    def reads(self, collection: str) -> bool:
        """Whether it may know of a collection and search it."""
        return self.read is None or collection in self.read

    def writes(self, collection: str) -> bool:
        """Whether it may create, change and delete a collection."""
        return self.reads(collection) if self.write is None else collection in self.write
