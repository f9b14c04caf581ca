"""Writing queries on Ray Data: resumable by shard, and by row where a writer had to stop.

What was written lies at a key of its own, one file a shard, named by the hash of its requests. So raising
``documents``, or going on after a stop, writes only what is missing, and pays for nothing twice.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import pyarrow as arrow
import pyarrow.parquet as parquet

from routerretriever.artifacts.step import Step
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.datasets.collection import Collection
from routerretriever.errors import RouterRetrieverError, WriterError
from routerretriever.generation.filters import Draft
from routerretriever.generation.prompts import PROMPT_VERSION, Request
from routerretriever.generation.protocol import Written
from routerretriever.generation.settings import EndpointSettings, GenerationSettings
from routerretriever.generation.writers import open_writer
from routerretriever.hashing import content_hash
from routerretriever.runtime.progress import log
from routerretriever.runtime.shards import ShardWorker, run_shards

_FILE = "queries.parquet"
_PARTIAL = "partial-"


@dataclass(frozen=True, kw_only=True, eq=False)
class WriteQueries(Step):
    """The queries that a writer has written, before any filter."""

    stage: ClassVar[str] = "write queries"

    drafts_key: str
    """Where the shards lie; never finished, so that another number of documents finds them too."""
    requests: tuple[Request, ...]
    settings: GenerationSettings

    def work(self) -> str:
        """Calls."""
        return f"{len(self.requests)} calls in {len(self.shards)} shards"

    def asks_for(self) -> str:
        """Workers."""
        return self.settings.describe()

    def is_started(self, store: ArtifactStore) -> bool:
        """Whether a shard was written."""
        return bool(store.names(self.drafts_key))

    @property
    def shards(self) -> dict[str, list[Request]]:
        """Requests by the name of their file."""
        size = self.settings.shard_size
        cut = [list(self.requests[start : start + size]) for start in range(0, len(self.requests), size)]
        return {f"{content_hash([[one.document, one.type] for one in own])}.parquet": own for own in cut}

    def missing(self, store: ArtifactStore) -> dict[str, list[Request]]:
        """The shards that are not written yet."""
        there = set(store.names(self.drafts_key))
        return {name: own for name, own in self.shards.items() if name not in there}

    @classmethod
    def build_all(cls, steps: Sequence[WriteQueries], store: ArtifactStore) -> None:
        """Write what is missing, one collection after the other: a budget is a collection's."""
        for step in steps:
            todo = step.missing(store)
            endpoint = isinstance(step.settings.writer, EndpointSettings)
            # One process asks an endpoint, with many threads: it knows what all of them spend.
            pool = step.settings.model_copy(update={"workers": 1}) if endpoint else step.settings
            rows = [
                {"key": step.drafts_key, "part": name,
                 "requests": json.dumps([dataclasses.astuple(one) for one in own])}
                for name, own in todo.items()
            ]  # fmt: skip
            constructor = {"settings": step.settings, "store": store, "spent": step.spent(store)}
            run_shards(rows, _ShardWriter, constructor, pool, "writing queries")
            table = arrow.concat_tables(
                parquet.read_table(store.local_file(step.drafts_key, name)) for name in step.shards
            )
            store.put(step.key, _FILE, partial(parquet.write_table, table))
            store.commit(
                step.key,
                {
                    "kind": "written queries",
                    "collection": step.name,
                    "calls": len(step.requests),
                    "writer": step.settings.writer.identity(),
                },
            )

    def spent(self, store: ArtifactStore) -> int:
        """Tokens that earlier runs have spent on this collection."""
        files = (store.local_file(self.drafts_key, name) for name in store.names(self.drafts_key))
        return sum(sum(parquet.read_table(file, columns=["tokens"])["tokens"].to_pylist()) for file in files)


def write_step(
    collection: Collection, requests: Sequence[Request], settings: GenerationSettings
) -> WriteQueries:
    """The step that writes queries about some documents of a collection."""
    identity = settings.model_dump(
        include={"examples", "seed", "document_words", "max_query_tokens"}, mode="json"
    )
    drafts = content_hash(collection.corpus_hash(), settings.writer.identity(), identity, PROMPT_VERSION)
    asked = content_hash(drafts, [[one.document, one.type] for one in requests])
    return WriteQueries(
        name=collection.name,
        key=f"written/{collection.name}-{asked}",
        drafts_key=f"drafts/{collection.name}-{drafts}",
        requests=tuple(requests),
        settings=settings,
    )


def read_drafts(store: ArtifactStore, step: WriteQueries) -> tuple[list[Draft], int]:
    """What was written, in the order of requests, and the tokens that it took."""
    rows = parquet.read_table(store.fetch(step.key) / _FILE).to_pylist()
    drafts = [
        Draft(request, row["query"], row["problem"]) for request, row in zip(step.requests, rows, strict=True)
    ]
    return drafts, sum(row["tokens"] for row in rows)


class _ShardWriter(ShardWorker):
    """A Ray Data actor: requests of a shard in, queries in storage."""

    def __init__(self, settings: GenerationSettings, store: ArtifactStore, spent: int) -> None:
        self._writer = open_writer(settings, spent)
        self._store = store

    def work(self, row: dict[str, Any]) -> None:
        """Write one shard. Where the writer stops, what it has written so far is kept."""
        requests = [Request(*each) for each in json.loads(row["requests"])]
        key, name = row["key"], row["part"]
        written = self._earlier(key, name, len(requests))
        left = [number for number in range(len(requests)) if number not in written]
        try:
            for number, one in self._writer.write([requests[number] for number in left]):
                written[left[number]] = one
            self._require_some(requests, written)
        except RouterRetrieverError:
            good = {number: one for number, one in written.items() if one.query}
            self._store.put(key, _PARTIAL + name, partial(parquet.write_table, _table(requests, good)))
            raise
        self._store.put(key, name, partial(parquet.write_table, _table(requests, written)))
        self._store.remove_file(key, _PARTIAL + name)

    def _earlier(self, key: str, name: str, requests: int) -> dict[int, Written]:
        if not self._store.has(key, _PARTIAL + name):
            return {}
        rows = parquet.read_table(self._store.local_file(key, _PARTIAL + name)).to_pylist()
        log.info("%s: goes on after %d of %d queries", name, len(rows), requests)
        return {row["number"]: Written(row["query"], row["tokens"], row["problem"]) for row in rows}

    @staticmethod
    def _require_some(requests: Sequence[Request], written: dict[int, Written]) -> None:
        """Refuse a shard without any query: it would never be retried when the writer works again."""
        if not any(one.query for one in written.values()):
            problems = sorted({one.problem for one in written.values()})
            raise WriterError(
                f"generation.writer: none of {len(requests)} requests in a row gave a query "
                f"({', '.join(problems)}); mend the writer and run the same command again: what was written "
                "is kept"
            )


def _table(requests: Sequence[Request], written: dict[int, Written]) -> arrow.Table:
    numbers = sorted(written)
    return arrow.table(
        {
            "number": arrow.array(numbers, arrow.int32()),
            "document": arrow.array([requests[number].document for number in numbers], arrow.string()),
            "type": arrow.array([requests[number].type for number in numbers], arrow.string()),
            "query": arrow.array([written[number].query for number in numbers], arrow.string()),
            "tokens": arrow.array([written[number].tokens for number in numbers], arrow.int64()),
            "problem": arrow.array([written[number].problem for number in numbers], arrow.string()),
        }
    )
