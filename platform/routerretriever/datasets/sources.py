"""What a file of data is, told by its columns and first line: its role in a collection."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice
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
    "question set",
    "topics",
    "trec judgements",
    "numbered texts",
    "text",
]
"""``numbered texts`` are lines of id, tab, text (MS MARCO); ``questions`` is SQuAD's nesting; a
``question set`` holds queries, corpus and relevant documents as objects by id (LlamaIndex)."""

TEXT_FILES = (".md", ".txt", ".html", ".htm", ".pdf", ".docx", ".rst")
IDS = ("_id", "id", "docid", "doc_id", "pid", "qid", "query_id")
TEXTS = ("text", "contents", "content", "passage", "query", "question")
QUERIES = ("query", "question", "anchor", "sentence1", "prompt", "input")
POSITIVES = (
    "positive",
    "pos",
    "document",
    "passage",
    "context",
    "answer",
    "answers",
    "sentence2",
    "response",
    "output",
)
"""The best first: a context is what a search should find, an answer may be two words of it."""
NEGATIVES = ("negative", "neg", "negatives", "hard_negative", "hard_negatives")
QUERY_IDS = ("query-id", "query_id", "qid", "query-ids")
DOCUMENT_IDS = ("corpus-id", "corpus_id", "doc-id", "doc_id", "docid", "pid", "document-id", "document_id")
GRADES = ("score", "relevance", "label", "grade", "rel")
SPLITS = {"train": "train", "dev": "dev", "validation": "dev", "valid": "dev", "val": "dev", "test": "test"}
"""Names of splits, and what each is called here."""
_SET = {"queries", "corpus", "relevant_docs"}
_TREC = re.compile(r"\S+\s+Q?\d+\s+\S+\s+[+-]?\d+")


class UnknownColumns(DatasetError):
    """A table whose columns mean nothing here."""

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        super().__init__(
            f"{path}: columns {', '.join(columns)[:200]} mean nothing here; name them query and positive "
            "(and negative), or _id and text, or query-id, corpus-id and score"
        )
        self.path = path


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
        return next(iter(self.columns_in(names)), None)

    def columns_in(self, names: tuple[str, ...]) -> list[str]:
        """All of some names that the file has, in the order of the names."""
        lower = {column.lower(): column for column in self.columns}
        return [lower[name] for name in names if name in lower]


def find_sources(place: Path) -> tuple[list[Source], list[Path]]:
    """All files of a folder (or one file) with their roles, and the tables whose columns mean nothing.

    Raises:
        DatasetError: nothing is there that can be read.
    """
    if not place.exists():
        raise DatasetError(f"{place}: no such file or folder")
    if place.is_dir():
        paths = [path for path in sorted(place.rglob("*")) if path.is_file() and _is_visible(path, place)]
    else:
        paths = [place]
    sources, unknown = [], []
    for path in paths:
        try:
            source = recognise(path, place)
        except UnknownColumns as error:
            unknown.append(error)
        else:
            sources += [source] if source else []
    if any(source.role != "text" for source in sources):
        # What lies beside the data: a README, lists of candidates.
        return [source for source in sources if source.role != "text"], [error.path for error in unknown]
    if unknown:
        raise unknown[0]
    if not sources:
        known = ", ".join((*TABLES, *TEXT_FILES))
        raise DatasetError(f"{place}: nothing that can be imported; known are {known}, TREC topics and qrels")
    return sources, []


def recognise(path: Path, root: Path) -> Source | None:
    """What a file is; None where it is nothing that is known.

    Raises:
        DatasetError: a table that cannot be read.
        UnknownColumns: one whose columns mean nothing.
    """
    named = path.relative_to(root).as_posix().lower() if path != root else path.name.lower()
    split = _split_in(named)
    lines = _first_lines(path)
    first = lines[0] if lines else ""
    if any(re.match(r"\s*<(top|topic\s[^>]*)>", line, re.IGNORECASE) for line in lines):
        return Source(path, "topics", (), split)
    if suffix(path) != ".csv" and lines and all(_TREC.fullmatch(line.strip()) for line in lines):
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
    if set(columns) >= _SET:
        return Source(path, "question set", columns, split)
    if bare.column(("paragraphs",)):
        return Source(path, "questions", columns, split)
    asks = "quer" in named and bare.column(IDS)
    if asks and bare.column(("text",)):
        return Source(path, "queries", columns, None)  # whatever answers lie beside the text
    if bare.column(QUERIES) and bare.column(POSITIVES):
        return bare
    if asks and bare.column(TEXTS):
        return Source(path, "queries", columns, None)
    if bare.column(TEXTS) and (bare.column(IDS) or "corpus" in named):
        return Source(path, "corpus", columns, None)
    raise UnknownColumns(path, columns)


def _split_in(named: str) -> str | None:
    words = re.split(r"[^a-z]+", named)
    return next((SPLITS[word] for word in reversed(words) if word in SPLITS), None)


def _first_lines(path: Path) -> list[str]:
    if suffix(path) in (".parquet", ".pdf", ".docx"):
        return []
    return [raw.decode(errors="replace") for _, raw in islice(read_lines(path, raise_error), 3)]


def _is_visible(path: Path, root: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(root).parts)
