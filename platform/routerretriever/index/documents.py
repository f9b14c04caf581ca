"""Which documents a collection holds now, which row each has, and which rows a filter leaves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from routerretriever.corpus.artifact import Corpus
from routerretriever.datasets.collection import Document
from routerretriever.index.base import Mask, Rows
from routerretriever.index.filters import Column, Filter


class DocumentTable:
    """A corpus's documents, and those appended since. A replaced document gets a new row."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._first_of_tail = len(corpus)
        self._tail: list[Document] = []
        self._moved: dict[str, int] = {}
        self.present: Mask = np.ones(len(corpus), dtype=bool)
        self._columns: dict[str, Column] = {}

    def __len__(self) -> int:
        """Rows, those of deleted documents among them."""
        return self._first_of_tail + len(self._tail)

    def row(self, document_id: str) -> int | None:
        """Where a document is now; None if it is not here."""
        row = self._moved.get(document_id)
        if row is None:
            row = self._corpus.rows.get(document_id)
        return row if row is not None and self.present[row] else None

    def document(self, row: int) -> Document:
        """A row's document."""
        if row >= self._first_of_tail:
            return self._tail[row - self._first_of_tail]
        return self._corpus.document(row)

    def append(self, documents: Sequence[Document]) -> Rows:
        """Documents become the next rows, hiding those with the same ids; gives the rows that are hidden."""
        gone = self.delete([document.id for document in documents])
        for place, document in enumerate(documents, start=len(self)):
            self._moved[document.id] = place
        self._tail += documents
        self.present = np.concatenate([self.present, np.ones(len(documents), dtype=bool)])
        for field, column in self._columns.items():
            column.extend([(document.metadata or {}).get(field) for document in documents])
        return gone

    def delete(self, ids: Sequence[str]) -> Rows:
        """Hide documents; gives their rows. Ids that are not here are left out."""
        rows = np.array([row for each in ids if (row := self.row(each)) is not None], dtype=np.int64)
        self.present[rows] = False
        return rows

    def reclaim(self) -> tuple[int, list[int]]:
        """Drop hidden rows of the tail; gives the tail's first row, and the old rows of those that stay."""
        kept = [row for row in range(self._first_of_tail, len(self)) if self.present[row]]
        documents = [self.document(row) for row in kept]
        self._moved = {each.id: self._first_of_tail + place for place, each in enumerate(documents)}
        self._tail = documents
        base = self.present[: self._first_of_tail]
        self.present = np.concatenate([base, np.ones(len(kept), dtype=bool)])
        self._columns.clear()
        return self._first_of_tail, kept

    @property
    def hidden_in_tail(self) -> int:
        """Rows that ``reclaim`` would drop."""
        return int((~self.present[self._first_of_tail :]).sum())

    def matching(self, filter: Filter) -> Mask:
        """The rows whose documents pass a filter [rows]."""
        return filter.mask(self._column, len(self))

    def _column(self, field: str) -> Column:
        if field not in self._columns:
            values = [(metadata or {}).get(field) for metadata in self._corpus.metadata]
            values += [(document.metadata or {}).get(field) for document in self._tail]
            self._columns[field] = Column(values)
        return self._columns[field]
