"""What a writer has answered about a collection, in files that are added and never changed.

A row is found by its document and type, whatever run has asked for it and in whatever file it lies. Each row
counts for the budget, also one that has to be asked for again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as arrow
import pyarrow.parquet as parquet

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.generation.prompts import Request
from routerretriever.generation.protocol import Writer, Written

MANY = 5
"""If so many requests in a row give no query, the writer is at fault and not the documents."""


@dataclass(frozen=True)
class Answered:
    """What storage holds of the answers about a collection."""

    settled: Mapping[tuple[str, str], Written]
    """By document and type: what is not asked for again, with the tokens of all its answers."""
    tokens: int
    """Of all answers together."""


@dataclass(frozen=True)
class Drafts:
    """The answers of one writer about one collection."""

    store: ArtifactStore
    key: str
    """Where the files lie; never finished, so that another number of documents finds them too."""

    def read(self) -> Answered:
        """All that was answered so far."""
        rows = [
            row
            for name in self.store.names(self.key)
            for row in parquet.read_table(self.store.local_file(self.key, name)).to_pylist()
        ]
        answers = defaultdict[tuple[str, str], list[_Answer]](list)
        for row in rows:
            written = Written(row["query"], row["tokens"], row["problem"])
            # Files of before this column was kept were written where the writer worked.
            answers[row["document"], row["type"]].append(_Answer(written, row.get("writer_worked", True)))
        works = any(row["query"] for row in rows)
        found = {asked: _settled(own, works) for asked, own in answers.items()}
        settled = {asked: written for asked, written in found.items() if written is not None}
        return Answered(settled, sum(row["tokens"] for row in rows))

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return self.store.has(self.key, name)

    def extend(self, writer: Writer, requests: Sequence[Request], name: str) -> list[Written]:
        """Have queries written. Every answer is kept in one new file, also where the writer stops.

        Args:
            writer: is asked.
            requests: to it; a few at a time, as what is answered meanwhile is lost if this process dies.
            name: of the file.

        Raises:
            WriterError: the writer cannot write.
        """
        written: dict[int, Written] = {}
        try:
            for number, one in writer.write(requests):
                written[number] = one
        finally:
            self._add(name, [requests[number] for number in written], list(written.values()))
        return list(written.values())

    def _add(self, name: str, asked: Sequence[Request], answers: Sequence[Written]) -> None:
        if not answers:
            return
        worked = arrow.array([not writer_failed(answers)] * len(answers), arrow.bool_())
        table = answer_table(asked, answers).append_column("writer_worked", worked)
        self.store.put(self.key, name, partial(parquet.write_table, table))


def answer_table(asked: Sequence[Request], answers: Sequence[Written]) -> arrow.Table:
    """One row for each request and its answer."""
    return arrow.table(
        {
            "document": arrow.array([one.document for one in asked], arrow.string()),
            "type": arrow.array([one.type for one in asked], arrow.string()),
            "query": arrow.array([one.query for one in answers], arrow.string()),
            "tokens": arrow.array([one.tokens for one in answers], arrow.int64()),
            "problem": arrow.array([one.problem for one in answers], arrow.string()),
        }
    )


def writer_failed(answers: Collection[Written]) -> bool:
    """Whether so many requests without a query are the writer's fault."""
    return len(answers) >= MANY and not any(one.query for one in answers)


@dataclass(frozen=True)
class _Answer:
    written: Written
    writer_worked: bool
    """False if nothing came of the requests that were sent together with this one."""


def _settled(answers: Sequence[_Answer], works: bool) -> Written | None:
    """What came of a request; None if it has to be asked again.

    Args:
        answers: to this request, from all runs.
        works: whether the writer has written any query of the collection; else it is at fault.
    """
    useful = [one.written for one in answers if one.written.query or (works and one.writer_worked)]
    if not useful:
        return None
    last = max(useful, key=lambda one: bool(one.query))
    return replace(last, tokens=sum(one.written.tokens for one in answers))
