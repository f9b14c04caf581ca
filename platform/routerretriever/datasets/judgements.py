"""One split's queries and judgements as an artifact, so that workers on any node can read them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.datasets.collection import Collection
from routerretriever.datasets.splitting import first_by_hash

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


def judgements_key(collection: Collection, split: str, limit: int | None = None) -> str:
    """Where a split's judgements lie, or those of a sample of it: a hash of its queries and judgements."""
    sample = "" if limit is None else f"-{limit}"
    return f"judgements/{collection.name}-{split}-{collection.split_hash(split)}{sample}"


def store_judgements(
    store: ArtifactStore, collection: Collection, split: str, limit: int | None = None
) -> str:
    """Put a split into storage, once; returns its key.

    Args:
        store: where to.
        collection: whose split.
        split: its name.
        limit: at most so many queries, chosen by hash of their ids: a larger sample holds the smaller.
    """
    key = judgements_key(collection, split, limit)
    if not store.verify(key):
        chosen = Judgements(collection.queries(split), collection.qrels(split))
        if limit is not None:
            chosen = chosen.subset(first_by_hash(chosen.queries, limit, "sample"))
        _put(store, key, chosen, {"collection": collection.name, "split": split})
    return key


def put_judgements(store: ArtifactStore, key: str, judgements: Judgements) -> str:
    """Put any queries into storage, once; the key must name what they are. Returns the key."""
    if not store.verify(key):
        _put(store, key, judgements, {})
    return key


def _put(store: ArtifactStore, key: str, judgements: Judgements, facts: dict[str, str]) -> None:
    content = {"queries": judgements.queries, "qrels": judgements.qrels}
    data = gzip.compress(json.dumps(content, ensure_ascii=False).encode(), mtime=0)
    store.put(key, _FILE, lambda path: _write(path, data))
    store.commit(key, {"kind": "judgements", **facts})


def load_judgements(store: ArtifactStore, key: str) -> Judgements:
    """Read a split back from storage."""
    content = json.loads(gzip.decompress((store.fetch(key) / _FILE).read_bytes()))
    return Judgements(content["queries"], content["qrels"])


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
