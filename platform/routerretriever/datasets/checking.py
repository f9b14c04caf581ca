"""List every defect of a BEIR folder, with file and line.

An error is what reading would refuse, or what would make a result wrong; a collection can live with a
warning. Only ids and judgements are held in memory, so a large corpus can be checked too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from routerretriever.datasets.collection import SPLITS
from routerretriever.datasets.reading import (
    DOCUMENT_TEXTS,
    QUERY_TEXTS,
    find_file,
    read_judgements,
    read_objects,
    record_flaws,
)
from routerretriever.errors import DatasetError

Severity = Literal["error", "warning"]


class Defect(NamedTuple):
    """One thing that is wrong; ``file`` is relative to the collection's folder."""

    severity: Severity
    file: str
    line: int | None
    message: str


@dataclass(frozen=True)
class CheckReport:
    """What a check found."""

    defects: tuple[Defect, ...]
    """In the order of reading; at most as many as the check's limit."""
    errors: int
    """All of them, listed or not; so are the warnings."""
    warnings: int
    documents: int
    """Different ids in the corpus."""
    queries: int
    judgements: dict[str, int]
    """Split -> lines that hold a judgement, for the splits that have a file."""

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings pass."""
        return self.errors == 0


def check_collection(folder: Path, limit: int | None = None) -> CheckReport:
    """Read a whole collection and list its defects.

    Args:
        folder: the BEIR folder.
        limit: list at most this many defects; the others are only counted.

    Raises:
        DatasetError: there is no such folder.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; name one that holds corpus.jsonl and queries.jsonl")
    return _Check(folder, limit).run()


class _Check:
    def __init__(self, folder: Path, limit: int | None) -> None:
        self.folder = folder
        self.limit = limit
        self.defects: list[Defect] = []
        self.counts: dict[Severity, int] = {"error": 0, "warning": 0}
        self.judged_at: dict[str, tuple[Path, int]] = {}
        """Query -> where it was judged first."""
        self.relevant: dict[str, set[str]] = {}
        """Split -> queries with a relevant document."""

    def run(self) -> CheckReport:
        documents = self.records("corpus.jsonl", DOCUMENT_TEXTS)
        queries = self.records("queries.jsonl", QUERY_TEXTS)
        judgements = {}
        for split in SPLITS:
            if path := find_file(self.folder, f"qrels/{split}.tsv"):
                judgements[split] = self.qrels(split, path, documents, queries)
        self.splits()
        self.unused(queries)
        return CheckReport(
            defects=tuple(self.defects),
            errors=self.counts["error"],
            warnings=self.counts["warning"],
            documents=len(documents),
            queries=len(queries),
            judgements=judgements,
        )

    def note(self, severity: Severity, path: Path, line: int | None, message: str) -> None:
        self.counts[severity] += 1
        if self.limit is None or len(self.defects) < self.limit:
            file = path.relative_to(self.folder).as_posix()
            self.defects.append(Defect(severity, file, line, message))

    def error(self, path: Path, line: int | None, message: str) -> None:
        self.note("error", path, line, message)

    def warning(self, path: Path, line: int | None, message: str) -> None:
        self.note("warning", path, line, message)

    def records(self, name: str, texts: tuple[str, ...]) -> dict[str, int]:
        """Id -> line of a file's documents or queries."""
        path = find_file(self.folder, name)
        if path is None:
            self.error(self.folder / name, None, f"no such file, nor {name}.gz; a BEIR folder needs it")
            return {}
        lines: dict[str, int] = {}
        for line, record in read_objects(path, self.error):
            flaws = list(record_flaws(record, texts))
            for flaw in flaws:
                self.error(path, line, flaw)
            if not flaws and not any(record.get(field, "").strip() for field in texts):
                # BEIR's own corpora have documents without text; a query without text asks nothing.
                empty = self.warning if texts == DOCUMENT_TEXTS else self.error
                empty(path, line, f"empty {' and '.join(texts)}; fill in or remove {record['_id']!r}")
            identifier = record.get("_id")
            if not isinstance(identifier, str) or not identifier:
                continue
            if lines.setdefault(identifier, line) != line:
                first = lines[identifier]
                self.error(path, line, f"id {identifier!r} is line {first}'s already; rename or remove one")
        if not lines:
            self.error(path, None, "no usable line; write one JSON object a line")
        return lines

    def qrels(self, split: str, path: Path, documents: dict[str, int], queries: dict[str, int]) -> int:
        """Check one split's judgements and count them."""
        count = 0
        first_lines: dict[tuple[str, str], int] = {}
        relevant = self.relevant[split] = set()
        for line, (query, document, grade) in read_judgements(path, self.error):
            count += 1
            # Without any id the file itself was the defect.
            if queries and query not in queries:
                self.error(path, line, f"query {query!r} is not in queries.jsonl; add it or cut this line")
            if documents and document not in documents:
                self.error(path, line, f"document {document!r} is not in the corpus; add it or cut this line")
            first = first_lines.setdefault((query, document), line)
            if first != line:
                self.error(path, line, f"{query!r} and {document!r} are judged in line {first}; keep one")
            if grade > 0:
                relevant.add(query)
            other, other_line = self.judged_at.setdefault(query, (path, line))
            if other != path:
                place = f"{other.relative_to(self.folder).as_posix()}, line {other_line}"
                self.error(path, line, f"query {query!r} is in two splits, see {place}; keep it in one")
                self.judged_at[query] = (path, line)  # once per query and split
        if not relevant:
            self.error(path, None, "no query with a relevant document; add lines with a score above 0")
        return count

    def splits(self) -> None:
        """Note the splits that have no file."""
        train, dev, test = (self.folder / "qrels" / f"{split}.tsv" for split in SPLITS)
        if "train" not in self.relevant:
            self.warning(train, None, "no train split; set expert: false, for no expert can be trained")
        if "dev" not in self.relevant:
            if "train" not in self.relevant:
                self.warning(dev, None, "no dev split, and no train split to hold it out of")
            elif len(self.relevant["train"]) == 1:
                self.error(dev, None, "no dev split, and train is too small to hold it out of; add queries")
            else:
                self.warning(dev, None, "no dev split; a tenth of the train queries is held out for it")
        if "test" not in self.relevant:
            self.warning(test, None, "no test split; this collection cannot be evaluated")

    def unused(self, queries: dict[str, int]) -> None:
        """Note the queries that no split uses."""
        path = find_file(self.folder, "queries.jsonl")
        if path is None or not self.relevant:
            return
        used = set().union(*self.relevant.values())
        for query, line in queries.items():
            if query not in used:
                self.warning(path, line, f"query {query!r} has no judgement above 0; it is never used")
