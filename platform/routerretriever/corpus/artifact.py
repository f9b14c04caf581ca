"""Reading a corpus artifact.

Layout: ``documents/00000.parquet`` (id, title, text) and ``embeddings/00000.npy`` ([n, d] float32) for each
shard of documents, in the collection's order; ``artifact.json`` with the shards' sizes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from routerretriever.config import EncoderSettings, content_hash
from routerretriever.datasets import Collection, Document
from routerretriever.encoder import encoder_fingerprint
from routerretriever.storage import ArtifactMissing, ArtifactStore

Vectors = NDArray[np.float32]


def corpus_key(collection: Collection, encoder: EncoderSettings) -> str:
    """Where a collection's corpus artifact lies: a hash of the documents, the encoder and its precision."""
    digest = content_hash(collection.corpus_hash(), encoder_fingerprint(encoder), encoder.dtype)
    return f"corpora/{collection.name}-{digest}"


def documents_file(shard: int) -> str:
    """Name of a shard's documents within the artifact."""
    return f"documents/{shard:05d}.parquet"


def embeddings_file(shard: int) -> str:
    """Name of a shard's embeddings within the artifact."""
    return f"embeddings/{shard:05d}.npy"


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

    def __len__(self) -> int:
        return sum(self.shards)

    @cached_property
    def ids(self) -> list[str]:
        """Document ids by row."""
        columns = (
            parquet.read_table(self.folder / documents_file(shard), columns=["id"])["id"].to_pylist()
            for shard in range(len(self.shards))
        )
        return [document_id for column in columns for document_id in column]

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row numbers by document id."""
        return {document_id: row for row, document_id in enumerate(self.ids)}

    def embeddings(self, shard: int) -> Vectors:
        """One shard's vectors [n, d], memory-mapped."""
        loaded: Vectors = np.load(self.folder / embeddings_file(shard), mmap_mode="r")
        return loaded

    def matrix(self) -> Vectors:
        """All vectors [N, d], in memory."""
        return np.concatenate([self.embeddings(shard) for shard in range(len(self.shards))])

    def lookup(self, rows: NDArray[np.int64]) -> Vectors:
        """The vectors [R, d] of some rows, read from disk as needed."""
        found = np.empty((len(rows), self.dimension), dtype=np.float32)
        starts = np.concatenate([[0], np.cumsum(self.shards)])
        shard_of_row = np.searchsorted(starts, rows, side="right") - 1
        for shard in np.unique(shard_of_row):
            here = shard_of_row == shard
            found[here] = self.embeddings(int(shard))[rows[here] - starts[shard]]
        return found

    def documents(self, ids: Iterable[str]) -> dict[str, Document]:
        """The texts of some documents, for people to read."""
        wanted = [document_id for document_id in ids if document_id in self.rows]
        starts = np.concatenate([[0], np.cumsum(self.shards)])
        by_shard: dict[int, list[str]] = {}
        for document_id in wanted:
            shard = int(np.searchsorted(starts, self.rows[document_id], side="right")) - 1
            by_shard.setdefault(shard, []).append(document_id)
        found = {}
        for shard, members in by_shard.items():
            table = parquet.read_table(self.folder / documents_file(shard))
            for document_id in members:
                row = table.slice(self.rows[document_id] - int(starts[shard]), 1).to_pylist()[0]
                found[document_id] = Document(row["id"], row["title"], row["text"])
        return found
