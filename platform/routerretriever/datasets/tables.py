"""Rows of JSON, JSONL, CSV, TSV and Parquet files, as streams of named fields with their places."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as arrow
import pyarrow.parquet as parquet

from routerretriever.datasets.files import DAMAGE, damage, open_plain, read_blocks, read_lines
from routerretriever.datasets.issues import raise_error
from routerretriever.datasets.reading import mend, parse_json, parse_object
from routerretriever.errors import DatasetError

TABLES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".ndjson")


class Row(NamedTuple):
    """One row: where it stands, and its fields."""

    place: str
    fields: dict[str, Any]


def suffix(path: Path) -> str:
    """A file's ending in small letters, without that of its compression."""
    return Path(path.name.lower().removesuffix(".gz").removesuffix(".zst")).suffix


def read_rows(path: Path) -> Iterator[Row]:
    """Stream a table.

    Raises:
        DatasetError: the file is not what its name says; names file and line.
    """
    readers = {".parquet": _parquet, ".csv": _csv, ".tsv": _csv, ".json": _json}
    return readers.get(suffix(path), _jsonl)(path)


def columns_of(path: Path) -> list[str]:
    """The names of a table's first rows, in order of appearance."""
    return list(dict.fromkeys(name for row in islice(read_rows(path), 100) for name in row.fields))


def text_of(row: Row, name: str) -> str:
    """A field as text; numbers are written out, null is empty.

    Raises:
        DatasetError: the field is missing or is a list or an object.
    """
    value = row.fields.get(name)
    if isinstance(value, str):
        return mend(value)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DatasetError(f'{row.place}: "{name}" is not text, found {str(value)[:60]!r}; write a string')
    return str(value)


def read_text(path: Path) -> str:
    """A whole text file; UTF-8, with or without a byte order mark.

    Raises:
        DatasetError: it is not UTF-8 or damaged.
    """
    try:
        return b"".join(read_blocks(path)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 at byte {error.start + 1}; save it as UTF-8") from None


def _jsonl(path: Path) -> Iterator[Row]:
    name = str(path)
    for line, raw in read_lines(path, raise_error):
        fields = _tuple(raw) or parse_object(path, line, raw, raise_error)
        if fields is not None:
            yield Row(f"{name}:{line}", fields)


def _tuple(raw: bytes) -> dict[str, Any] | None:
    """The fields of a line that is a list: query, positive, negatives, as sentence-transformers has them."""
    if not raw.lstrip().startswith(b"["):
        return None
    try:
        texts = parse_json(raw)
    except (ValueError, RecursionError):
        return None
    if len(texts) < 2 or not all(isinstance(text, str) for text in texts):
        return None
    names = ["query", "positive", *(f"negative_{number}" for number in range(1, len(texts) - 1))]
    return dict(zip(names, texts, strict=True))


def _json(path: Path) -> Iterator[Row]:
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            yield from _jsonl(path)  # one object a line, under another name
            return
        raise DatasetError(f"{path}: not JSON ({error}); write a list of objects") from None
    rows = value.get("data", [value]) if isinstance(value, dict) else value
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], start=1):
        if not isinstance(row, dict):
            raise DatasetError(f"{path}: item {number} is not an object; write a list of objects")
        yield Row(f"{path}, item {number}", row)


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)
    number = 1
    try:
        with open_plain(path) as raw:
            stream = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
            first = stream.readline()
            tabs = suffix(path) == ".tsv"
            reader = csv.reader(
                chain([first], stream),
                delimiter="\t" if tabs else _delimiter(first),
                quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
            )
            header, name = next(reader, []), str(path)
            for row in reader:
                number = reader.line_num
                if not any(row):
                    continue
                if len(row) != len(header):
                    raise DatasetError(
                        f"{path}:{number}: {len(row)} columns, the header has {len(header)}; "
                        "quote what holds the separator"
                    )
                yield Row(f"{name}:{number}", dict(zip(header, row, strict=True)))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}:{number}: not readable as CSV in UTF-8 ({error}); save it anew") from None
    except DAMAGE as error:
        raise DatasetError(f"{path}:{number}: {damage(error)}") from None


def _delimiter(header: str) -> str:
    """What separates a header's names; spreadsheets of some countries write semicolons."""
    return max(",;\t", key=header.count)


def _parquet(path: Path) -> Iterator[Row]:
    number, name = 0, str(path)
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                for row in batch.to_pylist():
                    number += 1
                    yield Row(f"{name}, row {number}", row)
    except (arrow.lib.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DatasetError(f"{path}: not a readable Parquet file ({error}); write it again") from None
