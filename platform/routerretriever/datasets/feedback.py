"""What users clicked and marked: Parquet files in storage, and the judgements that they amount to.

Every report is a file of its own below ``feedback/``, on disk before it is answered. A report that a client
sent twice has the same id and counts once.

Reports may be read, forgotten and compacted at once, by several processes. What is forgotten is listed below
``feedback/forgotten`` before it is removed: a compaction that has read it may write it once more.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as arrow
import pyarrow.parquet as parquet

from routerretriever.artifacts.filesystem import FileSystem
from routerretriever.datasets.texts import normal_text

_FOLDER = "feedback"
_FORGOTTEN = f"{_FOLDER}/forgotten"
_LONGEST_COMPACTION = 86_400.0
"""Seconds for which a list of forgotten reports is kept."""
_ROUNDING = 1e-9
"""Five times a fifth may add up to a little less than one."""
_LIST = arrow.list_(arrow.string())
_SCHEMA = arrow.schema(
    [
        ("id", arrow.string()),
        ("time", arrow.float64()),
        ("client", arrow.string()),
        ("user", arrow.string()),
        ("collection", arrow.string()),
        ("query", arrow.string()),
        ("shown", _LIST),
        ("clicked", _LIST),
        ("relevant", _LIST),
        ("not_relevant", _LIST),
        ("request", arrow.string()),
    ]
)


@dataclass(frozen=True)
class Feedback:
    """What one user did with the results of one query."""

    id: str
    time: float
    """Seconds since 1970, by the service's clock."""
    client: str
    """Who sent it: a token's name."""
    user: str
    collection: str
    query: str
    shown: tuple[str, ...]
    """Document ids, best first."""
    clicked: tuple[str, ...] = ()
    relevant: tuple[str, ...] = ()
    not_relevant: tuple[str, ...] = ()
    request: str = ""
    """Id of the search's request; files of earlier versions have none."""


class _Stamp(NamedTuple):
    """What tells a report from all others, its own repetitions among them."""

    client: str
    id: str
    time: float


class FeedbackLog:
    """The reports in a storage."""

    def __init__(self, files: FileSystem) -> None:
        self._files = files

    def append(self, report: Feedback) -> None:
        """Keep a report; it is on disk when this returns.

        Raises:
            StorageError: it could not be written.
        """
        self._write([report])

    def read(self, collection: str | None = None) -> list[Feedback]:
        """All reports, or those of a collection, the oldest first, each once."""
        reports = self._kept(self._read_all())
        return [one for one in reports if collection is None or one.collection == collection]

    def forget(self, user: str, of: Callable[[str], bool] = lambda _: True) -> int:
        """Delete what a user has reported; returns how many reports that were.

        Args:
            user: as the reports name them.
            of: which collections' reports; by default all.
        """
        files = self._read_all()
        reports = [one for reports in files.values() for one in reports]
        own = {_stamp(one) for one in reports if one.user == user and of(one.collection)}
        if new := own - self._forgotten():
            self._list_as_forgotten(new)
        if own:  # also those that an earlier attempt has listed, and not removed
            self._remove_forgotten(files)
        return len({(one.client, one.id) for one in own})

    def compact(self) -> None:
        """Put all reports into one file; those that come meanwhile stay in theirs."""
        before = self._read_all()
        if len(before) > 1:
            self._replace(before, self._kept(before))
        self._remove_forgotten(before)
        for name, content in self._forgotten_lists().items():
            if content["time"] < time.time() - _LONGEST_COMPACTION:
                self._files.remove(f"{_FORGOTTEN}/{name}")

    def _kept(self, files: Mapping[str, list[Feedback]]) -> list[Feedback]:
        """The reports of some files that nobody forgot, each once, the oldest first."""
        forgotten = self._forgotten()
        reports = [one for own in files.values() for one in own if _stamp(one) not in forgotten]
        found: dict[tuple[str, str], Feedback] = {}
        for one in sorted(reports, key=lambda one: (one.time, one.client, one.id)):
            found.setdefault((one.client, one.id), one)
        return list(found.values())

    def _list_as_forgotten(self, stamps: set[_Stamp]) -> None:
        content = json.dumps({"time": time.time(), "reports": sorted(stamps)})

        def write(path: Path) -> None:
            path.write_text(content, encoding="utf-8")

        self._files.put(f"{_FORGOTTEN}/{uuid.uuid4().hex}.json", write, lasting=True)

    def _remove_forgotten(self, files: Mapping[str, list[Feedback]]) -> None:
        """Write the files anew that hold forgotten reports, until there are none; some were read already."""
        while forgotten := self._forgotten():
            files = self._read_all(files)
            holding = [name for name, own in files.items() if any(_stamp(one) in forgotten for one in own)]
            if not holding:
                return
            reports = [one for name in holding for one in files[name]]
            self._replace(holding, [one for one in reports if _stamp(one) not in forgotten])

    def _replace(self, names: Iterable[str], reports: list[Feedback]) -> None:
        if reports:
            self._write(reports)
        for name in names:
            self._files.remove(f"{_FOLDER}/{name}")

    def _forgotten(self) -> set[_Stamp]:
        return {_Stamp(*one) for content in self._forgotten_lists().values() for one in content["reports"]}

    def _forgotten_lists(self) -> dict[str, Any]:
        files = self._files.read_folder(_FORGOTTEN)
        return {name: json.loads(content) for name, content in files.items() if name.endswith(".json")}

    def files(self) -> list[str]:
        """Names of the files that hold reports."""
        return [name for name in self._files.list_files(_FOLDER) if name.endswith(".parquet")]

    def _read_all(self, known: Mapping[str, list[Feedback]] | None = None) -> dict[str, list[Feedback]]:
        """The reports of every file, by its name. Those of known ones are taken: no file changes.

        Looks again until there is no file that is not read: what vanishes between listing and reading was put
        into another one. Compacted meanwhile, a report may be given twice.
        """
        found: dict[str, list[Feedback]] = {}
        known = known or {}
        while unread := [name for name in self.files() if name not in found]:
            found |= {name: known[name] if name in known else self._read(name) for name in unread}
        return found

    def _read(self, name: str) -> list[Feedback]:
        try:
            content = self._files.read(f"{_FOLDER}/{name}")
        except FileNotFoundError:
            return []
        # Not read_table, which is slower over a file of one row, and there is one for each report.
        return [_report(row) for row in parquet.ParquetFile(BytesIO(content)).read().to_pylist()]

    def _write(self, reports: list[Feedback]) -> None:
        table = arrow.Table.from_pylist([asdict(one) for one in reports], schema=_SCHEMA)

        name = f"{_FOLDER}/{uuid.uuid4().hex}.parquet"
        self._files.put(name, partial(parquet.write_table, table), lasting=True)


def _stamp(one: Feedback) -> _Stamp:
    return _Stamp(one.client, one.id, one.time)


def _report(row: dict[str, Any]) -> Feedback:
    values: dict[str, Any] = {key: tuple(one) if isinstance(one, list) else one for key, one in row.items()}
    return Feedback(**values)


@dataclass(frozen=True)
class Judged:
    """A query as several people asked it, and the grades of documents."""

    query: str
    grades: dict[str, int]


def judge(reports: Iterable[Feedback], discount: float, least: float, passed_over: float) -> list[Judged]:
    """Turn reports into graded judgements.

    A mark counts 1 for or against. A click counts the less, the higher the document stood: people look at the
    first result anyway, so a click at rank r counts ``1 - discount ** r``. If a user passed a document over
    to click one below it, ``passed_over`` counts against it ("click > skip above": Joachims et al., SIGIR
    2005); without that, stray clicks add up until whatever is shown often is relevant. A user counts once for
    a pair of query and document: by the last mark, else by the strongest click, else by a passing over. A
    document whose sum over users is ``least`` or more has grade 1; twice that has grade 2.

    Args:
        reports: what users did, the oldest first.
        discount: 0 takes every click at its full worth; towards 1, clicks at the top count little.
        least: what the users' votes for a document must add up to.
        passed_over: what a passing over counts; 0 takes no notice of it.

    Returns:
        Queries with at least one relevant document, by their first asking; case, spaces and encoding aside.
    """
    votes: dict[str, dict[str, dict[tuple[str, ...], _Vote]]] = {}
    texts: dict[str, str] = {}
    for report in reports:
        key = normal_text(report.query)
        texts.setdefault(key, report.query)
        for document, vote in _votes(report, discount, passed_over).items():
            own = votes.setdefault(key, {}).setdefault(document, {})
            # Who does not say who they are is somebody each time.
            user = (report.user,) if report.user else (report.client, report.id)
            if user not in own or vote.replaces(own[user]):
                own[user] = vote
    judged = []
    for key, text in texts.items():
        own_votes = votes.get(key, {}).items()
        sums = {document: sum(vote.worth for vote in own.values()) for document, own in own_votes}
        reached = {document: int(min(total / least + _ROUNDING, 2)) for document, total in sums.items()}
        if grades := {document: grade for document, grade in reached.items() if grade > 0}:
            judged.append(Judged(text, grades))
    return judged


class _Kind(IntEnum):
    """What says more of a document stands later."""

    PASSED_OVER = 0
    CLICK = 1
    MARK = 2


class _Vote(NamedTuple):
    kind: _Kind
    worth: float

    def replaces(self, before: _Vote) -> bool:
        """Whether it counts instead of an earlier one of the same user."""
        if self.kind is before.kind is _Kind.CLICK:
            return self.worth > before.worth
        return self.kind >= before.kind


def _votes(report: Feedback, discount: float, passed_over: float) -> dict[str, _Vote]:
    rank: dict[str, int] = {}
    for place, document in enumerate(report.shown, start=1):
        rank.setdefault(document, place)  # of one that was shown twice the first place was seen
    clicked = {document: rank[document] for document in report.clicked if document in rank}
    last = max(clicked.values(), default=0)
    votes = {document: _Vote(_Kind.PASSED_OVER, -passed_over) for document in report.shown[:last]}
    votes |= {document: _Vote(_Kind.CLICK, 1 - discount**place) for document, place in clicked.items()}
    votes |= dict.fromkeys(report.relevant, _Vote(_Kind.MARK, 1.0))
    return votes | dict.fromkeys(report.not_relevant, _Vote(_Kind.MARK, -1.0))
