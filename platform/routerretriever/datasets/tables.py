"""Rows of JSON, JSONL, CSV, TSV, Parquet and Arrow files, as streams of named fields with their places."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pyarrow as arrow
import pyarrow.parquet as parquet

from routerretriever.datasets.files import (
    DAMAGE,
    damage,
    known_split,
    not_utf8,
    open_plain,
    read_blocks,
    read_lines,
)
from routerretriever.datasets.issues import raise_error, refuse
from routerretriever.datasets.reading import mend, parse_json, parse_object
from routerretriever.errors import DatasetError, first_line

_LISTS = ("data", "rows", "items", "records", "examples", "questions", "entries")
"""What an object calls its list of rows."""
_SAMPLE = 1 << 20
_SEPARATOR = re.compile(r"(?i)sep=(.)\r?\n?")
"""A first line that tells spreadsheets what separates the fields."""
_LINE_BREAK = re.compile(r"\r\n|\r|\n")
_OBJECTS = re.compile(rb"\s*\[\s*(?:\{|$)")
"""How a list of objects begins, in a file whose name promises an object a line."""
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
_DIGITS = 15
"""More digits than these are no quantity, and a float would round them."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_CODES = {
    "id", "ids", "code", "codes", "zip", "plz", "postcode", "postal", "phone", "telephone", "tel", "mobile",
    "fax", "isbn", "issn", "ean", "gtin", "sku", "iban", "serial", "version",
}  # fmt: skip
"""Words in names of columns whose values are names, though they look like numbers."""


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
    readers = {".parquet": _arrow, ".arrow": _arrow, ".csv": _csv, ".tsv": _csv, ".json": _json}
    return readers.get(suffix(path), _jsonl)(path)


def columns_of(path: Path) -> list[str]:
    """The names of a table's first rows, in order of appearance."""
    return list(dict.fromkeys(name for row in islice(read_rows(path), 100) for name in row.fields))


def number_columns(path: Path) -> frozenset[str]:
    """The columns of a CSV or TSV that hold numbers alone; none of other tables, whose values have types.

    Reads rows until no column is left. An empty field says nothing; codes and ids are no numbers.

    Raises:
        DatasetError: the file is not what its name says.
    """
    if suffix(path) not in (".csv", ".tsv"):
        return frozenset()
    possible = {name for name in columns_of(path) if not _names_codes(name)}
    filled: set[str] = set()
    for row in read_rows(path):
        values = {name: row.fields[name] for name in possible if row.fields[name].strip()}
        filled |= values.keys()
        possible -= {name for name, value in values.items() if number_of(value) is None}
        if not possible:
            break
    return frozenset(possible & filled)


def number_of(text: str) -> int | float | None:
    """The number that a text is, as people write quantities: 007, 1e5 and 16 digits are none."""
    text = text.strip()
    if not _NUMBER.fullmatch(text) or sum(map(str.isdigit, text)) > _DIGITS:
        return None
    return float(text) if "." in text else int(text)


def _names_codes(column: str) -> bool:
    return any(word.lower() in _CODES for word in _WORD.findall(column))


def is_absent(value: Any) -> bool:
    """Whether a field is empty: null, or the NaN that stands for it in many tables."""
    return value is None or value != value


def text_of(row: Row, name: str) -> str:
    """A field as text; numbers are written out, null is empty.

    Raises:
        DatasetError: the field is a list or an object.
    """
    value = row.fields.get(name)
    if isinstance(value, str):
        return mend(value)
    if is_absent(value):
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DatasetError(f'{row.place}: "{name}" is not text, found {str(value)[:60]!r}; write a string')
    return str(value)


def id_of(row: Row, name: str | None) -> str | None:
    """A field as an id: 1.0, as tables with gaps hold 1, is 1. None where there is none.

    Raises:
        DatasetError: the field is a list or an object.
    """
    if not name:
        return None
    value = row.fields.get(name)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return text_of(row, name) or None


def list_in(text: str) -> list[Any] | None:
    """The texts and numbers of a list that is written into one cell, as JSON, Python or NumPy writes it."""
    if not (text.startswith("[") and text.rstrip().endswith("]")):
        return None
    for parse in (json.loads, _python_list):
        try:
            found = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError):
            continue
        if isinstance(found, list) and found and all(type(one) in (str, int) for one in found):
            return [mend(one) if isinstance(one, str) else one for one in found]
    return None


def _python_list(text: str) -> Any:
    value = ast.literal_eval(text)
    if not all(isinstance(one, str) for one in value):
        return value
    # NumPy writes no commas, and Python joins texts without one between them.
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return [ast.literal_eval(token.string) for token in tokens if token.type == tokenize.STRING]


def read_text(path: Path) -> str:
    """A whole text file; UTF-8, with or without a byte order mark.

    Raises:
        DatasetError: it is not UTF-8 or damaged.
    """
    try:
        return b"".join(read_blocks(path)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 at byte {error.start + 1}; save it as UTF-8") from None


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of every line.

    Raises:
        DatasetError: a line is not UTF-8.
    """
    for number, raw in read_lines(path, raise_error):
        try:
            line = raw.decode()
        except UnicodeDecodeError as error:
            refuse(not_utf8(path, number, error))
        yield number, line


def _jsonl(path: Path) -> Iterator[Row]:
    first = next((raw for _, raw in read_lines(path, raise_error)), b"")
    return (_json if _OBJECTS.match(first) else _lines)(path)


def _lines(path: Path) -> Iterator[Row]:
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
            yield from _lines(path)  # one object a line, under another name
            return
        raise DatasetError(f"{path}: not JSON ({error}); write a list of objects") from None
    rows = value
    if isinstance(value, dict):
        rows = list(_rows_by_id(value, path.name.lower()) or _rows_of(value))
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], start=1):
        if not isinstance(row, dict):
            raise DatasetError(f"{path}: item {number} is not an object; write a list of objects")
        yield Row(f"{path}, item {number}", row)


def _rows_by_id(value: dict[str, Any], named: str) -> list[dict[str, Any]]:
    """The rows of an object whose names are ids, where file and values say so: judgements of queries by
    document, or as a list of documents, and texts. As beir's loader gives them in memory."""
    fields = list(value.values())
    if all(isinstance(one, dict) and all(map(_is_number, one.values())) for one in fields):
        return [
            {"query-id": query, "corpus-id": document, "score": grade}
            for query, grades in value.items()
            for document, grade in grades.items()
        ]
    if re.search("qrel|relevan|gold", named) and all(isinstance(one, list) for one in fields):
        return [
            {"query-id": query, "corpus-id": document}
            for query, documents in value.items()
            for document in documents
        ]
    texts = re.search("quer|topic|question|corpus|docs|documents|passages", named)
    if texts and len(fields) > 1 and all(isinstance(one, str) for one in fields):
        return [{"_id": key, "text": text} for key, text in value.items()]
    return []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _rows_of(value: dict[str, Any]) -> Iterator[Any]:
    """The rows of an object: a list in it, lists by split, columns, rows by id, or itself as the only one."""
    fields = list(value.values())
    name = next((name for name in _LISTS if isinstance(value.get(name), list)), None)
    if name is not None:
        yield from value[name]
    elif value and all(known_split(name) and isinstance(value[name], list) for name in value):
        for name, rows in value.items():
            yield from ({"split": name, **row} if isinstance(row, dict) else row for row in rows)
    elif len(value) > 1 and all(isinstance(one, list) and len(one) == len(fields[0]) for one in fields):
        yield from (dict(zip(value, row, strict=True)) for row in zip(*fields, strict=True))
    elif value and all(isinstance(one, dict) for one in fields) and "corpus" not in value:
        if all(list(one) == list(fields[0]) and "0" in one for one in fields):  # as pandas writes a table
            yield from ({name: value[name][key] for name in value} for key in fields[0])
        else:
            yield from ({"_id": key, **one} for key, one in value.items())
    else:
        yield value


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)
    number = 1
    try:
        with open_plain(path) as raw:
            stream = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
            first = stream.readline()
            if "\0" in first:
                raise DatasetError(f"{path}:1: holds the character NUL, as UTF-16 does; save it as UTF-8")
            if told := _SEPARATOR.fullmatch(first):
                first = stream.readline()
            before = 1 if told else 0
            tabs = suffix(path) == ".tsv"
            raw_quotes = tabs and not _is_quoted(path)
            reader = csv.reader(
                chain([first], stream),
                delimiter=told[1] if told else "\t" if tabs else _delimiter(first),
                quoting=csv.QUOTE_NONE if raw_quotes else csv.QUOTE_MINIMAL,
                skipinitialspace=not tabs,
                strict=True,  # else a quote that is never closed takes the rows after it into its field
            )
            header, name = [column.strip() for column in next(reader, [])], str(path)
            if twice := next((column for column in header if column and header.count(column) > 1), None):
                raise DatasetError(f"{path}:1: two columns are named {twice!r}; name them apart")
            number = before + reader.line_num + 1
            for row in reader:
                start, number = number, before + reader.line_num + 1
                if not any(row):
                    continue
                if len(row) != len(header):
                    advice = (
                        "cut the separators that are too many"
                        if raw_quotes
                        else "quote what holds the separator"
                    )
                    raise DatasetError(
                        f"{path}:{start}: {len(row)} columns, the header has {len(header)}; {advice}"
                    )
                yield Row(f"{name}:{start}", dict(zip(header, row, strict=True)))
    except UnicodeDecodeError:
        _refuse_encoding(path)
    except csv.Error as error:
        raise DatasetError(
            f"{path}:{number}: not readable as CSV ({error}); close what a quote opens, and write a quote "
            'within quotes twice: ""'
        ) from None
    except DAMAGE as error:
        raise DatasetError(f"{path}:{number}: {damage(error)}") from None


def _delimiter(header: str) -> str:
    """What separates a header's names; spreadsheets of some countries write semicolons."""
    return max(",;\t|", key=header.count)


def _is_quoted(path: Path) -> bool:
    """Whether quotes hold a TSV's fields together, as spreadsheets write them; else they are text."""
    with open_plain(path) as raw:
        start = raw.read(_SAMPLE)
    sample, is_cut = start.decode(errors="replace"), len(start) == _SAMPLE
    if not re.search(r'(?m)(^|\t)"', sample):
        return False
    rows: list[list[str]] = []
    try:
        for row in csv.reader(io.StringIO(sample, newline=""), delimiter="\t", strict=True):
            rows.append(row)
    except csv.Error as error:
        if not is_cut or "end of data" not in str(error):
            return False
    whole = slice(-1 if is_cut else None)
    rows, lines = rows[whole], [line.split("\t") for line in _LINE_BREAK.split(sample)[whole]]
    if any(_LINE_BREAK.search(field) for row in rows for field in row) and _is_table(lines):
        return False  # each line is a row: no quote that ends in a later line was meant to hold them together
    return _one_width(rows)


def _is_table(rows: list[list[str]]) -> bool:
    """Whether all rows have as many fields, and more than one: any line is a row of one."""
    return bool(rows) and len(rows[0]) > 1 and _one_width(rows)


def _one_width(rows: Iterable[Sequence[str]]) -> bool:
    """Whether all rows that are not empty have as many fields."""
    return len({len(row) for row in rows if any(row)}) == 1


def _refuse_encoding(path: Path) -> NoReturn:
    """Tell the first line that is not UTF-8."""
    for _ in text_lines(path):
        pass
    raise DatasetError(f"{path}: not UTF-8; save it as UTF-8")


def _arrow(path: Path) -> Iterator[Row]:
    number, name, kind = 0, str(path), suffix(path).removeprefix(".").capitalize()
    if path.suffix.lower() != suffix(path):
        raise DatasetError(f"{path}: a compressed {kind} file is not read; decompress it")
    try:
        for batch in _batches(path):
            for row in batch.to_pylist():
                number += 1
                yield Row(f"{name}, row {number}", row)
    except (arrow.lib.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = first_line(error)
        raise DatasetError(f"{path}: not a readable {kind} file ({reason}); write it again") from None


def _batches(path: Path) -> Iterator[arrow.RecordBatch]:
    """The rows of a Parquet file, or of one of Arrow's, as ``datasets`` saves them."""
    if suffix(path) == ".parquet":
        with parquet.ParquetFile(path) as table:
            yield from table.iter_batches(batch_size=4096)
        return
    with arrow.memory_map(str(path)) as source:
        if bytes(source.read(6)) == b"ARROW1":
            file = arrow.ipc.open_file(source)
            yield from (file.get_batch(number) for number in range(file.num_record_batches))
        else:
            source.seek(0)
            yield from arrow.ipc.open_stream(source)
