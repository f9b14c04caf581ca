"""The rules of a BEIR folder's lines: what a document, a query and a judgement are.

Readers tell a ``Report`` of every issue and go on. ``collection`` passes one that raises at the first error,
``checking`` one that takes notes, so that both mean the same. Harmless differences are read: a missing or
null title, numbers as ids, scores like ``1.0``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from routerretriever.datasets.files import not_utf8, read_lines, shown
from routerretriever.datasets.issues import (
    FIELDS,
    HEADER,
    INTEGER_ID,
    JUDGEMENT,
    NO_TEXT_DOCUMENT,
    NO_TEXT_QUERY,
    NOT_JSON,
    SURROGATE,
    Issue,
    Report,
)
from routerretriever.types import is_encodable

HIGHEST_GRADE = 1000
"""trec_eval keeps a counter for every grade up to the highest, so a mistake here costs gigabytes."""
_COLUMNS = "query-id, corpus-id, score"
_GRADE = re.compile(r"[+-]?[0-9]+(\.0*)?")
_EXACT = {str, int, bool, type(None)}
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class Record(NamedTuple):
    """A document or a query."""

    id: str
    title: str
    text: str
    metadata: dict[str, Any] | None = None
    """JSON fields that searches can filter by."""

    @property
    def content(self) -> str:
        """What is encoded: title and text, joined as BEIR joins them."""
        return f"{self.title} {self.text}".strip()


class Judgement(NamedTuple):
    """One line of a qrels file."""

    query: str
    document: str
    grade: int


def read_records(
    path: Path, report: Report, queries: bool = False, stride: int = 1
) -> Iterator[tuple[int, Record]]:
    """Line number and document (or query) of every line that holds one; issues are reported.

    With a ``stride``, only every so manyth line is looked at, from the first on.
    """
    for line, raw in islice(read_lines(path, report), None, None, stride):
        record = _parse_record(path, line, raw, report, queries)
        if record is not None:
            yield line, record


def read_judgements(path: Path, report: Report) -> Iterator[tuple[int, Judgement]]:
    """Line number and judgement of every line that holds one; issues are reported."""
    lines = read_lines(path, report)
    first_line, header = next(lines, (1, b""))
    names = header.split(b"\t")
    # Readers of this format skip the first line, whatever its names; a judgement there would be lost.
    if len(names) != 3 or _NUMBER.fullmatch(names[2].decode(errors="replace").strip()):
        advice = f"write {_COLUMNS}, separated by tabs{_trec(header)}"
        report(Issue(HEADER, path, first_line, f"not a header, found {shown(header)}; {advice}"))
    for line, raw in lines:
        try:
            judgement = _parse_judgement(raw)
        except UnicodeDecodeError as error:
            report(not_utf8(path, line, error))
        except ValueError as error:
            report(Issue(JUDGEMENT, path, line, str(error)))
        else:
            yield line, judgement


def parse_object(path: Path, line: int, raw: bytes, report: Report) -> dict[str, Any] | None:
    """The JSON object of a line; None where there is none, which is reported."""
    try:
        value = parse_json(raw)
    except UnicodeDecodeError as error:
        report(not_utf8(path, line, error))
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        text = f"not JSON ({reason}), found {shown(raw)}; write one JSON object a line"
        report(Issue(NOT_JSON, path, line, text))
    else:
        if isinstance(value, dict):
            return value
        text = f"not a JSON object, found {shown(raw)}; write one object a line"
        report(Issue(NOT_JSON, path, line, text))
    return None


def parse_json(raw: bytes) -> Any:
    """What ``json.loads`` makes of UTF-8, by orjson wherever it makes the same of it.

    Raises:
        UnicodeDecodeError: the bytes are not UTF-8.
        ValueError: they are not JSON.
        RecursionError: they are nested too deeply.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:  # it refuses NaN and halves of characters, and has other messages
        return json.loads(raw.decode())
    return value if _is_exact(value) else json.loads(raw.decode())


def _is_exact(value: Any) -> bool:
    """Whether orjson has read all numbers as they are: it makes floats of integers beyond 64 bits."""
    if isinstance(value, float):
        return abs(value) < 2**63
    if isinstance(value, dict):
        return _EXACT.issuperset(map(type, value.values())) or all(map(_is_exact, value.values()))
    return not isinstance(value, list) or all(map(_is_exact, value))


def mend(text: str) -> str:
    """Text in which halves of characters are joined or become U+FFFD, so that it can be written."""
    return text if text.isascii() or is_encodable(text) else _mended(text)


def _mended(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _parse_record(path: Path, line: int, raw: bytes, report: Report, queries: bool) -> Record | None:
    record = parse_object(path, line, raw, report)
    if record is None:
        return None
    flawed = False
    for flaw in _field_errors(record, queries):
        report(Issue(FIELDS, path, line, flaw))
        flawed = True
    if flawed:
        return None
    identifier = record["_id"]
    if not isinstance(identifier, str):
        report(Issue(INTEGER_ID, path, line, f"the id {identifier} is a number; read as '{identifier}'"))
        identifier = str(identifier)
    title, text = ("" if queries else record.get("title") or ""), record["text"]
    if not (title.isascii() and text.isascii()) and not is_encodable(title + text):
        report(Issue(SURROGATE, path, line, f"{identifier!r} has half a character; read as U+FFFD"))
        title, text = mend(title), mend(text)
    if not text.strip() and not title.strip():
        kind, what = (NO_TEXT_QUERY, "text") if queries else (NO_TEXT_DOCUMENT, "title and text")
        report(Issue(kind, path, line, f"empty {what}; fill in or remove {identifier!r}"))
    return Record(identifier, title, text, _metadata(record) if "metadata" in record else None)


def _metadata(record: dict[str, Any]) -> dict[str, Any] | None:
    """A record's own JSON fields, in which halves of characters are mended too."""
    metadata = record.get("metadata")
    if not metadata or not isinstance(metadata, dict):
        return None
    try:
        orjson.dumps(metadata)  # refuses halves of characters
    except orjson.JSONEncodeError:
        return dict(json.loads(mend(json.dumps(metadata, ensure_ascii=False))))
    return metadata


def _field_errors(record: dict[str, Any], queries: bool) -> Iterator[str]:
    identifier, text, title = record.get("_id"), record.get("text"), record.get("title")
    if isinstance(identifier, str):
        if identifier == "":
            yield '"_id" is empty; give every line an id of its own'
        elif not identifier.isascii() and not is_encodable(identifier):
            yield f'"_id" has half a character, found {identifier!r}; write it again'
    elif "_id" not in record:
        yield f'no "_id", found {_names(record)}; add it'
    elif isinstance(identifier, bool) or not isinstance(identifier, int):
        yield f'"_id" is not text, found {_value(identifier)}; put it in quotes'
    elif abs(identifier) >= 10**18:
        yield '"_id" is too large a number; put it in quotes'
    if not isinstance(text, str):
        if "text" not in record:
            yield f'no "text", found {_names(record)}; add it'
        elif text is None:
            yield '"text" is null; write "" for a document without text, or remove the line'
        else:
            yield f'"text" is not a string, found {_value(text)}; put it in quotes'
    if not (queries or isinstance(title, str) or title is None):
        yield f'"title" is not a string, found {_value(title)}; put it in quotes, or leave it out'


def _parse_judgement(raw: bytes) -> Judgement:
    columns = raw.decode().split("\t")
    if len(columns) != 3 or not all(columns):
        raise ValueError(
            f"not three columns, found {shown(raw)}; write {_COLUMNS}, separated by tabs{_trec(raw)}"
        )
    query, document, score = columns
    if not _GRADE.fullmatch(score.strip()):
        raise ValueError(f"score is not an integer, found {score!r}; write a grade: 0, 1, 2 ...")
    digits = score.strip().split(".")[0]
    if len(digits) > 5 or int(digits) > HIGHEST_GRADE:
        raise ValueError(f"score {shown(score)} is above {HIGHEST_GRADE}; write a grade: 0, 1, 2 ...")
    # TREC's collections mark some documents -1: not relevant, whatever the reason.
    return Judgement(query, document, max(0, int(digits)))


def _trec(raw: bytes) -> str:
    if len(raw.split()) == 4:
        return " (this looks like a TREC qrels file: `routerretriever datasets import` reads it)"
    return ""


def _names(record: dict[str, Any]) -> str:
    names = sorted(record)[:8]
    known = {"query", "question", "anchor", "positive", "answer", "document", "passage"} & set(record)
    hint = " (pairs? `routerretriever datasets import` reads them)" if known else ""
    return f"{shown(str(names))}{hint}" if len(str(names)) > 57 else f"{names}{hint}"


def _value(value: Any) -> str:
    return shown(json.dumps(value))
