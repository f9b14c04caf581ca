"""Documents added, replaced and deleted while a collection is being served.

Every change is one Parquet file in storage, numbered from 1 without gaps; nothing is ever rewritten. A
reader looks whether the next number is there. The corpus artifact below stays as it is: a document that was
replaced or deleted is hidden in it, and the new ones are searched beside it.

So that files do not become ever more, changes are folded (``fold``): one more file holds what the changes up
to a number come to, the last word on every document that any of them touched. It can be taken after any
number before its own, so a reader that finds its next change gone goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from zlib import crc32

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.corpus.artifact import Corpus, Vectors, open_corpus
from routerretriever.datasets.collection import Document
from routerretriever.errors import ArtifactDamaged, StorageError
from routerretriever.index.dense import SearchIndex, open_index
from routerretriever.index.settings import IndexSettings


@dataclass(frozen=True)
class Found:
    """A document and how well it fits."""

    score: float
    document: Document


def changes_key(collection: str, encoder_fingerprint: str) -> str:
    """Where a collection's changes lie. Another base encoder would need other vectors."""
    return f"changes/{collection}-{encoder_fingerprint}"


def last_change(store: ArtifactStore, key: str) -> int:
    """Number of the latest change, 0 if there is none."""
    return max([0, *map(_number, store.names(key))])


def fold(store: ArtifactStore, key: str) -> None:
    """Fold the changes so far, and remove what the fold *before* this one holds.

    So whoever reads while this runs finds that fold and all changes since it. What is left undone when this
    is interrupted, the next fold does; changes may be written meanwhile, and two folds at once do no harm.

    Raises:
        ArtifactDamaged, FileNotFoundError: a change is not what was written, or missing; nothing is removed.
    """
    names = store.names(key)
    before, last = _last_fold(names), max([0, *map(_number, names)])
    if last == before:
        return
    parts = [_fold_file(before)] if before else []
    parts += [_file(number) for number in range(before + 1, last + 1)]
    table = arrow.concat_tables([parquet.read_table(store.local_file(key, name)) for name in parts])
    newest = {document_id: row for row, document_id in enumerate(table["id"].to_pylist())}
    store.put(key, _fold_file(last), partial(parquet.write_table, table.take(sorted(newest.values()))))
    for name in names:
        if _number(name) < before or name == _file(before):
            store.remove_file(key, name)


def write_change(
    store: ArtifactStore, key: str, number: int, documents: Sequence[Document], vectors: Vectors
) -> None:
    """Record documents with their vectors [n, d] as added or replaced.

    Only one writer may give out numbers.
    """
    assert not store.has(key, _file(number))
    table = arrow.table(
        {
            "id": [document.id for document in documents],
            "title": [document.title for document in documents],
            "text": [document.text for document in documents],
            "embedding": list(vectors.astype(np.float32)),
        },
        schema=_SCHEMA,
    )
    store.put(key, _file(number), partial(parquet.write_table, table))


def write_deletion(store: ArtifactStore, key: str, number: int, ids: Sequence[str]) -> None:
    """Record documents as deleted. Only one writer may give out numbers."""
    assert not store.has(key, _file(number))
    table = arrow.Table.from_pylist([{"id": document_id} for document_id in ids], schema=_SCHEMA)
    store.put(key, _file(number), partial(parquet.write_table, table))


_SCHEMA = arrow.schema(
    [
        ("id", arrow.string()),
        ("title", arrow.string()),
        ("text", arrow.string()),
        ("embedding", arrow.list_(arrow.float32())),
    ]
)


_FOLD = "folded-"
_ROWS_AT_ONCE = 1024
_LOOKS = 3
_LOOK_SECONDS = 0.1


def _file(number: int) -> str:
    return f"{number:010d}.parquet"


def _fold_file(number: int) -> str:
    return f"{_FOLD}{_file(number)}"


def _number(name: str) -> int:
    return int(name.removeprefix(_FOLD).removesuffix(".parquet"))


def _last_fold(names: Iterable[str]) -> int:
    """Up to which change they have been folded, 0 if never."""
    return max([0, *(_number(name) for name in names if name.startswith(_FOLD))])


class LiveCollection:
    """A corpus with the changes made since, or one of several parts of both. Not thread-safe."""

    def __init__(
        self,
        store: ArtifactStore,
        corpus_key: str,
        changes_key: str,
        settings: IndexSettings,
        part: int = 0,
        parts: int = 1,
    ) -> None:
        """Open the index and read all changes so far.

        Raises:
            ArtifactMissing: the corpus has not been made.
        """
        self._store = store
        self._key = changes_key
        self._part, self._parts = part, parts
        self._corpus: Corpus = open_corpus(store, corpus_key).part(part, parts)
        self._index: SearchIndex = open_index(self._corpus, settings, store)
        self._visible: NDArray[np.bool_] = np.ones(len(self._corpus), dtype=bool)
        self._added: dict[str, tuple[Document, Vectors]] = {}
        self._overlay = SearchIndex.flat([], [], self._corpus.dimension)
        self.change = 0
        self.refresh()

    def __len__(self) -> int:
        return int(self._visible.sum()) + len(self._added)

    def refresh(self) -> None:
        """Take in the changes that have been made since the last look.

        Raises:
            StorageError: a change, or the fold that holds it, is not what was written, or missing.
        """
        before, missing = self.change, None
        for _ in range(_LOOKS):
            missing = None if self._is_latest() else self._advance(self._store.names(self._key))
            if missing is None:
                break
            time.sleep(_LOOK_SECONDS)  # being written, or folded and removed, just now
        if self.change > before:
            self._overlay = SearchIndex.flat(
                [vector for _, vector in self._added.values()], list(self._added), self._corpus.dimension
            )
        if missing is not None:
            raise StorageError(
                f"{self._store.location(self._key)}/{missing}: missing or altered since it was written; "
                "restore it from a copy"
            )

    def search(self, queries: Vectors, depths: Sequence[int]) -> list[list[Found]]:
        """The best documents of each query [B, d], best first, at most ``depths`` of each."""
        depth = max(depths)
        visible = None if self._visible.all() else self._visible
        answers = []
        old = self._index.hits(*self._index.search(queries, depth, visible))
        new = self._overlay.hits(*self._overlay.search(queries, depth))
        for wanted, own, added in zip(depths, old, new, strict=True):
            best = sorted([*own, *added], key=lambda hit: -hit[1])[:wanted]
            answers.append([Found(score, self.document(document_id)) for document_id, score in best])
        return answers

    def document(self, document_id: str) -> Document:
        """A document as it is now.

        Raises:
            KeyError: it is not here, or was deleted.
        """
        if document_id in self._added:
            return self._added[document_id][0]
        row = self._corpus.rows.get(document_id)
        if row is None or not self._visible[row]:
            raise KeyError(document_id)
        return self._corpus.documents([document_id])[document_id]

    def _is_latest(self) -> bool:
        """Whether nothing follows, at less cost than a list of names.

        While the change that was taken last is there, those after it are, too.
        """
        return (
            self.change > 0
            and not self._store.has(self._key, _file(self.change + 1))
            and self._store.has(self._key, _file(self.change))
        )

    def _advance(self, names: Sequence[str]) -> str | None:
        """Take in what these files hold beyond ``change``; gives the change that cannot be read, if any."""
        folded, last = _last_fold(names), max([0, *map(_number, names)])
        while self.change < last:
            ways = [(_file(self.change + 1), self.change + 1)]
            if folded > self.change:
                # At the start it is the shorter way.
                ways.insert(len(ways) if self.change else 0, (_fold_file(folded), folded))
            for name, number in ways:
                with suppress(FileNotFoundError, ArtifactDamaged):
                    self._take(parquet.read_table(self._store.local_file(self._key, name)))
                    self.change = number
                    break
            else:
                return ways[0][0]
        return None

    def _take(self, change: arrow.Table) -> None:
        rows = (row for few in change.to_batches(max_chunksize=_ROWS_AT_ONCE) for row in few.to_pylist())
        for row in rows:
            document_id = row["id"]
            if document_id in self._corpus.rows:
                self._visible[self._corpus.rows[document_id]] = False
            self._added.pop(document_id, None)
            mine = crc32(document_id.encode()) % self._parts == self._part
            if mine and row["embedding"] is not None:
                document = Document(document_id, row["title"], row["text"])
                self._added[document_id] = document, np.array(row["embedding"], dtype=np.float32)
