"""Retrieval collections as BEIR folders, read as streams.

A folder holds ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/{train,dev,test}.tsv``, each as it is or
gzipped (``corpus.jsonl.gz``). Reading stops at the first flaw; ``checking`` lists them all. Nothing here
knows about encoders, training or where a collection came from.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from routerretriever.datasets.reading import (
    DOCUMENT_TEXTS,
    QUERY_TEXTS,
    find_file,
    read_blocks,
    read_judgements,
    read_objects,
    record_flaws,
    require_file,
)
from routerretriever.datasets.splitting import hold_out
from routerretriever.errors import BadInput, DatasetError
from routerretriever.hashing import content_hash

SPLITS = ("train", "dev", "test")

DEV_FRACTION = 0.1
"""Share of the train queries that becomes dev where a collection has no dev of its own."""

BEIR_NAMES = (
    "arguana",
    "climate-fever",
    "cqadupstack",
    "dbpedia-entity",
    "fever",
    "fiqa",
    "hotpotqa",
    "msmarco",
    "nfcorpus",
    "nq",
    "nq-train",
    "quora",
    "scidocs",
    "scifact",
    "trec-covid",
    "webis-touche2020",
)
"""Collections that BEIR publishes; see ``download``."""

_SAMPLE = Path(__file__).parent / "sample"


class Document(NamedTuple):
    """One document of a corpus."""

    id: str
    title: str
    text: str
    metadata: dict[str, Any] | None = None
    """JSON fields that searches can filter by."""

    @property
    def content(self) -> str:
        """What is encoded: title and text, joined as BEIR joins them."""
        return f"{self.title} {self.text}".strip()


@dataclass(frozen=True)
class Collection:
    """One collection; make it with ``open_collection``. Files are read anew at every call."""

    name: str
    folder: Path

    def documents(self) -> Iterator[Document]:
        """Stream the corpus; it is never held in memory.

        Raises:
            DatasetError: a line is flawed. Documents without any text pass: BEIR's collections have them.
        """
        for _, record in _records(require_file(self.folder, "corpus.jsonl"), DOCUMENT_TEXTS):
            yield Document(
                record["_id"], record.get("title", ""), record["text"], record.get("metadata") or None
            )

    def queries(self, split: str) -> dict[str, str]:
        """Query id -> text of the split's queries, in the order of ``queries.jsonl``.

        Raises:
            DatasetError: a line is flawed, an id comes twice, or a judged query is not there.
            BadInput: there is no such split name.
        """
        judged = self.qrels(split)
        path = require_file(self.folder, "queries.jsonl")
        texts: dict[str, str] = {}
        for line, record in _records(path, QUERY_TEXTS):
            query = record["_id"]
            if query in texts:
                raise DatasetError(f"{path}:{line}: query {query!r} comes twice; keep one of them")
            if query in judged:
                texts[query] = record["text"]
        if missing := judged.keys() - texts.keys():
            raise DatasetError(
                f"{path}: no query {min(missing)!r} ({len(missing)} judged in {split} are not there); "
                "add the queries or remove their judgements"
            )
        return texts

    def qrels(self, split: str) -> dict[str, dict[str, int]]:
        """Query id -> document id -> grade, for the queries with a relevant document (grade above 0).

        Without ``qrels/dev.tsv``, dev is a tenth of the train queries, and train is the rest.

        Raises:
            DatasetError: a line is flawed, or the collection cannot give this split.
            BadInput: there is no such split name.
        """
        _check_split_name(split)
        path = find_file(self.folder, f"qrels/{split}.tsv")
        train = find_file(self.folder, "qrels/train.tsv")
        if split != "test" and train and not find_file(self.folder, "qrels/dev.tsv"):
            grades = _relevant(train)
            if len(grades) < 2:
                raise DatasetError(
                    f"{train}: {len(grades)} query with a relevant document, and no dev.tsv; dev is held "
                    "out of train, which needs 2 or more: add queries or write qrels/dev.tsv"
                )
            dev = hold_out(grades, DEV_FRACTION, "dev")
            return {query: grades[query] for query in grades if (query in dev) == (split == "dev")}
        if path is None:
            there = ", ".join(self.splits()) or "none"
            raise DatasetError(f"{self.folder / 'qrels'}: no {split} split (found: {there}); add {split}.tsv")
        grades = _relevant(path)
        if not grades:
            raise DatasetError(f"{path}: no query with a relevant document; add lines with a score above 0")
        return grades

    def splits(self) -> tuple[str, ...]:
        """The splits that the collection can give, a held-out dev included."""
        there = {split for split in SPLITS if find_file(self.folder, f"qrels/{split}.tsv")}
        return tuple(split for split in SPLITS if split in there or (split == "dev" and "train" in there))

    def corpus_hash(self) -> str:
        """Sixteen hex digits over the corpus's bytes, the same gzipped or not.

        Raises:
            DatasetError: the corpus is missing or a damaged gzip file.
        """
        return _hash_file(*_stamp(require_file(self.folder, "corpus.jsonl")))

    def split_hash(self, split: str) -> str:
        """Sixteen hex digits over the split's queries and judgements, the same in any file order.

        Raises:
            DatasetError: the split cannot be read.
            BadInput: there is no such split name.
        """
        _check_split_name(split)
        names = ["queries.jsonl", *(f"qrels/{name}.tsv" for name in SPLITS)]
        paths = [path for name in names if (path := find_file(self.folder, name))]
        return _hash_split(self, split, tuple(_stamp(path) for path in paths))


def open_collection(name: str, path: str | Path) -> Collection:
    """Open a recipe's domain.

    Args:
        name: the domain's name.
        path: a BEIR folder, or ``sample:<domain>`` for the built-in sample.

    Raises:
        DatasetError: there is no such folder or sample, or it has no corpus or queries file.
    """
    field = f"domains.{name}.path"
    if str(path).startswith("sample:"):
        domain = str(path).removeprefix("sample:")
        if domain not in sample_domains():
            there = ", ".join(sample_domains())
            raise DatasetError(f"{field}: no built-in sample {domain!r}; there are {there}")
        return Collection(name, _SAMPLE / domain)
    folder = Path(path).expanduser().absolute()  # workers run in other folders
    known = folder.name in BEIR_NAMES
    command = f"`routerretriever datasets download {folder.name}`"
    if not folder.is_dir():
        remedy = f"download it with {command}, or mend the recipe" if known else "mend the recipe"
        raise DatasetError(f"{field}: no folder {folder}; {remedy}")
    for file in ("corpus.jsonl", "queries.jsonl"):
        if not find_file(folder, file):
            inner = sorted(path.parent.name for path in folder.glob("*/corpus.jsonl*"))
            remedy = f"remove it and run {command}" if known else "add it, or mend the recipe"
            if inner:
                remedy = f"name one of the collections in it: {', '.join(inner)}"
            raise DatasetError(f"{field}: no {file} (or {file}.gz) in {folder}; {remedy}")
    return Collection(name, folder)


def sample_domains() -> list[str]:
    """Names of the built-in sample's collections."""
    return sorted(path.parent.name for path in _SAMPLE.glob("*/corpus.jsonl"))


def _refuse(path: Path, line: int, flaw: str) -> None:
    raise DatasetError(f"{path}:{line}: {flaw}")


def _records(path: Path, texts: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, record in read_objects(path, _refuse):
        for flaw in record_flaws(record, texts):
            _refuse(path, line, flaw)
        yield line, record


def _relevant(path: Path) -> dict[str, dict[str, int]]:
    grades: dict[str, dict[str, int]] = {}
    for line, (query, document, grade) in read_judgements(path, _refuse):
        if grades.setdefault(query, {}).setdefault(document, grade) != grade:
            _refuse(path, line, f"a second score for {query!r} and {document!r}, found {grade}; keep one")
    return {query: judged for query, judged in grades.items() if any(judged.values())}


def _check_split_name(split: str) -> None:
    if split not in SPLITS:
        raise BadInput(f"split: no split is named {split!r}; there are {', '.join(SPLITS)}")


def _stamp(path: Path) -> tuple[Path, int, int]:
    status = path.stat()
    return path, status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=256)
def _hash_file(path: Path, _mtime: int, _size: int) -> str:
    digest = hashlib.sha256()
    for block in read_blocks(path):
        digest.update(block)
    return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=256)
def _hash_split(collection: Collection, split: str, _stamps: tuple[tuple[Path, int, int], ...]) -> str:
    return content_hash(collection.queries(split), collection.qrels(split))
