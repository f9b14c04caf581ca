"""Which documents a collection holds now, which rows each has, and which rows a filter leaves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from routerretriever.corpus.artifact import Corpus
from routerretriever.datasets.collection import Document
from routerretriever.datasets.passages import join, number_of, parent_of
from routerretriever.datasets.settings import PassageSettings
from routerretriever.index.base import Mask
from routerretriever.index.changes import Change
from routerretriever.index.filters import Column, Filter, field_names, field_value
from routerretriever.types import Rows

_MAX_COLUMNS = 64
"""Metadata fields that are kept ready for filters; each costs memory, and time when documents come."""


class StoredDocument(NamedTuple):
    """A whole document, as it is now."""

    document: Document
    passages: int | None
    """How many it is cut into; None if it is not."""


class DocumentTable:
    """A corpus's documents, and those appended since. A row is a document, or a passage of one.

    The rows of a document come and go together. A replaced document gets new ones.
    """

    def __init__(self, corpus: Corpus, passages: PassageSettings | None = None) -> None:
        """A table of a corpus.

        Args:
            corpus: its documents, or their passages.
            passages: how it was cut; None if its documents are whole.
        """
        self._corpus = corpus
        self._cut = passages
        self._first_of_tail = len(corpus)
        self._tail: list[Document] = []
        self._numbers: list[int | None] = []
        self._moved: dict[str, range] = {}
        self._whole: dict[str, Document] = {}
        self.has_passages = passages is not None
        """Whether any document is cut, or was."""
        self.present: Mask = np.ones(len(corpus), dtype=bool)
        self.first: Mask = np.ones(len(corpus), dtype=bool)
        """Rows that are a document's first: as many as there are documents."""
        if passages is not None:
            self.first = np.array([number_of(each) == 1 for each in corpus.ids], dtype=bool)
        self._fields: set[str] | None = None
        """Names of metadata fields that rows have or had, once a filter has asked."""
        self.columns: dict[str | None, Column] = {}
        """By field, the one that was used longest ago first; None is any field that no row has."""

    def __len__(self) -> int:
        """Rows, those of deleted documents among them."""
        return self._first_of_tail + len(self._tail)

    def rows(self, document_id: str) -> Sequence[int]:
        """The rows of a document as it is now; none if it is not here."""
        rows = self._moved.get(document_id)
        found = list(self._in_corpus(document_id)) if rows is None else rows
        return found if found and self.present[found[0]] else []

    def name(self, row: int) -> str:
        """The id of a row's document."""
        if row >= self._first_of_tail:
            return self._tail[row - self._first_of_tail].id
        own = self._corpus.ids[row]
        return own if self._cut is None else parent_of(own)

    def passage(self, row: int) -> int | None:
        """The number of a row's passage, from 1; None if it is a whole document."""
        if row >= self._first_of_tail:
            return self._numbers[row - self._first_of_tail]
        return None if self._cut is None else number_of(self._corpus.ids[row])

    def document(self, row: int) -> Document:
        """A row's document; a passage has the document's id, title and metadata, and its own text."""
        if row >= self._first_of_tail:
            return self._tail[row - self._first_of_tail]
        found = self._corpus.document(row)
        return found if self._cut is None else found._replace(id=parent_of(found.id))

    def whole(self, document_id: str) -> StoredDocument:
        """A document that is here; one out of a cut corpus is put together from its passages."""
        rows = self.rows(document_id)
        first = self.document(rows[0])
        if self.passage(rows[0]) is None:
            return StoredDocument(first, None)
        if document_id in self._whole:
            return StoredDocument(self._whole[document_id], len(rows))
        assert self._cut is not None
        text = join([self.document(row).text for row in rows], self._cut)
        return StoredDocument(first._replace(text=text), len(rows))

    def append(self, changes: Sequence[Change]) -> Rows:
        """Documents become the next rows, hiding those with the same ids; gives the rows that are hidden."""
        gone = self.delete(each.id for each in changes)
        for each in changes:
            if each.document is not None and each.entries[0].passage is not None:
                self._whole[each.id] = each.document
                self.has_passages = True
            self._moved[each.id] = range(len(self), len(self) + len(each.entries))
            self._tail += [entry.document for entry in each.entries]
            self._numbers += [entry.passage for entry in each.entries]
        entries = [entry for each in changes for entry in each.entries]
        first = np.array([entry.passage in (None, 1) for entry in entries], dtype=bool)
        self.first = np.concatenate([self.first, first])
        self.present = np.concatenate([self.present, np.ones(len(entries), dtype=bool)])
        new = [entry.document.metadata or {} for entry in entries]
        if self._fields is not None:
            self._fields.update(*map(field_names, new))
        for field, column in self.columns.items():
            column.extend([None if field is None else field_value(metadata, field) for metadata in new])
        return gone

    def delete(self, ids: Iterable[str]) -> Rows:
        """Hide documents; gives their rows. Ids that are not here are left out."""
        gone: list[int] = []
        for each in ids:
            gone += self.rows(each)
            self._whole.pop(each, None)
        rows = np.array(gone, dtype=np.int64)
        self.present[rows] = False
        return rows

    def reclaim(self) -> tuple[int, list[int]]:
        """Drop hidden rows of the tail; gives the tail's first row, and the old rows of those that stay."""
        start = self._first_of_tail
        kept = [row for row in range(start, len(self)) if self.present[row]]
        numbers = [self.passage(row) for row in kept]
        self._tail, self._numbers = [self.document(row) for row in kept], numbers
        self._moved = {}
        for row, document in enumerate(self._tail, start=start):
            first = self._moved.get(document.id, range(row, row)).start
            self._moved[document.id] = range(first, row + 1)
        stay = np.concatenate([np.arange(start), np.array(kept, dtype=np.int64)])
        self.present, self.first = self.present[stay], self.first[stay]
        self.columns.clear()
        return start, kept

    @property
    def hidden_in_tail(self) -> int:
        """Rows that ``reclaim`` would drop."""
        return int((~self.present[self._first_of_tail :]).sum())

    def matching(self, filter: Filter) -> Mask:
        """The rows whose documents pass a filter [rows]."""
        return filter.mask(self._column, len(self))

    def _in_corpus(self, document_id: str) -> Iterator[int]:
        rows = self._corpus.rows
        if self._cut is None:
            if document_id in rows:
                yield rows[document_id]
            return
        for number in count(1):
            row = rows.get(f"{document_id}#{number}")
            if row is None:
                return
            yield row

    def _column(self, field: str) -> Column:
        if self._fields is None:
            self._fields = set().union(*map(field_names, self._metadata()))
        name = field if field in self._fields else None
        column = self.columns.pop(name, None)
        if column is None:
            values = (None if name is None else field_value(metadata, name) for metadata in self._metadata())
            column = Column(list(values))
        self.columns[name] = column
        if len(self.columns) > _MAX_COLUMNS:
            del self.columns[next(iter(self.columns))]
        return column

    def _metadata(self) -> Iterator[dict[str, Any]]:
        """Each row's; empty where there is none."""
        yield from (metadata or {} for metadata in self._corpus.metadata)
        yield from (document.metadata or {} for document in self._tail)
