"""One pass over a corpus, for all that judgements need to know of it.

Memory: 16 bytes a document, and what is judged. Candidates for equal ids and texts are found by hash and then
read again, so that nothing rests on a hash. A survey is kept as long as the files do not change.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from routerretriever.datasets.issues import NO_LINE, SAME_ID, Issue, Report
from routerretriever.datasets.reading import Record, read_records
from routerretriever.datasets.texts import normal_text


@dataclass
class Survey:
    """What a corpus holds, seen from the judgements."""

    documents: int = 0
    """Usable lines."""
    missing: set[str] = field(default_factory=set)
    """The wanted ids that are not there."""
    same_as_query: set[str] = field(default_factory=set)
    """Ids of queries whose document of the same id has their text too."""
    same_id_only: set[str] = field(default_factory=set)
    """Ids of queries whose document of the same id has another text."""
    copies: list[list[tuple[int, str]]] = field(default_factory=list)
    """Groups of documents with equal content: line and id, in the order of the file."""
    passages: dict[str, int] = field(default_factory=dict)
    """Wanted document -> number of its passages, where they are counted."""

    def copies_of(self) -> dict[str, list[str]]:
        """Document -> all documents with its content, itself among them; those of a group share one list."""
        groups = [[identifier for _, identifier in group] for group in self.copies]
        return {identifier: group for group in groups for identifier in group}


def survey_corpus(
    path: Path,
    wanted: set[str],
    queries: Mapping[str, str],
    report: Report,
    count_passages: Callable[[Record], int] | None = None,
) -> Survey:
    """Read a corpus once.

    Args:
        path: the corpus file.
        wanted: document ids to look up; those that are found are taken out of it.
        queries: query texts by id, to be compared with documents of the same id.
        report: told of every issue of a line, and of equal ids.
        count_passages: if given, asked for every wanted document.
    """
    survey = Survey(missing=wanted)
    lines, ids, contents = array("q"), array("q"), array("q")
    for line, record in read_records(path, report):
        lines.append(line)
        ids.append(hash(record.id))
        content = record.content
        contents.append(hash(content) if content else line)  # documents without text are no copies
        if record.id in wanted:
            wanted.remove(record.id)
            if count_passages:
                survey.passages[record.id] = count_passages(record)
        if record.id in queries:
            query = normal_text(queries[record.id])
            texts = {normal_text(text) for text in (record.text, record.title, content)}
            (survey.same_as_query if query in texts else survey.same_id_only).add(record.id)
    survey.documents = len(lines)
    if not lines:
        report(Issue(NO_LINE, path, None, "no usable line; write one JSON object a line"))
        return survey
    repeated = repeated_positions(ids) | repeated_positions(contents)
    if repeated:
        _compare_repeated(path, repeated, survey, report)
    return survey


def report_same_ids(
    path: Path, first_lines: dict[str, int], line: int, identifier: str, report: Report
) -> None:
    """Report an id that an earlier line has already."""
    first = first_lines.setdefault(identifier, line)
    if first != line:
        text = f"id {identifier!r} is line {first}'s already; rename or remove one"
        report(Issue(SAME_ID, path, line, text))


def repeated_positions(hashes: array[int]) -> set[int]:
    """Positions of the values that come more than once."""
    values = np.frombuffer(hashes, dtype=np.int64)
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    same = np.zeros(len(values), dtype=bool)
    same[1:] = ordered[1:] == ordered[:-1]
    same[:-1] |= ordered[1:] == ordered[:-1]
    return set(order[same].tolist())


def _compare_repeated(path: Path, positions: set[int], survey: Survey, report: Report) -> None:
    first_lines: dict[str, int] = {}
    groups: dict[str, list[tuple[int, str]]] = {}
    for position, (line, record) in enumerate(_silently(path)):
        if position in positions:
            new = record.id not in first_lines
            report_same_ids(path, first_lines, line, record.id, report)
            if new and record.content:
                groups.setdefault(record.content, []).append((line, record.id))
    survey.copies = [group for group in groups.values() if len(group) > 1]


def _silently(path: Path) -> Iterator[tuple[int, Record]]:
    return read_records(path, lambda _: None)
