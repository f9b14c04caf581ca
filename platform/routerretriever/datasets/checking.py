"""List what is wrong with a BEIR folder, with file and line, by kind.

An error is what reading refuses; a collection can live with a warning. Both come from the same readers, so
what passes here can be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routerretriever.datasets.contents import SPLITS, Contents, read_contents
from routerretriever.datasets.files import require_folder
from routerretriever.datasets.issues import Issue, KindCount, Notes
from routerretriever.datasets.settings import DomainSettings
from routerretriever.errors import DatasetError


@dataclass(frozen=True)
class CheckReport:
    """What a check found."""

    folder: Path
    kinds: tuple[KindCount, ...]
    """Errors first, then in the order of reading."""
    documents: int
    queries: int
    judgements: dict[str, int]
    """Split -> judged pairs, for the splits that have a file."""
    equal_queries: dict[str, int]
    """"test in train" and so on -> queries whose text is a query of the other split's too."""

    @property
    def issues(self) -> list[Issue]:
        """All that are listed."""
        return [issue for kind in self.kinds for issue in kind.first]

    @property
    def errors(self) -> int:
        """All of them, listed or not."""
        return self._number("error")

    @property
    def warnings(self) -> int:
        """All of them, listed or not."""
        return self._number("warning")

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings pass."""
        return self.errors == 0

    def _number(self, severity: str) -> int:
        return sum(each.count for each in self.kinds if each.kind.severity == severity)

    def as_json(self) -> dict[str, Any]:
        """The report for programs."""
        return {
            "folder": str(self.folder),
            "ok": self.ok,
            "errors": self.errors,
            "warnings": self.warnings,
            "documents": self.documents,
            "queries": self.queries,
            "judgements": self.judgements,
            "equal_queries": self.equal_queries,
            "issues": [
                {
                    "kind": each.kind.name,
                    "severity": each.kind.severity,
                    "count": each.count,
                    "meaning": each.kind.meaning,
                    "remedy": each.kind.remedy,
                    "first": [
                        {"file": relative(self.folder, issue), "line": issue.line, "message": issue.message}
                        for issue in each.first
                    ],
                }
                for each in self.kinds
            ],
        }


def check_collection(
    folder: Path, limit: int | None = None, settings: DomainSettings | None = None
) -> CheckReport:
    """Read a whole collection and list what is wrong.

    Args:
        folder: the BEIR folder.
        limit: list at most this many issues of a kind; the others are only counted.
        settings: how the collection is to be read.

    Raises:
        DatasetError: there is no such folder.
    """
    require_folder(folder)
    notes = Notes(limit)
    try:
        contents = read_contents(folder, settings or DomainSettings(path=""), SPLITS, notes, whole=True)
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be read ({error.strerror}); mend its permissions") from error
    return check_report(folder, notes, contents)


def check_report(folder: Path, notes: Notes, contents: Contents) -> CheckReport:
    """A report of what was read with ``notes``."""
    return CheckReport(
        folder=folder,
        kinds=notes.kinds(),
        documents=contents.survey.documents,
        queries=len(contents.query_lines),
        judgements={split: len(file) for split, file in contents.files.items()},
        equal_queries={f"{one} in {other}": count for (one, other), count in contents.equal_queries.items()},
    )


def relative(folder: Path, issue: Issue) -> str:
    """An issue's file, relative to the collection's folder."""
    return issue.path.relative_to(folder).as_posix() if issue.path.is_relative_to(folder) else str(issue.path)
