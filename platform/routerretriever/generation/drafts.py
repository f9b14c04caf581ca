"""What a writer has answered about a collection, in files that are added and never changed.

A row is found by its document and type, whatever run has asked for it and in whatever file it lies. Each row
counts for the budget, also one that has to be asked for again.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.generation.prompts import Request
from routerretriever.generation.protocol import Writer, Written

MANY = 5
"""If so many requests in a row give no query, the writer is at fault and not the documents."""
_TIMES = 3
"""A request that fails so often while the writer answers others has failed for good."""


@dataclass(frozen=True)
class Answered:
    """What storage holds of the answers about a collection."""

    settled: Mapping[tuple[str, str], Written]
    """By document and type: what is not asked for again, with the tokens of all its answers."""
    failed: Mapping[tuple[str, str], Written]
    """What has to be asked for again, as it was last answered."""
    tokens: int
    """Of all answers together."""

    def unsettled(self, requests: Sequence[Request]) -> list[Request]:
        """Those that are still to be sent."""
        return [one for one in requests if one.id not in self.settled]


@dataclass(frozen=True)
class Drafts:
    """The answers of one writer about one collection."""

    store: ArtifactStore
    key: str
    """Where the files lie; never finished, so that another number of documents finds them too."""

    def read(self) -> Answered:
        """All that was answered so far, by age. What lay in a damaged file has to be asked for again."""
        rows = [
            row for path in self.store.sound_files(self.key) for row in parquet.read_table(path).to_pylist()
        ]
        answers = defaultdict[tuple[str, str], list[_Answer]](list)
        for row in rows:
            answers[row["document"], row["type"]].append(_answer(row))
        works = any(row["query"] for row in rows)
        settled, failed = dict[tuple[str, str], Written](), dict[tuple[str, str], Written]()
        for asked, own in answers.items():
            if (written := _settled(own, works)) is not None:
                settled[asked] = written
            else:
                failed[asked] = own[-1].written
        return Answered(settled, failed, sum(row["tokens"] for row in rows))

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return self.store.has(self.key, name)

    def extend(
        self, writer: Writer, requests: Sequence[Request], name: str, trial: bool = False
    ) -> list[Written]:
        """Have queries written. Every answer is kept in one new file, also where the writer stops.

        Args:
            writer: is asked.
            requests: to it; a few at a time, as what is answered meanwhile is lost if this process dies.
            name: of the file.
            trial: whether they are to show that the writer works; what fails is then asked for again.

        Raises:
            WriterError: the writer cannot write.
        """
        written: dict[int, Written] = {}
        try:
            for number, one in writer.write(requests):
                written[number] = one
        finally:
            self._keep(name, requests, written, trial)
        return list(written.values())

    def extend_in_files(
        self, writer: Writer, requests: Sequence[Request], size: int
    ) -> Iterator[list[Written]]:
        """Have queries written by a writer that is asked once; gives each file's answers when they are kept.

        Args:
            writer: is asked.
            requests: to it, any number.
            size: answers in one file; a process that dies loses no more than that.

        Raises:
            WriterError: the writer cannot write. What was answered is kept.
        """
        written: dict[int, Written] = {}
        part = 0
        try:
            for number, one in writer.write(requests):
                written[number] = one
                if len(written) == size:
                    whole, written = written, {}
                    yield self._keep(new_file(f"{part:05d}"), requests, whole)
                    part += 1
        finally:
            rest = self._keep(new_file(f"{part:05d}"), requests, written)
        if rest:
            yield rest

    def _keep(
        self, name: str, requests: Sequence[Request], written: Mapping[int, Written], trial: bool = False
    ) -> list[Written]:
        """Keep answers, by the number of their request, in one new file."""
        answers = list(written.values())
        worked = not trial and not writer_failed(answers)
        self._add(name, [requests[number] for number in written], answers, worked)
        return answers

    def _add(self, name: str, asked: Sequence[Request], answers: Sequence[Written], worked: bool) -> None:
        if not answers:
            return
        column = arrow.array([worked] * len(answers), arrow.bool_())
        table = answer_table(asked, answers).append_column("writer_worked", column)
        self.store.put(self.key, name, partial(parquet.write_table, table))


def new_file(part: str = "trial") -> str:
    """A name for a file of answers.

    By time, and after the files of earlier versions: of two answers to a request the first one stands.

    Args:
        part: of what the answers of one time are.
    """
    return f"run-{time.time_ns()}-{uuid.uuid4().hex[:8]}-{part}.parquet"


def answer_table(asked: Sequence[Request], answers: Sequence[Written]) -> arrow.Table:
    """One row for each request and its answer."""
    return arrow.table(
        {
            "document": arrow.array([one.document for one in asked], arrow.string()),
            "type": arrow.array([one.type for one in asked], arrow.string()),
            "query": arrow.array([one.query for one in answers], arrow.string()),
            "tokens": arrow.array([one.tokens for one in answers], arrow.int64()),
            "problem": arrow.array([one.problem for one in answers], arrow.string()),
            "passing": arrow.array([one.passing for one in answers], arrow.bool_()),
        }
    )


def writer_failed(answers: Collection[Written]) -> bool:
    """Whether so many requests without a query are the writer's fault."""
    return len(answers) >= MANY and not any(one.query for one in answers)


@dataclass(frozen=True)
class _Answer:
    written: Written
    writer_worked: bool
    """Whether it is known; else a failure tells nothing of the document."""


def _answer(row: Mapping[str, Any]) -> _Answer:
    # An earlier version had not the last two columns, and wrote only where the writer worked. What it was
    # not billed for were failures that may pass, and refusals: these will be refused again.
    passing = row.get("passing", not row["query"] and not row["tokens"])
    written = Written(row["query"], row["tokens"], row["problem"], passing)
    return _Answer(written, row.get("writer_worked", True))


def _settled(answers: Sequence[_Answer], works: bool) -> Written | None:
    """What came of a request; None if it has to be asked again.

    Args:
        answers: to this request, from all runs, the first one first.
        works: whether the writer has written any query of the collection; else it is at fault.
    """
    queries = [one.written for one in answers if one.written.query]
    failures = [one.written for one in answers if works and one.writer_worked]
    lasting = [one for one in failures if not one.passing]
    final = queries or lasting or failures[_TIMES - 1 :]
    return replace(final[0], tokens=sum(one.written.tokens for one in answers)) if final else None
