"""What a file of data is, told by its columns and first line: its role in a collection."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from routerretriever.datasets.files import read_lines
from routerretriever.datasets.issues import raise_error
from routerretriever.datasets.tables import TABLES, columns_of, suffix
from routerretriever.errors import DatasetError

Role = Literal[
    "corpus",
    "queries",
    "judgements",
    "pairs",
    "questions",
    "topics",
    "trec judgements",
    "numbered texts",
    "text",
]
"""``numbered texts`` are lines of id, tab, text (MS MARCO); ``questions`` is SQuAD's nesting."""

TEXT_FILES = (".md", ".txt", ".html", ".htm", ".pdf", ".docx", ".rst")
IDS = ("_id", "id", "docid", "doc_id", "pid", "qid", "query_id")
TEXTS = ("text", "contents", "content", "passage", "query", "question")
QUERIES = ("query", "question", "anchor", "sentence1", "prompt", "input")
POSITIVES = (
    "positive",
    "pos",
    "answer",
    "answers",
    "document",
    "passage",
    "context",
    "sentence2",
    "response",
    "output",
)
NEGATIVES = ("negative", "neg", "negatives", "hard_negative", "hard_negatives")
QUERY_IDS = ("query-id", "query_id", "qid", "query-ids")
DOCUMENT_IDS = ("corpus-id", "corpus_id", "doc-id", "doc_id", "docid", "pid", "document-id", "document_id")
GRADES = ("score", "relevance", "label", "grade", "rel")
_SPLITS = {"train": "train", "dev": "dev", "validation": "dev", "valid": "dev", "val": "dev", "test": "test"}


@dataclass(frozen=True)
class Source:
    """One file and what it is taken for."""

    path: Path
    role: Role
    columns: tuple[str, ...]
    split: str | None
    """Named by the file, if it is."""

    def column(self, names: tuple[str, ...]) -> str | None:
        """The first of some names that the file has, whatever its case."""
        lower = {column.lower(): column for column in self.columns}
        return next((lower[name] for name in names if name in lower), None)


def find_sources(place: Path) -> list[Source]:
    """All files of a folder (or one file) with their roles.

    Raises:
        DatasetError: nothing is there that can be read.
    """
    if not place.exists():
        raise DatasetError(f"{place}: no such file or folder")
    if place.is_dir():
        paths = [path for path in sorted(place.rglob("*")) if path.is_file() and _is_visible(path, place)]
    else:
        paths = [place]
    sources = [source for path in paths if (source := recognise(path, place))]
    if any(source.role != "text" for source in sources):
        return [source for source in sources if source.role != "text"]  # a README beside the data
    if not sources:
        known = ", ".join((*TABLES, *TEXT_FILES))
        raise DatasetError(f"{place}: nothing that can be imported; known are {known}, TREC topics and qrels")
    return sources


def recognise(path: Path, root: Path) -> Source | None:
    """What a file is; None where it is nothing that is known.

    Raises:
        DatasetError: a table that cannot be read, or one whose columns mean nothing.
    """
    named = path.relative_to(root).as_posix().lower() if path != root else path.name.lower()
    split = _split_in(named)
    first = _first_line(path)
    if first.lstrip().lower().startswith("<top>"):
        return Source(path, "topics", (), split)
    if suffix(path) != ".csv" and re.fullmatch(r"\S+\s+\S+\s+\S+\s+[+-]?\d+", first.strip()):
        return Source(path, "trec judgements", (), split)
    if suffix(path) == ".tsv" and len(first.split("\t")) == 2 and first.split("\t")[0].strip().isdigit():
        return Source(path, "numbered texts", ("queries" if "quer" in named else "corpus",), split)
    if suffix(path) in TABLES:
        return _table(path, named, split)
    return Source(path, "text", (), None) if suffix(path) in TEXT_FILES else None


def _table(path: Path, named: str, split: str | None) -> Source | None:
    if path.name in (
        "provenance.json",
        "dataset_info.json",
        "dataset_infos.json",
        "state.json",
        "package.json",
    ):
        return None
    columns = tuple(columns_of(path))
    if not columns:
        return None
    bare = Source(path, "pairs", columns, split)
    if bare.column(QUERY_IDS) and bare.column(DOCUMENT_IDS) and not bare.column(("text",)):
        return Source(path, "judgements", columns, split)
    if bare.column(("paragraphs",)):
        return Source(path, "questions", columns, split)
    if "quer" in named and bare.column(IDS) and bare.column(TEXTS) and not bare.column(POSITIVES):
        return Source(path, "queries", columns, None)
    if bare.column(QUERIES) and bare.column(POSITIVES):
        return bare
    if bare.column(TEXTS) and (bare.column(IDS) or "corpus" in named):
        return Source(path, "corpus", columns, None)
    raise DatasetError(
        f"{path}: columns {', '.join(columns)[:200]} mean nothing here; name them query and positive (and "
        "negative), or _id and text, or query-id, corpus-id and score"
    )


def _split_in(named: str) -> str | None:
    words = re.split(r"[^a-z]+", named)
    return next((_SPLITS[word] for word in reversed(words) if word in _SPLITS), None)


def _first_line(path: Path) -> str:
    if suffix(path) in (".parquet", ".pdf", ".docx"):
        return ""
    lines: Iterator[tuple[int, bytes]] = read_lines(path, raise_error)
    return next(lines, (1, b""))[1].decode(errors="replace")


def _is_visible(path: Path, root: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(root).parts)
