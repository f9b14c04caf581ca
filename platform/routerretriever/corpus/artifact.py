"""Reading a corpus artifact.

Layout: ``documents/00000.parquet`` (id, title, text, and metadata as JSON where there is any) and
``embeddings/00000.npy`` ([n, d] float32) for each shard of documents, in the collection's order;
``artifact.json`` with the shards' sizes.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from routerretriever.adapters.files import tower_fingerprint
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.datasets.collection import Collection, Document
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.errors import ArtifactMissing
from routerretriever.hashing import content_hash
from routerretriever.types import Vectors

_HEADERS = threading.Lock()


def corpus_key(collection: Collection, encoder: EncoderSettings) -> str:
    """Where a collection's corpus artifact lies: a hash of the documents, the encoder and its precision."""
    digest = content_hash(collection.corpus_hash(), tower_fingerprint(encoder), encoder.dtype)
    return f"corpora/{collection.name}-{digest}"


def documents_file(shard: int) -> str:
    """Name of a shard's documents within the artifact."""
    return f"documents/{shard:05d}.parquet"


def embeddings_file(shard: int) -> str:
    """Name of a shard's embeddings within the artifact."""
    return f"embeddings/{shard:05d}.npy"


def open_array(path: Path) -> NDArray[Any]:
    """An array that stays on disk until it is needed.

    One thread at a time: NumPy has Python parse the header, and CPython before 3.11.8 may raise a
    ``SystemError`` if two threads do so at once (CPython's issue 106905).
    """
    with _HEADERS:
        loaded: NDArray[Any] = np.load(path, mmap_mode="r")
    return loaded


def documents_table(documents: Sequence[Document]) -> arrow.Table:
    """Documents as Parquet holds them; metadata is JSON, and left out where nobody has any."""
    columns = {
        "id": [document.id for document in documents],
        "title": [document.title for document in documents],
        "text": [document.text for document in documents],
    }
    if any(document.metadata for document in documents):
        columns["metadata"] = [json.dumps(document.metadata or {}) for document in documents]
    return arrow.table(columns)


def read_document(row: Mapping[str, Any]) -> Document:
    """A document from a row of such a table."""
    metadata = json.loads(row.get("metadata") or "{}")
    return Document(row["id"], row.get("title") or "", row.get("text") or "", metadata or None)


def open_corpus(store: ArtifactStore, key: str) -> Corpus:
    """Open a finished corpus artifact.

    Raises:
        ArtifactMissing: it has not been made.
    """
    try:
        manifest = store.manifest(key)
    except ArtifactMissing:
        raise ArtifactMissing(
            f"{store.location(key)}: the corpus is not encoded yet; run `routerretriever encode` first"
        ) from None
    return Corpus(key, store.fetch(key), tuple(manifest["shards"]), int(manifest["dimension"]))


@dataclass(frozen=True)
class Corpus:
    """A collection's N documents and their vectors; row numbers are positions in the collection."""

    key: str
    folder: Path
    shards: tuple[int, ...]
    dimension: int
    first: int = 0
    """Number of the first shard; above 0 in a part."""

    def part(self, number: int, parts: int) -> Corpus:
        """One of several parts of about the same size, cut between shards; it may be empty."""
        start, stop = (len(self.shards) * edge // parts for edge in (number, number + 1))
        return replace(self, shards=self.shards[start:stop], first=self.first + start)

    def __len__(self) -> int:
        return sum(self.shards)

    @cached_property
    def ids(self) -> list[str]:
        """Document ids by row."""
        columns = (
            parquet.read_table(self._documents_file(shard), columns=["id"])["id"].to_pylist()
            for shard in range(len(self.shards))
        )
        return [document_id for column in columns for document_id in column]

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row numbers by document id."""
        return {document_id: row for row, document_id in enumerate(self.ids)}

    def embeddings(self, shard: int) -> Vectors:
        """One shard's vectors [n, d], memory-mapped."""
        # Opening takes longer than a search among few documents.
        if shard not in self._opened:
            self._opened[shard] = open_array(self.folder / embeddings_file(self.first + shard))
        return self._opened[shard]

    def matrix(self) -> Vectors:
        """All vectors [N, d], in memory."""
        return np.concatenate([self.embeddings(shard) for shard in range(len(self.shards))])

    def lookup(self, rows: NDArray[np.int64]) -> Vectors:
        """The vectors [R, d] of some rows, read from disk as needed."""
        found = np.empty((len(rows), self.dimension), dtype=np.float32)
        shard_of_row = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shard_of_row):
            here = shard_of_row == shard
            found[here] = self.embeddings(int(shard))[rows[here] - self._starts[shard]]
        return found

    def documents(self, ids: Iterable[str]) -> dict[str, Document]:
        """The texts of some documents, for people to read; those that are not here are left out."""
        found = {}
        for document_id in ids:
            row = self.rows.get(document_id)
            if row is not None:
                found[document_id] = self.document(row)
        return found

    def document(self, row: int) -> Document:
        """One row's document."""
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return read_document(self._texts(shard).slice(row - int(self._starts[shard]), 1).to_pylist()[0])

    def stream(self) -> Iterator[Document]:
        """All documents by row, a shard in memory at a time."""
        for shard in range(len(self.shards)):
            yield from map(read_document, parquet.read_table(self._documents_file(shard)).to_pylist())

    @cached_property
    def metadata(self) -> list[dict[str, Any] | None]:
        """JSON fields by row; None where a document has none."""
        found: list[dict[str, Any] | None] = []
        for shard, size in enumerate(self.shards):
            file = parquet.ParquetFile(self._documents_file(shard))
            if "metadata" in file.schema_arrow.names:
                texts = file.read(columns=["metadata"])["metadata"].to_pylist()
                found += [json.loads(text) or None if text else None for text in texts]
            else:
                found += [None] * size
        return found

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """The first row of each shard, and the end."""
        return np.concatenate([[0], np.cumsum(self.shards, dtype=np.int64)])

    def _documents_file(self, shard: int) -> Path:
        return self.folder / documents_file(self.first + shard)

    def _texts(self, shard: int) -> arrow.Table:
        """A shard's documents, mapped from disk: Parquet itself can only be read whole."""
        if shard not in self._mapped:
            table = parquet.read_table(self._documents_file(shard))
            # Unlinked at once; the mapping keeps it. A killed process leaves nothing on the disk.
            with tempfile.NamedTemporaryFile(prefix="documents-", suffix=".arrow") as scratch:
                with arrow.ipc.new_file(scratch.name, table.schema) as file:
                    file.write_table(table)
                self._mapped[shard] = arrow.ipc.open_file(arrow.memory_map(scratch.name)).read_all()
        return self._mapped[shard]

    @cached_property
    def _opened(self) -> dict[int, Vectors]:
        return {}

    @cached_property
    def _mapped(self) -> dict[int, arrow.Table]:
        return {}
