"""Encoding collections on Ray Data: any number of actors, resumable by shard, never done twice."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as parquet

from routerretriever.adapters.files import tower_fingerprint
from routerretriever.artifacts.step import Step, alike
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.corpus.artifact import (
    corpus_key,
    documents_file,
    documents_table,
    embeddings_file,
    open_array,
)
from routerretriever.corpus.settings import CorpusSettings
from routerretriever.datasets.collection import Collection, Document
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.errors import DatasetError, EncoderError, StorageError
from routerretriever.runtime.metrics import DOCUMENTS_ENCODED, increment
from routerretriever.runtime.progress import log
from routerretriever.runtime.shards import ShardWorker, run_shards

_SMALLEST_SHARD = 128
"""Documents; fewer would not fill passes with texts of like length."""
_LEAST_SHARDS = 16


def corpus_step(collection: Collection, encoder: EncoderSettings, settings: CorpusSettings) -> EncodeCorpus:
    """The step that encodes a collection's documents."""
    return EncodeCorpus(
        name=collection.name,
        key=corpus_key(collection, encoder),
        collection=collection,
        encoder=encoder,
        settings=settings,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodeCorpus(Step):
    """A collection's documents and their vectors. Shards that an interrupted run has left are kept."""

    stage: ClassVar[str] = "encode"

    collection: Collection
    encoder: EncoderSettings
    settings: CorpusSettings

    def work(self) -> str:
        """Documents and shards."""
        documents = self.documents
        shards = -(-documents // shard_size(documents, self.settings.shard_size))
        return f"{documents} documents in {shards} shard{'s' if shards > 1 else ''}"

    @property
    def documents(self) -> int:
        """How many there are."""
        return sum(1 for _ in self.collection.documents())

    def asks_for(self) -> str:
        """Workers."""
        return self.settings.describe()

    @classmethod
    def build_all(cls, steps: Sequence[EncodeCorpus], store: ArtifactStore) -> None:
        """Encode all of them, in one Ray Data run for each encoder."""
        for encoder, own in alike(steps, lambda step: step.encoder):
            sizes = {
                step.key: _write_documents(step.collection, step.key, step.settings.shard_size, store)
                for step in own
            }
            todo = [
                {"key": key, "shard": shard}
                for key, shards in sizes.items()
                for shard in range(len(shards))
                if not store.has(key, embeddings_file(shard))
            ]
            constructor = {"encoder": encoder, "store": store}
            run_shards(todo, ShardEncoder, constructor, own[0].settings, "encoding documents")
            for step in own:
                _finish(step, sizes[step.key], store)


def shard_size(documents: int, most: int) -> int:
    """How many documents are encoded as one: a small collection is shared out among several workers too."""
    return min(most, max(_SMALLEST_SHARD, -(-documents // _LEAST_SHARDS)))


def _finish(step: EncodeCorpus, shards: list[int], store: ArtifactStore) -> None:
    first = open_array(store.local_file(step.key, embeddings_file(0)))
    manifest = {
        "kind": "corpus",
        "collection": step.name,
        "corpus_hash": step.collection.corpus_hash(),
        "encoder": step.encoder.model_dump(),
        "encoder_fingerprint": tower_fingerprint(step.encoder),
        "dimension": int(first.shape[1]),
        "shards": shards,
    }
    store.commit(step.key, manifest)
    log.info("encoded %s: %d documents", step.name, sum(shards))


def _write_documents(collection: Collection, key: str, most: int, store: ArtifactStore) -> list[int]:
    """Cut a collection into Parquet shards that any node can read; at most one shard is in memory."""
    # No more are counted than change the answer.
    size = shard_size(sum(1 for _ in collection.documents(limit=most * _LEAST_SHARDS)), most)
    store.begin(key, {"shard_size": size})
    sizes = []
    seen: set[str] = set()
    for shard, documents in enumerate(_shards(collection, size)):
        for document in documents:
            if document.id in seen:
                raise DatasetError(
                    f"{collection.folder}: document id {document.id!r} stands twice in the corpus; "
                    "`routerretriever datasets check` lists all defects"
                )
            seen.add(document.id)
        store.put(key, documents_file(shard), partial(parquet.write_table, documents_table(documents)))
        sizes.append(len(documents))
    if not sizes:
        raise DatasetError(f"{collection.folder}: the corpus has no documents")
    return sizes


def _shards(collection: Collection, size: int) -> Iterator[list[Document]]:
    documents = iter(collection.documents())
    while shard := [document for _, document in zip(range(size), documents, strict=False)]:
        yield shard


class ShardEncoder(ShardWorker):
    """A Ray Data actor: documents of a shard in, embeddings of the shard in storage."""

    def __init__(self, encoder: EncoderSettings, store: ArtifactStore) -> None:
        from routerretriever.adapters.tower import load_tower

        self._encoder = load_tower(encoder)
        self._store = store

    def work(self, row: dict[str, Any]) -> None:
        """Encode one shard."""
        key, shard = row["key"], int(row["shard"])
        table = parquet.read_table(self._documents(key, shard))
        texts = [
            Document("", title, text).content
            for title, text in zip(table["title"].to_pylist(), table["text"].to_pylist(), strict=True)
        ]
        vectors = self._encoder.encode_documents(texts)
        whole = np.isfinite(vectors).all(axis=1)
        if not whole.all():
            document, settings = table["id"][int(whole.argmin())].as_py(), self._encoder.settings
            raise EncoderError(
                f"{key}: document {document!r} gets a vector that is not finite; {settings.name} runs in "
                f"{settings.dtype}: set encoder.dtype to bf16 or fp32, or name another encoder"
            )
        self._store.put(key, embeddings_file(shard), lambda path: _save(vectors, path))
        increment(DOCUMENTS_ENCODED, len(texts))

    def _documents(self, key: str, shard: int) -> Path:
        """The first file that a worker reads of what the driver wrote, perhaps on another machine."""
        try:
            return self._store.local_file(key, documents_file(shard))
        except FileNotFoundError:
            if not self._store.is_local:
                raise
            raise StorageError(
                f"storage: {self._store.uri}: {key}/{documents_file(shard)} was written and is not there on "
                f"{socket.gethostname()}; name a folder that all machines share, or s3:// or gs://"
            ) from None


def _save(vectors: Any, path: Any) -> None:
    with open(path, "wb") as file:
        np.save(file, vectors)
