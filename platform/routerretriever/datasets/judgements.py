"""One split's queries and judgements as an artifact, so that workers on any node can read them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from routerretriever.datasets.collection import Collection
from routerretriever.storage import ArtifactStore

_FILE = "judgements.json.gz"


@dataclass(frozen=True)
class Judgements:
    """Queries by id, and their relevance judgements."""

    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]

    def subset(self, query_ids: Iterable[str]) -> Judgements:
        """The same, of some queries only, in their order."""
        ids = list(query_ids)
        return Judgements({i: self.queries[i] for i in ids}, {i: self.qrels[i] for i in ids})


def judgements_key(collection: Collection, split: str) -> str:
    """Where a split's judgements lie: a hash of its queries and judgements."""
    return f"judgements/{collection.name}-{split}-{collection.split_hash(split)}"


def store_judgements(store: ArtifactStore, collection: Collection, split: str) -> str:
    """Put a split into storage, once; returns its key."""
    key = judgements_key(collection, split)
    if not store.ready(key):
        content = {"queries": collection.queries(split), "qrels": collection.qrels(split)}
        data = gzip.compress(json.dumps(content, ensure_ascii=False).encode(), mtime=0)
        store.put(key, _FILE, lambda path: _write(path, data))
        store.commit(key, {"kind": "judgements", "collection": collection.name, "split": split})
    return key


def load_judgements(store: ArtifactStore, key: str) -> Judgements:
    """Read a split back from storage."""
    content = json.loads(gzip.decompress((store.fetch(key) / _FILE).read_bytes()))
    return Judgements(content["queries"], content["qrels"])


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
