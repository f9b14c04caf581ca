"""Reading the files of a BEIR folder line by line, plain or gzipped.

Readers hand every flaw to a ``report`` function and go on. ``collection`` passes one that raises, and
``checking`` one that takes notes, so that both mean the same by a flaw.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from routerretriever.errors import DatasetError

DOCUMENT_TEXTS = ("title", "text")
QUERY_TEXTS = ("text",)

_INTEGER = re.compile(r"-?[0-9]{1,9}")
_QRELS_HEADER = ("query-id", "corpus-id", "score")
_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile)

Report = Callable[[Path, int, str], None]
"""Told of a flaw: file, line, and what was found and what to do. It may raise."""


class Judgement(NamedTuple):
    """One line of a qrels file."""

    query: str
    document: str
    grade: int


def find_file(folder: Path, name: str) -> Path | None:
    """A collection's file as it is or gzipped; None when there is neither."""
    paths = (folder / name, folder / f"{name}.gz")
    return next((path for path in paths if path.is_file()), None)


def require_file(folder: Path, name: str) -> Path:
    """A collection's file as it is or gzipped.

    Raises:
        DatasetError: there is neither.
    """
    path = find_file(folder, name)
    if path is None:
        raise DatasetError(f"{folder / name}: no such file, nor {name}.gz; a BEIR folder needs it")
    return path


def read_objects(path: Path, report: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and JSON object of every line that holds one; the others are reported."""
    for line, raw in _read_lines(path, report):
        try:
            value = json.loads(raw.decode())
        except UnicodeDecodeError as error:
            report(path, line, _not_utf8(error))
        except ValueError as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            report(path, line, f"not JSON ({reason}), found {_shown(raw)}; write one JSON object a line")
        else:
            if isinstance(value, dict):
                yield line, value
            else:
                report(path, line, f"not a JSON object, found {_shown(raw)}; write one object a line")


def record_flaws(record: dict[str, Any], texts: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with the fields of a document or query; ``title`` may be left out."""
    for field in ("_id", *texts):
        if field not in record:
            if field != "title":
                yield f'no "{field}", found {sorted(record)}; add it'
        elif not isinstance(record[field], str):
            found = _shown(json.dumps(record[field]).encode())
            yield f'"{field}" is not a string, found {found}; put it in quotes'
        elif field == "_id" and not record[field]:
            yield '"_id" is empty; give every line an id of its own'


def read_judgements(path: Path, report: Report) -> Iterator[tuple[int, Judgement]]:
    """Line number and judgement of every line that holds one; the others are reported."""
    lines = _read_lines(path, report)
    first_line, header = next(lines, (1, b""))
    names = header.split(b"\t")
    # Readers of this format skip the first line, whatever its names; a judgement there would be lost.
    if len(names) != 3 or _INTEGER.fullmatch(names[2].decode(errors="replace")):
        columns = ", ".join(_QRELS_HEADER)
        report(path, first_line, f"not a header, found {_shown(header)}; write {columns}, separated by tabs")
    for line, raw in lines:
        try:
            judgement = _parse_judgement(raw)
        except UnicodeDecodeError as error:
            report(path, line, _not_utf8(error))
        except ValueError as error:
            report(path, line, str(error))
        else:
            yield line, judgement


def read_blocks(path: Path) -> Iterator[bytes]:
    """The file's (decompressed) bytes, a megabyte at a time.

    Raises:
        DatasetError: the gzip file is damaged.
    """
    try:
        with _open(path) as stream:
            while block := stream.read(1 << 20):
                yield block
    except _DAMAGE as error:
        raise DatasetError(f"{path}: {_damaged(error)}") from None


def _parse_judgement(raw: bytes) -> Judgement:
    columns = raw.decode().split("\t")
    if len(columns) != 3 or not all(columns):
        wanted = ", ".join(_QRELS_HEADER)
        raise ValueError(f"not three columns, found {_shown(raw)}; write {wanted}, separated by tabs")
    query, document, score = columns
    if not _INTEGER.fullmatch(score):
        raise ValueError(f"score is not an integer, found {score!r}; write a grade: 0, 1, 2 ...")
    # TREC's collections mark some documents -1: not relevant, whatever the reason.
    return Judgement(query, document, max(0, int(score)))


def _read_lines(path: Path, report: Report) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of every line that is not blank."""
    line = 0
    try:
        with _open(path) as stream:
            for line, raw in enumerate(stream, start=1):
                if raw.strip():
                    yield line, raw.rstrip(b"\r\n")
    except _DAMAGE as error:
        report(path, line + 1, _damaged(error))


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _damaged(error: Exception) -> str:
    return f"damaged gzip ({error}); download or compress the file again"


def _shown(raw: bytes) -> str:
    text = raw.decode(errors="replace")
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8, found {error.object[error.start]:#04x} as byte {error.start + 1}; save it as UTF-8"
