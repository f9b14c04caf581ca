"""What a file of data is, told by its columns and first line: its role in a collection."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from routerretriever.datasets import trec
from routerretriever.datasets.files import TABLES, TEXT_FILES, ZIPPED_TEXTS, known_split, read_lines
from routerretriever.datasets.issues import raise_error
from routerretriever.datasets.tables import columns_of, suffix
from routerretriever.errors import DatasetError

Role = Literal[
    "corpus",
    "queries",
    "judgements",
    "pairs",
    "questions",
    "question set",
    "topics",
    "trec documents",
    "trec judgements",
    "numbered texts",
    "text",
]
"""``numbered texts`` are lines of id, tab, text (MS MARCO); ``questions`` is SQuAD's nesting; a
``question set`` holds queries, corpus and relevant documents as objects by id (LlamaIndex)."""

IDS = (
    "_id",
    "id",
    "docid",
    "doc_id",
    "docno",
    "pid",
    "passage_id",
    "document_id",
    "qid",
    "query_id",
    "question_id",
)
TEXTS = (
    "text", "contents", "content", "passage", "passage_text", "document", "body", "abstract", "chunk",
    "article", "paragraph_text",
)  # fmt: skip
QUERIES = (
    "query", "question", "anchor", "sentence1", "text1", "question1", "query_text", "claim", "user_input",
    "instruction", "prompt", "input",
)  # fmt: skip
POSITIVES = (
    "positive", "pos", "positives", "positive_passages", "positive_ctxs", "positive_document",
    "positive_documents", "document", "passage", "context", "reference_contexts", "document_text",
    "passage_text", "sentence2", "text2", "question2", "evidence", "answer", "answers", "response", "output",
    "completion", "reference",
)  # fmt: skip
"""The best first: a context is what a search should find, an answer may be two words of it."""
SUPPORTED = "paragraphs"
"""Beside a question a list of documents that say whether it needs them; SQuAD calls its contexts so too."""
GRADED = ("passages", "documents", "candidates", SUPPORTED)
"""Lists of documents that hold a grade each."""
NEGATIVES = (
    "negative", "neg", "negatives", "hard_negative", "hard_negatives", "negative_passages", "negative_ctxs",
    "hard_negative_ctxs", "negative_document", "negative_documents",
)  # fmt: skip
QUERY_IDS = ("query_id", "qid", "query_ids", "question_id", "topic_id")
DOCUMENT_IDS = ("corpus_id", "doc_id", "docid", "pid", "document_id", "passage_id")
RELEVANT_IDS = (
    "relevant_docs", "relevant_doc_ids", "relevant_ids", "relevant_documents", "gold_ids", "gold_doc_ids",
    "positive_ids", "positive_doc_ids",
)  # fmt: skip
"""Lists of document ids beside a query."""
NEGATIVE_IDS = ("negative_ids", "negative_doc_ids", "hard_negative_ids", "hard_negative_doc_ids")
GRADES = (
    "score", "relevance", "label", "labels", "grade", "rel", "relevant", "is_relevant", "relevance_score",
    "is_duplicate",
)  # fmt: skip
GRADES_INSIDE = ("is_selected", "label", "relevance", "grade", "is_relevant", "is_supporting")
"""Of a document in a list; a score there is a retriever's."""
_JUDGED_BY_NAME = ("query", "topic", "question"), ("document", "doc", "passage")
_SET = {"queries", "corpus", "relevant_docs"}
_BESIDE = {
    "provenance.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json",
    "package.json",
}  # fmt: skip
_ARCHIVES = (".zip", ".tar", ".tgz", ".rar", ".7z", ".bz2", ".xz", ".tbz2", ".txz")


def plain(name: str) -> str:
    """A column's name in small letters, its words joined by ``_``."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def without_number(name: str) -> str:
    """A column's plain name without the number of ``negative_1``."""
    return re.sub(r"_?\d+$", "", plain(name))


def columns_in(available: Iterable[str], names: Iterable[str]) -> list[str]:
    """All of some names that are available, in the order of the names, whatever their case and spacing."""
    found = {plain(name): name for name in reversed(list(available))}
    found |= {name.lower(): name for name in available}
    there = (found.get(name, found.get(plain(name))) for name in names)
    return list(dict.fromkeys(name for name in there if name is not None))


def first_column(available: Iterable[str], names: Iterable[str]) -> str | None:
    """The first of some names that is available."""
    return next(iter(columns_in(available, names)), None)


def answers_in(available: Iterable[str]) -> list[list[str]]:
    """Columns that may answer a query, the best first; ``positive_1`` and ``positive_2`` do so together."""
    columns = list(available)
    numbered: dict[str, list[str]] = {}
    for name in columns:
        if plain(name).startswith("pos"):
            numbered.setdefault(without_number(name), []).append(name)
    return [found for name in POSITIVES if (found := numbered.get(name) or columns_in(columns, (name,)))]


class UnknownColumns(DatasetError):
    """A table whose columns mean nothing here."""

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        super().__init__(
            f"{path}: columns {', '.join(columns)[:200]} mean nothing here; name them in the first "
            "line or in each object: query and positive (and negative), or _id and text, or query-id, "
            "corpus-id and score"
        )


@dataclass(frozen=True)
class Source:
    """One file and what it is taken for."""

    path: Path
    role: Role
    columns: tuple[str, ...]
    split: str | None
    """Named by the file, if it is."""

    def column(self, names: Iterable[str]) -> str | None:
        """The first of some names that the file has, whatever its case."""
        return first_column(self.columns, names)

    def columns_in(self, names: Iterable[str]) -> list[str]:
        """All of some names that the file has, in the order of the names."""
        return columns_in(self.columns, names)


@dataclass(frozen=True)
class Found:
    """What lies in a folder."""

    sources: list[Source]
    unknown: list[Path]
    """Tables whose columns mean nothing, or that cannot be read beside files of text."""
    beside: list[Path]
    """Other files: not read."""


def find_sources(place: Path) -> Found:
    """All files of a folder (or one file) with their roles.

    Raises:
        DatasetError: nothing is there that can be read, or a table among tables is broken.
    """
    if not place.exists():
        raise DatasetError(f"{place}: no such file or folder")
    sources, beside, refused = [], [], {}
    for path in _files_below(place) if place.is_dir() else [place]:
        try:
            source = recognise(path, place) if path.is_file() else None
        except DatasetError as error:
            refused[path] = error
        else:
            sources += [source] if source else []
            beside += [] if source or path.name in _BESIDE else [path]
    tables = [source for source in sources if source.role != "text"]
    broken = [error for error in refused.values() if not isinstance(error, UnknownColumns)]
    if broken and (tables or not sources):
        raise all_of(broken)
    if tables:  # what lies beside the data: a README
        beside += [source.path for source in sources if source.role == "text"]
        return Found(tables, list(refused), sorted(beside))
    if sources:
        return Found(sources, list(refused), beside)
    raise next(iter(refused.values()), _nothing(place, beside))


def all_of(errors: list[DatasetError]) -> DatasetError:
    """The errors of several files as one: the first five, and how many more there are."""
    shown = "; ".join(map(str, errors[:5]))
    return DatasetError(shown + (f"; and {len(errors) - 5} more files" if len(errors) > 5 else ""))


def recognise(path: Path, root: Path) -> Source | None:
    """What a file is; None where it is nothing that is known.

    Raises:
        DatasetError: a table that cannot be read.
        UnknownColumns: one whose columns mean nothing.
    """
    named = path.relative_to(root).as_posix().lower() if path != root else path.name.lower()
    if suffix(path) in _ARCHIVES:
        return None
    split = _split_in(named)
    lines = _first_lines(path)
    if any(trec.TOPICS_START.match(line) for line in lines):
        return Source(path, "topics", (), split)
    if any(trec.DOCUMENT.match(line) for line in lines):
        return Source(path, "trec documents", (), None)
    if _are_judgements(lines[:3], path, named):
        return Source(path, "trec judgements", (), split)
    if suffix(path) == ".tsv" and (numbered := _numbered(path, named, lines, split)):
        return numbered
    if suffix(path) in TABLES:
        return _table(path, named, split)
    return Source(path, "text", (), None) if suffix(path) in TEXT_FILES else None


def _are_judgements(lines: list[str], path: Path, named: str) -> bool:
    """Whether lines are TREC's judgements, or their file's name says so and it is no table with a header."""
    if not lines or suffix(path) == ".csv":
        return False
    if all(trec.JUDGEMENT.fullmatch(line.strip()) for line in lines):
        return True
    if "qrel" not in named:
        return False
    short = all(trec.SHORT_JUDGEMENT.fullmatch(line.strip()) for line in lines)
    named_alone = "qrel" in path.name.lower() and suffix(path) not in {*TABLES, *TEXT_FILES} - {".txt"}
    return short or named_alone


def _numbered(path: Path, named: str, lines: list[str], split: str | None) -> Source | None:
    """Lines of id and text without a header: the id is a number, or the file's name says what it holds."""
    first = lines[0].split("\t") if lines else []
    if len(first) != 2 or columns_in(first, (*IDS, *TEXTS, *QUERIES, *POSITIVES)):
        return None
    asks = _asks(named)
    told = asks or re.search("collection|corpus|docs|documents|passages", named)
    if first[0].strip().isdigit() or (told and re.search(r"\d", first[0])):  # a header has no digit
        return Source(path, "numbered texts", ("queries" if asks else "corpus",), split)
    return None


def _table(path: Path, named: str, split: str | None) -> Source | None:
    columns = () if path.name in _BESIDE else tuple(columns_of(path))
    if not columns:
        return None
    role = _role(Source(path, "pairs", columns, split), named)
    if role is None:
        raise UnknownColumns(path, columns)
    return Source(path, role, columns, split if role != "corpus" else None)


def _role(table: Source, named: str) -> Role | None:
    """What a table holds, by its columns; its name decides where they leave a choice."""
    pairs = table.column(QUERIES) and (answers_in(table.columns) or table.column(GRADED))
    queries, documents = judged_columns(table, named)
    texts = pairs or table.column(("text",))
    if queries and documents and ("qrel" in named or not texts):
        return "judgements"
    if table.column(QUERIES) and table.column(DOCUMENT_IDS) and not (texts or _are_queries(table, named)):
        return "judgements"  # of queries by their texts
    if set(table.columns) >= _SET:
        return "question set"
    if table.column((SUPPORTED,)) and not table.column(QUERIES):
        return "questions"
    ids, asked = table.column(IDS), table.column(name for name in QUERIES if name != "instruction")
    if ids and _asks(named) and table.column(("text",)):
        return "queries"  # whatever answers lie beside the text
    if pairs:
        return "pairs"
    if ids and (asked or (_asks(named) and table.column((*TEXTS, "title")))):
        return "queries"
    if table.column(RELEVANT_IDS) and table.column(QUERIES):
        return "queries"
    if table.column(TEXTS) and (ids or "corpus" in named):
        return "corpus"
    return None


def _are_queries(table: Source, named: str) -> bool:
    """Whether a table of queries by its name has ids of its own for them."""
    return _asks(named) and table.column(("_id", "id")) is not None


def judged_columns(table: Source, named: str) -> tuple[str | None, str | None]:
    """The columns of a judgement's query id and document id; a qrels file may call them so."""
    queries, documents = _JUDGED_BY_NAME if "qrel" in named else ((), ())
    return table.column((*QUERY_IDS, *queries)), table.column((*DOCUMENT_IDS, *documents))


def _asks(named: str) -> bool:
    """Whether a file holds queries, by the last word of its path that tells."""
    words = re.findall("quer|topic|question|corpus|collection|docs|document|passage", named)
    return bool(words) and words[-1] in ("quer", "topic", "question")


def _nothing(place: Path, beside: list[Path]) -> DatasetError:
    known = ", ".join((*TABLES, *TEXT_FILES))
    found = ", ".join(described(Path(path.name)) for path in beside[:3]) + (" ..." if len(beside) > 3 else "")
    return DatasetError(
        f"{place}: nothing that can be imported (found {found or 'no file'}); known are {known}, "
        "TREC topics, documents and qrels"
    )


def described(path: Path) -> str:
    """The name of a file that cannot be read, and why, if that is known."""
    if suffix(path) in _ARCHIVES:
        return f"{path} (unpack it first)"
    return f"{path} (without a row)" if suffix(path) in TABLES else str(path)


def _split_in(named: str) -> str | None:
    words = re.split(r"[^a-z]+", re.sub(r"(hold|held)[-_ ]out", r"\1out", named))
    return next((split for word in reversed(words) if (split := known_split(word))), None)


def _first_lines(path: Path) -> list[str]:
    if suffix(path) in (".parquet", ".arrow", ".pdf", *ZIPPED_TEXTS):
        return []
    return [raw.decode(errors="replace") for _, raw in islice(read_lines(path, raise_error), 10)]


def _files_below(folder: Path) -> list[Path]:
    """The visible files of a folder, and links that are not followed: to folders, and to nothing.

    Raises:
        DatasetError: a folder in it may not be read.
    """

    def refuse(error: OSError) -> None:
        raise DatasetError(f"{error.filename}: cannot be read ({error.strerror}); mend its permissions")

    found: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if Path(place, name).is_symlink()]
        found += [Path(place, name) for name in (*links, *files) if not name.startswith(".")]
    return sorted(path for path in found if path.is_file() or path.is_symlink())
