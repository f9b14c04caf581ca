"""One split's queries and judgements as an artifact, so that workers on any node can read them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from routerretriever.artifacts.step import Step
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.datasets.collection import Collection
from routerretriever.datasets.splitting import first_by_hash, split_train
from routerretriever.hashing import content_hash

_FILE = "judgements.json.gz"


@dataclass(frozen=True)
class Judgements:
    """Queries by id, and their relevance judgements."""

    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    own_kept: frozenset[str] = frozenset()
    """Queries whose results keep the document of the query's own id; for others it is left out."""
    passages: bool = False
    """Whether the corpus holds passages of the documents that dev and test queries are judged for."""

    @classmethod
    def of(
        cls,
        collection: Collection,
        split: str,
        limit: int | None = None,
        held_out_fraction: float = 0.0,
        *,
        whole_documents: bool = False,
    ) -> Judgements:
        """A split, or a sample of it.

        Args:
            collection: whose split.
            split: its name.
            limit: at most so many queries, chosen by hash of their ids: a larger sample holds the smaller.
            held_out_fraction: share of them that is left out, groups together.
            whole_documents: train queries are judged for documents, as dev and test are, not for passages.

        Raises:
            DatasetError: the collection is flawed, or cannot give this split.
            BadInput: a share is to be held out of one query, or one group.
        """
        judgements = cls(
            collection.queries(split),
            collection.document_qrels(split) if whole_documents else collection.qrels(split),
            collection.own_kept(split),
            collection.settings.passages is not None,
        )
        if limit is not None:
            judgements = judgements.subset(first_by_hash(judgements.queries, limit, "sample"))
        if held_out_fraction:
            kept, _ = split_train(judgements.queries, held_out_fraction, collection.groups(split))
            judgements = judgements.subset(kept)
        return judgements

    def subset(self, query_ids: Iterable[str]) -> Judgements:
        """The same, of some queries only, in their order."""
        ids = list(query_ids)
        return Judgements(
            {i: self.queries[i] for i in ids},
            {i: self.qrels[i] for i in ids},
            self.own_kept & set(ids),
            self.passages,
        )


def judgements_key(collection: Collection, split: str, limit: int | None = None) -> str:
    """Where a split's judgements lie, or those of a sample of it: a hash of its queries and judgements."""
    sample = "" if limit is None else f"-{limit}"
    # Dev and test name documents, cut or not, so their judgements do not tell what results are of.
    cut = "-passages" if collection.settings.passages and split != "train" else ""
    return f"judgements/{collection.name}-{split}-{collection.split_hash(split)}{cut}{sample}"


def judgements_step(
    collection: Collection, split: str, limit: int | None = None, held_out_fraction: float = 0.0
) -> StoreJudgements:
    """The step that puts a split, or a sample of it, into storage.

    Args:
        collection: whose split.
        split: its name.
        limit: at most so many queries, chosen by hash of their ids: a larger sample holds the smaller.
        held_out_fraction: share of these that is left out.

    Raises:
        BadInput: a share is to be held out of one query, or one group.
    """
    key = judgements_key(collection, split, limit)
    if held_out_fraction:
        kept = Judgements.of(collection, split, limit, held_out_fraction)
        key = f"{key}-{content_hash(sorted(kept.queries))}"
    return StoreJudgements(
        name=collection.name,
        key=key,
        collection=collection,
        split=split,
        limit=limit,
        held_out_fraction=held_out_fraction,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class StoreJudgements(Step):
    """A split's queries and judgements, copied to where all workers can read them."""

    stage: ClassVar[str] = "read"

    collection: Collection
    split: str
    limit: int | None
    held_out_fraction: float

    @classmethod
    def build_all(cls, steps: Sequence[StoreJudgements], store: ArtifactStore) -> None:
        """Write each split."""
        for step in steps:
            chosen = Judgements.of(step.collection, step.split, step.limit, step.held_out_fraction)
            facts = {"collection": step.collection.name, "split": step.split}
            write_judgements(store, step.key, chosen, facts)


def write_judgements(store: ArtifactStore, key: str, judgements: Judgements, facts: dict[str, str]) -> None:
    """Write queries and judgements as an artifact; ``facts`` say what they are."""
    content = {
        "queries": judgements.queries,
        "qrels": judgements.qrels,
        "own_kept": sorted(judgements.own_kept),
        "passages": judgements.passages,
    }
    data = gzip.compress(json.dumps(content, ensure_ascii=False).encode(), mtime=0)
    store.put(key, _FILE, partial(_write, data))
    store.commit(key, {"kind": "judgements", **facts})


def load_judgements(store: ArtifactStore, key: str) -> Judgements:
    """Read a split back from storage."""
    content = json.loads(gzip.decompress((store.fetch(key) / _FILE).read_bytes()))
    return Judgements(
        content["queries"],
        content["qrels"],
        frozenset(content.get("own_kept", ())),
        content.get("passages", False),
    )


def _write(data: bytes, path: Path) -> None:
    path.write_bytes(data)
