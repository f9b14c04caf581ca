"""List every defect of a BEIR folder, with file and line.

An error is what reading would refuse, or what would make a result wrong. A warning is what a collection
can live with. Only ids are held in memory, so that a large corpus can be checked too.
"""

from __future__ import annotations

from collections.abc import Collection as Ids
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from routerretriever.datasets.collection import SPLITS
from routerretriever.datasets.reading import (
    DOCUMENT_TEXTS,
    QUERY_TEXTS,
    DatasetError,
    find_file,
    read_judgements,
    read_objects,
    record_flaws,
)

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
    """In the order of the files; at most as many as the check's limit."""
    errors: int
    """All of them, listed or not."""
    warnings: int
    documents: int
    queries: int
    judgements: dict[str, int]
    """Split -> judgements, for the splits that have a file."""

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
        raise DatasetError(f"{folder}: no such folder; name a folder that holds a corpus.jsonl")
    notes = _Notes(folder, limit)
    documents = _check_records(notes, "corpus.jsonl", DOCUMENT_TEXTS)
    queries = _check_records(notes, "queries.jsonl", QUERY_TEXTS)
    paths = {split: path for split in SPLITS if (path := find_file(folder, f"qrels/{split}.tsv"))}
    judged_in: dict[str, tuple[str, int]] = {}
    relevant: dict[str, set[str]] = {}
    judgements = {}
    for split, path in paths.items():
        judgements[split], relevant[split] = _check_qrels(notes, path, documents, queries, judged_in)
    _check_splits(notes, paths, relevant)
    if paths and queries:
        path = find_file(folder, "queries.jsonl")
        for query in queries.keys() - set().union(*relevant.values()):
            notes.warning(path, queries[query], f"query {query!r} has no relevant document; it is never used")
    return CheckReport(
        tuple(notes.defects), notes.errors, notes.warnings, len(documents or ()), len(queries or ()), judgements
    )
