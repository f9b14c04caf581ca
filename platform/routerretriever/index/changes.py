"""Changes of a collection in storage: documents added, replaced and deleted while it is being served.

Every change is one Parquet file, numbered from 1 without gaps; nothing is ever rewritten. A reader looks
whether the next number is there. A document is one row, with all of its passages if it was cut, so that it is
replaced and deleted whole.

Compaction keeps the files few: ``checkpoint-N`` holds what the changes up to N come to, the last word on
every document that any of them touched. It can be taken after any number before its own, so a reader whose
next change was removed goes on from there. ``folded-N`` is the name that earlier releases gave it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.corpus.artifact import read_document
from routerretriever.datasets.collection import Document
from routerretriever.errors import ArtifactDamaged, Unavailable
from routerretriever.index.base import Entry
from routerretriever.types import Vectors

_CHECKPOINT, _FOLDED = "checkpoint-", "folded-"
_ROWS_AT_ONCE = 1024
_VECTOR = arrow.list_(arrow.float32())
_SCHEMA = arrow.schema(
    [
        ("id", arrow.string()),
        ("title", arrow.string()),
        ("text", arrow.string()),
        ("embedding", _VECTOR),
        ("metadata", arrow.string()),
        ("passages", arrow.list_(arrow.struct([("text", arrow.string()), ("embedding", _VECTOR)]))),
    ]
)


class NumberTaken(Unavailable):
    """A change of this number is there already, written by another service on the same storage."""


class Change(NamedTuple):
    """What one document is from a change on."""

    id: str
    document: Document | None
    """None where it was deleted."""
    entries: list[Entry]
    """The document itself, or its passages."""


def changes_key(collection: str, encoder_fingerprint: str) -> str:
    """Where a collection's changes lie. Another base encoder would need other vectors."""
    return f"changes/{collection}-{encoder_fingerprint}"


def last_change(store: ArtifactStore, key: str) -> int:
    """Number of the latest change, 0 if there is none."""
    return max([0, *map(_number, store.names(key))])


def write_change(
    store: ArtifactStore,
    key: str,
    number: int,
    documents: Sequence[Document],
    vectors: Vectors,
    passages: Sequence[Sequence[str]] | None = None,
) -> None:
    """Record documents as added or replaced. Of two writers that give out one number, one is refused.

    Args:
        store: where changes lie.
        key: of the collection's changes.
        number: the change's.
        documents: whole, each id once.
        vectors: of the documents, or of all passages in their order [n, d].
        passages: the texts that each document was cut into; None if documents are not cut.

    Raises:
        NumberTaken: there is a change of this number.
    """
    vector = iter(vectors.astype(np.float32))
    rows: list[dict[str, Any]] = []
    for place, document in enumerate(documents):
        row: dict[str, Any] = {
            "id": document.id,
            "title": document.title,
            "text": document.text,
            "metadata": json.dumps(document.metadata) if document.metadata else None,
        }
        if passages is None:
            row["embedding"] = next(vector)
        else:
            texts = passages[place]
            own = zip(texts, islice(vector, len(texts)), strict=True)
            row["passages"] = [{"text": text, "embedding": one} for text, one in own]
        rows.append(row)
    assert next(vector, None) is None, "more vectors than texts"
    _write(store, key, number, rows)


def write_deletion(store: ArtifactStore, key: str, number: int, ids: Sequence[str]) -> None:
    """Record documents as deleted; see ``write_change``."""
    _write(store, key, number, [{"id": document_id} for document_id in ids])


def _write(store: ArtifactStore, key: str, number: int, rows: list[dict[str, Any]]) -> None:
    file = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(rows, schema=_SCHEMA), file)
    if store.has(key, _file(number)) or not store.put_new(key, _file(number), file.getvalue()):
        raise NumberTaken(f"{store.location(key)}: change {number} is there already; ask again")


def compact(store: ArtifactStore, key: str) -> None:
    """Write a checkpoint of the changes so far, and remove what the checkpoint *before* it holds.

    So whoever reads while this runs finds that checkpoint and all changes since it. What is left undone when
    this is interrupted, the next compaction does; changes may be written meanwhile, and two compactions at
    once do no harm.

    Raises:
        ArtifactDamaged, FileNotFoundError: a change is not what was written, or missing; nothing is removed.
    """
    names = store.names(key)
    checkpoint, last = next(iter(_checkpoints(names)), None), max([0, *map(_number, names)])
    before = _number(checkpoint) if checkpoint else 0
    if last == before:
        return
    files = [checkpoint] if checkpoint else []
    files += [_file(number) for number in range(before + 1, last + 1)]
    table = arrow.concat_tables(
        [parquet.read_table(store.local_file(key, name)) for name in files], promote_options="default"
    )
    newest = {document_id: row for row, document_id in enumerate(table["id"].to_pylist())}
    kept = table.take(sorted(newest.values()))
    # Lasting: what it holds is removed.
    store.put(key, f"{_CHECKPOINT}{_file(last)}", partial(parquet.write_table, kept), lasting=True)
    for name in names:
        if _number(name) < before or name == _file(before):
            store.remove_file(key, name)
    store.drop_copies(key, names)


def has_news(store: ArtifactStore, key: str, change: int) -> bool:
    """Whether anything follows a change, at less cost than a list of names where there was one.

    While the change that was taken last is there, those after it are, too.
    """
    if change == 0:
        return last_change(store, key) > 0
    return store.has(key, _file(change + 1)) or not store.has(key, _file(change))


def take_changes(
    store: ArtifactStore, key: str, change: int, take: Callable[[arrow.Table, int], None]
) -> str | None:
    """Give everything after a change to ``take``, in order, each with the number of its last change.

    Returns:
        The file that cannot be read, if any.
    """
    names = store.names(key)
    store.drop_copies(key, names)
    checkpoints, last = _checkpoints(names), max([0, *map(_number, names)])
    while change < last:
        # The one before the newest, with the changes since, says the same.
        sums = [(name, _number(name)) for name in checkpoints if _number(name) > change]
        following = (_file(change + 1), change + 1)
        # At the start a checkpoint is the shorter way.
        steps = [following, *sums] if change else [*sums, following]
        for name, number in steps:
            with suppress(FileNotFoundError, ArtifactDamaged):
                take(parquet.read_table(store.local_file(key, name)), number)
                change = number
                break
        else:
            return steps[0][0]
    return None


def read_rows(change: arrow.Table) -> Iterator[Change]:
    """What each document of a change is from then on."""
    for batch in change.to_batches(max_chunksize=_ROWS_AT_ONCE):
        for row in batch.to_pylist():
            vector, passages = row["embedding"], row.get("passages")
            if vector is None and passages is None:
                yield Change(row["id"], None, [])
                continue
            document = read_document(row)
            if passages is None:
                entries = [Entry(document, np.array(vector, dtype=np.float32))]
            else:
                entries = [
                    Entry(document._replace(text=one["text"]), np.array(one["embedding"], np.float32), place)
                    for place, one in enumerate(passages, start=1)
                ]
            yield Change(row["id"], document, entries)


def _file(number: int) -> str:
    return f"{number:010d}.parquet"


def _number(name: str) -> int:
    return int(name.removeprefix(_CHECKPOINT).removeprefix(_FOLDED).removesuffix(".parquet"))


def _checkpoints(names: Iterable[str]) -> list[str]:
    """The checkpoints' files, the newest first."""
    there = [name for name in names if name.startswith((_CHECKPOINT, _FOLDED))]
    return sorted(there, key=_number, reverse=True)
