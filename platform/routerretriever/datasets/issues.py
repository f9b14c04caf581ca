"""What can be wrong with a collection: every kind once, with what it means and what to do.

Reading raises the first error it meets; ``checking`` collects all; ``preflight`` raises before a run starts.
All three are told of the same kinds by the same readers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

from routerretriever.errors import DatasetError

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Kind:
    """One kind of issue."""

    name: str
    severity: Severity
    meaning: str
    remedy: str


class Issue(NamedTuple):
    """One thing that is wrong, and where."""

    kind: Kind
    path: Path
    line: int | None
    message: str

    @property
    def place(self) -> str:
        """File and line, as editors read them."""
        return f"{self.path}" if self.line is None else f"{self.path}:{self.line}"


Report = Callable[[Issue], None]
"""Told of an issue; it may raise."""


def raise_error(issue: Issue) -> None:
    """A ``Report`` that stops at the first error and lets warnings pass."""
    if issue.kind.severity == "error":
        refuse(issue)


def refuse(issue: Issue) -> NoReturn:
    """Raise an issue as an error."""
    raise DatasetError(f"{issue.place}: {issue.message}")


@dataclass(frozen=True)
class KindCount:
    """A kind of issue, how often it was met, and the first of its issues."""

    kind: Kind
    count: int
    first: tuple[Issue, ...]

    @property
    def more(self) -> int:
        """Issues that are counted and not listed."""
        return self.count - len(self.first)


class Notes:
    """A ``Report`` that takes notes: counts every kind, keeps the first of each."""

    def __init__(self, limit: int | None = 5) -> None:
        self.limit = limit
        self.counts: Counter[Kind] = Counter()
        self.first: dict[Kind, list[Issue]] = {}
        self.first_errors: dict[Path, Issue] = {}
        """File -> the first error in it."""
        self.error_counts: Counter[Path] = Counter()

    def __call__(self, issue: Issue) -> None:
        """Take a note."""
        self.counts[issue.kind] += 1
        kept = self.first.setdefault(issue.kind, [])
        if self.limit is None or len(kept) < self.limit:
            kept.append(issue)
        if issue.kind.severity == "error":
            self.error_counts[issue.path] += 1
            self.first_errors.setdefault(issue.path, issue)

    def kinds(self) -> tuple[KindCount, ...]:
        """What was met, errors first."""
        found = [KindCount(kind, count, tuple(self.first[kind])) for kind, count in self.counts.items()]
        return tuple(sorted(found, key=lambda each: each.kind.severity))

    def raise_first_error(self, folder: Path, ignored: set[Path]) -> None:
        """Raise the first error, if there is one in a file that counts."""
        errors = [issue for path, issue in self.first_errors.items() if path not in ignored]
        if errors:
            number = sum(count for path, count in self.error_counts.items() if path not in ignored)
            others = f" ({number} errors; `routerretriever datasets check {folder}` lists them)"
            refuse(errors[0]._replace(message=errors[0].message + (others if number > 1 else "")))


def _error(name: str, meaning: str, remedy: str) -> Kind:
    return Kind(name, "error", meaning, remedy)


def _warning(name: str, meaning: str, remedy: str) -> Kind:
    return Kind(name, "warning", meaning, remedy)


UNREADABLE = _error(
    "unreadable", "a file cannot be read to its end", "download or compress it again, or mend its permissions"
)
ENCODING = _error("encoding", "bytes that are not UTF-8", "save the file as UTF-8")
NOT_JSON = _error("not-json", "a line that is not one JSON object", "write one JSON object a line")
FIELDS = _error(
    "fields", "a field is missing or not text", 'write "_id" and "text" as strings; "title" may be left out'
)
NO_FILE = _error(
    "no-file", "a file that every collection needs is missing", "add it, or import what you have"
)
TWO_FILES = _error("two-files", "the same file twice, with different content", "remove one of them")
NO_LINE = _error("no-line", "a file without a usable line", "fill it")
SAME_ID = _error("same-id", "two documents or two queries share an id", "rename or remove one of each pair")
NO_TEXT_QUERY = _error("empty-query", "a query without text asks nothing", "fill it in or remove it")
HEADER = _error(
    "header", "a qrels file without a header: readers skip its first line", "write query-id, corpus-id, score"
)
JUDGEMENT = _error(
    "judgement", "a line that is not a judgement", "write query id, document id and grade, separated by tabs"
)
TWO_GRADES = _error("two-grades", "a pair that is judged twice, differently", "keep one of the lines")
NO_QUERY = _error("no-query", "a judged query that does not exist", "add the query or cut its judgements")
NO_DOCUMENTS = _error(
    "no-documents",
    "more than one in ten judged documents does not exist",
    "mend the ids, or add the documents",
)
TWO_SPLITS = _error("two-splits", "a query that is in two splits: what is learnt is tested", "keep it in one")
EMPTY_SPLIT = _error("empty-split", "a split in which nothing is relevant", "add lines with a grade above 0")
NO_DEV = _error("no-dev", "no dev split, and train is too small to hold it out of", "add queries or dev.tsv")
NO_SPLITS = _error("no-splits", "no judgements, so nothing to train on or to measure", "add qrels/test.tsv")
LEAK_REFUSED = _error(
    "equal-queries", "the same question in two splits", "keep one, or set equal_texts: warn"
)

NO_TEXT_DOCUMENT = _warning("empty-document", "a document without text is never found", "remove it")
SURROGATE = _warning(
    "lone-surrogate",
    "half a character, as cutting text in UTF-16 leaves it; read as U+FFFD",
    "write it again",
)
INTEGER_ID = _warning("integer-id", "ids that are numbers; read as text", "put them in quotes")
SAME_JUDGEMENT = _warning(
    "same-judgement", "a pair that is judged twice, alike; counted once", "cut one line"
)
NO_DOCUMENT = _warning(
    "no-document",
    "a judged document that does not exist; left out in training, counted as not found in test, as BEIR does",
    "add the document or cut the line",
)
ONLY_ZERO = _warning(
    "only-zero",
    "queries with judgements of 0 only; in test they count 0, as BEIR does, elsewhere they are left out",
    "judge a relevant document, or cut them",
)
UNUSED = _warning("unused-query", "queries without a judgement; never used", "judge or remove them")
NO_SPLIT = _warning("no-split", "a split that has no file", "nothing, if that is what you want")
OTHER_NAME = _warning("other-name", "a split under another common name; read all the same", "nothing")
UNREAD_SPLIT = _warning(
    "unread-split", "a judgement file that is not read", "rename it, or name it as test_split"
)
LEAK = _warning(
    "equal-queries",
    "the same question (case, spaces and Unicode forms aside) in two splits: figures come out too high",
    "write the collection anew with `datasets split`, or cut one",
)
SHARED_SOURCE = _warning(
    "shared-source",
    "a train query was written about a document that a dev or test query asks for: figures come out too high",
    "cut these train queries, or remove the dev and test files and hold them out with `datasets split`",
)
COPY = _warning(
    "copies", "documents with equal text: which is found first is chance", "keep one, or set copies: alike"
)
SAME_ID_KEPT = _warning(
    "query-document-id",
    "a document that only shares the query's id; it stays in the results unless ignore_identical_ids is true",
    "nothing, or give documents other ids",
)
SAME_ID_LEFT_OUT = _warning(
    "query-is-document",
    "a document that has the query's id and is left out of its results, though it is judged relevant",
    "set ignore_identical_ids: false if it should be found",
)
