"""Encoding collections on Ray Data: any number of actors, resumable by shard, never done twice."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet

from routerretriever.artifacts.store import ArtifactStore, build_missing
from routerretriever.corpus.artifact import Corpus, corpus_key, documents_file, embeddings_file, open_corpus
from routerretriever.corpus.settings import CorpusSettings
from routerretriever.datasets.collection import Collection, Document
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.encoder.source import encoder_fingerprint
from routerretriever.errors import DatasetError
from routerretriever.runtime.metrics import DOCUMENTS_ENCODED, increment
from routerretriever.runtime.progress import log
from routerretriever.runtime.shards import ShardWorker, run_shards


def build_corpora(
    collections: list[Collection], encoder: EncoderSettings, settings: CorpusSettings, store: ArtifactStore
) -> dict[str, Corpus]:
    """Make the corpus artifacts that are missing, all in one Ray Data run, and open all of them.

    Shards that an interrupted run has left are kept.

    Returns:
        Corpora by collection name.
    """
    keys = {collection.name: corpus_key(collection, encoder) for collection in collections}

    def build(missing: list[str]) -> None:
        _build([each for each in collections if keys[each.name] in missing], encoder, settings, store)

    build_missing(store, list(keys.values()), build)
    return {name: open_corpus(store, key) for name, key in keys.items()}


def _build(
    missing: list[Collection], encoder: EncoderSettings, settings: CorpusSettings, store: ArtifactStore
) -> None:
    keys = {collection.name: corpus_key(collection, encoder) for collection in missing}
    sizes = {
        collection.name: _write_documents(collection, keys[collection.name], settings.shard_size, store)
        for collection in missing
    }
    todo = [
        {"key": keys[name], "shard": shard}
        for name, shards in sizes.items()
        for shard in range(len(shards))
        if not store.has(keys[name], embeddings_file(shard))
    ]
    run_shards(todo, _ShardEncoder, {"encoder": encoder, "store": store}, settings, "encoding documents")
    for collection in missing:
        key, shards = keys[collection.name], sizes[collection.name]
        manifest = {
            "kind": "corpus",
            "collection": collection.name,
            "corpus_hash": collection.corpus_hash(),
            "encoder": encoder.model_dump(),
            "encoder_fingerprint": encoder_fingerprint(encoder),
            "dimension": int(np.load(store.local_file(key, embeddings_file(0)), mmap_mode="r").shape[1]),
            "shards": shards,
        }
        store.commit(key, manifest)
        log.info("encoded %s: %d documents", collection.name, sum(shards))


def _write_documents(collection: Collection, key: str, shard_size: int, store: ArtifactStore) -> list[int]:
    """Cut a collection into Parquet shards that any node can read; at most one shard is in memory."""
    store.begin(key, {"shard_size": shard_size})
    sizes = []
    seen: set[str] = set()
    for shard, documents in enumerate(_shards(collection, shard_size)):
        for document in documents:
            if document.id in seen:
                raise DatasetError(
                    f"{collection.folder}: document id {document.id!r} stands twice in the corpus; "
                    "`routerretriever datasets check` lists all defects"
                )
            seen.add(document.id)
        table = arrow.table(
            {
                "id": [document.id for document in documents],
                "title": [document.title for document in documents],
                "text": [document.text for document in documents],
            }
        )
        store.put(key, documents_file(shard), partial(parquet.write_table, table))
        sizes.append(len(documents))
    if not sizes:
        raise DatasetError(f"{collection.folder}: the corpus has no documents")
    return sizes


def _shards(collection: Collection, size: int) -> Iterator[list[Document]]:
    documents = iter(collection.documents())
    while shard := [document for _, document in zip(range(size), documents, strict=False)]:
        yield shard


class _ShardEncoder(ShardWorker):
    """A Ray Data actor: documents of a shard in, embeddings of the shard in storage."""

    def __init__(self, encoder: EncoderSettings, store: ArtifactStore) -> None:
        from routerretriever.encoder.encoder import load_encoder

        self._encoder = load_encoder(encoder)
        self._store = store

    def work(self, row: dict[str, Any]) -> None:
        """Encode one shard."""
        key, shard = row["key"], int(row["shard"])
        table = parquet.read_table(self._store.local_file(key, documents_file(shard)))
        texts = [
            Document("", title, text).content
            for title, text in zip(table["title"].to_pylist(), table["text"].to_pylist(), strict=True)
        ]
        vectors = self._encoder.encode_documents(texts)
        self._store.put(key, embeddings_file(shard), lambda path: _save(vectors, path))
        increment(DOCUMENTS_ENCODED, len(texts))


def _save(vectors: Any, path: Any) -> None:
    with open(path, "wb") as file:
        np.save(file, vectors)
