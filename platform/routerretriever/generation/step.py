"""Writing queries on Ray Data: whatever was answered is kept, and the next run asks for the rest alone."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import pyarrow as arrow
import pyarrow.parquet as parquet

from routerretriever.artifacts.step import Step
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.datasets.collection import Collection
from routerretriever.errors import WriterError
from routerretriever.generation.drafts import MANY, Answered, Drafts, answer_table, new_file, writer_failed
from routerretriever.generation.filters import Draft
from routerretriever.generation.prompts import PROMPT_VERSION, Request
from routerretriever.generation.protocol import Writer, Written, remedy
from routerretriever.generation.settings import EndpointSettings, GenerationSettings, VllmSettings
from routerretriever.generation.vllm import engine_pool
from routerretriever.generation.writers import open_writer
from routerretriever.hashing import content_hash
from routerretriever.runtime.progress import track
from routerretriever.runtime.shards import ShardWorker, run_shards

_FILE = "queries.parquet"
_FIRST_CALLS = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class WriteQueries(Step):
    """The queries that a writer has written, before any filter."""

    stage: ClassVar[str] = "write queries"

    drafts_key: str
    """Where all answers of the writer lie, whatever the number of documents."""
    requests: tuple[Request, ...]
    settings: GenerationSettings

    def work(self) -> str:
        """Calls."""
        return f"{len(self.requests)} calls in {len(_cut(self.requests, self.settings.shard_size))} shards"

    def asks_for(self) -> str:
        """Workers."""
        if isinstance(self.settings.writer, VllmSettings):
            return engine_pool(self.settings, self.settings.writer).describe()
        return self.settings.describe()

    def is_started(self, store: ArtifactStore) -> bool:
        """Whether anything was answered."""
        return bool(store.names(self.drafts_key))

    def missing(self, store: ArtifactStore) -> list[Request]:
        """The requests that are still to be sent."""
        return Drafts(store, self.drafts_key).read().unsettled(self.requests)

    def spent(self, store: ArtifactStore) -> int:
        """Tokens that were spent on this collection so far."""
        return Drafts(store, self.drafts_key).read().tokens

    @classmethod
    def build_all(cls, steps: Sequence[WriteQueries], store: ArtifactStore) -> None:
        """Write what is missing, one collection after the other: a budget is a collection's.

        Raises:
            WriterError: the writer cannot write, or has left requests without an answer.
            WorkerFailed: a worker's writer stopped. What was answered is kept in either case.
        """
        for step in steps:
            if missing := step.missing(store):
                step._write(missing, store)
            store.put(step.key, _FILE, partial(parquet.write_table, step._table(store)))
            store.commit(
                step.key,
                {
                    "kind": "written queries",
                    "collection": step.name,
                    "calls": len(step.requests),
                    "writer": step.settings.writer.identity(),
                },
            )

    def _write(self, requests: Sequence[Request], store: ArtifactStore) -> None:
        drafts, pool = Drafts(store, self.drafts_key), self.settings
        writer = open_writer(self.settings, self.spent(store))
        writer.check()
        if isinstance(self.settings.writer, VllmSettings):
            self._write_at_once(writer, requests, drafts)
            return
        if isinstance(self.settings.writer, EndpointSettings):
            self._try_first(writer, requests, drafts)
            # One process asks an endpoint, with many threads: it knows what all of them spend.
            pool = pool.model_copy(update={"workers": 1})
        answered = drafts.read()
        rows = [
            {"part": new_file(f"{number:05d}"),
             "requests": json.dumps([dataclasses.astuple(one) for one in own])}
            for number, own in enumerate(self._shards(answered))
        ]  # fmt: skip
        constructor = {"settings": self.settings, "drafts": drafts, "spent": answered.tokens}
        run_shards(rows, _ShardWriter, constructor, pool, "writing queries")

    def _write_at_once(self, writer: Writer, requests: Sequence[Request], drafts: Drafts) -> None:
        """Ask a writer that spreads the work itself, once: its engines take minutes to start."""
        size = self.settings.shard_size
        files = drafts.extend_in_files(writer, requests, size)
        for answers in track(files, "writing queries", math.ceil(len(requests) / size)):
            _require_any(answers)

    def _try_first(self, writer: Writer, requests: Sequence[Request], drafts: Drafts) -> None:
        """Send a request or two before any worker starts, so that a wrong setting is one line, at once."""
        before = drafts.read()
        fresh = [one for one in requests if one.id not in before.failed]
        # Where hardly any is new, one that was answered tells whether the writer still works.
        known = [one for one in self.requests if one.id in before.settled and before.settled[one.id].query]
        first = known[:1] if known and len(fresh) <= _FIRST_CALLS else (fresh or requests)[:_FIRST_CALLS]
        require_answer(drafts.extend(writer, first, new_file(), trial=True))

    def _table(self, store: ArtifactStore) -> arrow.Table:
        """One row for each request, in their order.

        Raises:
            WriterError: some have to be sent again.
        """
        answered = Drafts(store, self.drafts_key).read()
        if missing := answered.unsettled(self.requests):
            problems = _problems([answered.failed[one.id] for one in missing if one.id in answered.failed])
            raise WriterError(
                f"generation.writer: {len(missing)} of {len(self.requests)} requests gave no query "
                f"({problems}); run the same command again when the writer answers: it sends only these, and "
                "drops what fails a third time"
            )
        return answer_table(self.requests, [answered.settled[one.id] for one in self.requests])

    def _shards(self, answered: Answered) -> list[Sequence[Request]]:
        """What is to be sent, in shards."""
        missing = answered.unsettled(self.requests)
        passing = {asked for asked, last in answered.failed.items() if last.passing}
        fresh = [one for one in missing if one.id not in passing]
        again = [one for one in missing if one.id in passing]
        # What has failed before is sent a few at a time: many together would look like a writer that fails.
        return [*_cut(fresh, self.settings.shard_size), *_cut(again, MANY - 1)]


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
    """A Ray Data actor: requests of a shard in, answers in storage."""

    def __init__(self, settings: GenerationSettings, drafts: Drafts, spent: int) -> None:
        self._writer = open_writer(settings, spent)
        self._drafts = drafts

    def work(self, row: dict[str, Any]) -> None:
        """Have one shard written.

        Raises:
            WriterError: the writer cannot write, or has written nothing of many requests.
        """
        if self._drafts.has(row["part"]):
            return  # the worker before this one died when the shard was done
        requests = [Request(*each) for each in json.loads(row["requests"])]
        answers = self._drafts.extend(self._writer, requests, row["part"])
        _require_any(answers)


def require_answer(answers: Sequence[Written]) -> None:
    """Refuse a writer of whose first requests none was answered.

    Raises:
        WriterError: so it is.
    """
    if told := _remedy(answers):
        raise WriterError(f"generation.writer: the model was {_problems(answers)}; {told}")
    if all(one.problem and not one.tokens for one in answers):
        raise WriterError(
            f"generation.writer: a trial call failed in all its attempts ({_problems(answers)}); check url "
            "and model: the url is the API's root and usually ends in /v1"
        )


def _require_any(answers: Sequence[Written]) -> None:
    """Refuse a writer that has written nothing of many requests.

    Raises:
        WriterError: so it is.
    """
    if writer_failed(answers):
        told = _remedy(answers) or (
            "mend the writer, or wait for it, and run the same command again: what was written is kept"
        )
        raise WriterError(
            f"generation.writer: none of {len(answers)} requests in a row gave a query "
            f"({_problems(answers)}); {told}"
        )


def _cut(requests: Sequence[Request], size: int) -> list[Sequence[Request]]:
    return [requests[start : start + size] for start in range(0, len(requests), size)]


def _remedy(answers: Sequence[Written]) -> str | None:
    problems = [one.problem for one in answers]
    return remedy(problems, "generation.max_query_tokens", "generation.writer")


def _problems(answers: Sequence[Written]) -> str:
    return ", ".join(sorted({one.problem for one in answers}))
