"""Write a collection in Hugging Face's retrieval layout, which ``importing`` reads back unchanged."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet

from routerretriever.datasets.contents import SPLITS, read_qrels, split_files
from routerretriever.datasets.files import require_file
from routerretriever.datasets.issues import raise_error
from routerretriever.datasets.reading import read_records
from routerretriever.datasets.settings import DomainSettings
from routerretriever.errors import DatasetError

_BATCH = 20_000
_CORPUS = arrow.schema([(name, arrow.string()) for name in ("_id", "title", "text", "metadata")])
_QUERIES = arrow.schema([(name, arrow.string()) for name in ("_id", "text", "metadata")])
_QRELS = arrow.schema([("query-id", arrow.string()), ("corpus-id", arrow.string()), ("score", arrow.int64())])


def export_parquet(source: Path, folder: Path) -> Path:
    """Write ``corpus/``, ``queries/`` and ``qrels/`` with a Parquet file each, a split each for qrels.

    Raises:
        DatasetError: the folder exists, or the collection has an error.
    """
    if folder.exists():
        raise DatasetError(f"{folder}: there already, and never written over; name a new folder")
    corpus = require_file(source, "corpus.jsonl")
    queries = require_file(source, "queries.jsonl")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        copy = Path(scratch) / folder.name
        documents = (
            {"_id": one.id, "title": one.title, "text": one.text, "metadata": _json(one.metadata)}
            for _, one in read_records(corpus, raise_error)
        )
        _write(copy / "corpus" / "corpus.parquet", documents, _CORPUS)
        asked = (
            {"_id": one.id, "text": one.text, "metadata": _json(one.metadata)}
            for _, one in read_records(queries, raise_error, True)
        )
        _write(copy / "queries" / "queries.parquet", asked, _QUERIES)
        there = split_files(source, DomainSettings(path=""))
        for split in (split for split in SPLITS if split in there):
            grades = read_qrels(there[split], raise_error).grades
            rows = (
                {"query-id": query, "corpus-id": document, "score": grade}
                for query, judged in grades.items()
                for document, grade in judged.items()
            )
            _write(copy / "qrels" / f"{split}.parquet", rows, _QRELS)
        copy.rename(folder)
    return folder


def _json(metadata: dict[str, Any] | None) -> str | None:
    return json.dumps(metadata, ensure_ascii=False) if metadata else None


def _write(path: Path, rows: Iterable[dict[str, Any]], schema: arrow.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with parquet.ParquetWriter(path, schema) as writer:
        for batch in _batches(iter(rows)):
            writer.write_table(arrow.Table.from_pylist(batch, schema=schema))


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(rows, _BATCH)):
        yield batch
