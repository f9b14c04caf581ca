"""TREC's files: topics (SGML or XML), documents between ``<DOC>`` tags, judgements; lines of id and text."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

from routerretriever.datasets.reading import Record
from routerretriever.datasets.tables import read_text, text_lines
from routerretriever.errors import DatasetError

TOPIC = re.compile(r"(?i)<top(?:ic)?(?=[\s>])([^>]*)>")
TOPICS_START = re.compile(r"(?i)\s*(<\?xml[^>]*>\s*)?(<topics(?=[\s>])[^>]*>\s*)?<top(?:ic)?(?=[\s>])")
"""The start of a line that begins a topic, though all of an XML file may be on it."""
DOCUMENT = re.compile(r"(?i)\s*<doc>")
JUDGEMENT = re.compile(r"\S+\s+Q?\d+\s+\S+\s+[+-]?\d+(\.\d*)?")
SHORT_JUDGEMENT = re.compile(r"[^\t]+\t[^\t]+\t[+-]?\d+(\.\d*)?")
"""Query, document and grade: a qrels file of BEIR that has lost its header."""

_FIELD = re.compile(
    r"(?is)<(num|number|title|query|question|desc|description|narr|narrative)>(.*?)"
    r"(?=</?[a-z][\w-]*(?:\s[^<>]*)?>|\Z)"  # tags are often never closed; "x < y" is no tag
)
_LABEL = re.compile(r"(?i)^\s*(number|description|narrative|topic):\s*")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")


def topics(path: Path) -> Iterator[Record]:
    """The queries of a topics file; description and narrative are metadata.

    Raises:
        DatasetError: a topic has no number or no text.
    """
    text = re.sub(r"(?s)<!\[CDATA\[(.*?)\]\]>", lambda match: html.escape(match[1]), read_text(path))
    parts = TOPIC.split(text)
    for number, (attributes, topic) in enumerate(zip(parts[1::2], parts[2::2], strict=True), start=1):
        fields: dict[str, str] = {}
        for name, value in _FIELD.findall(topic):
            plain = " ".join(html.unescape(_LABEL.sub("", value)).split())
            fields.setdefault(name.lower(), plain)
        named = re.search(r"""(?i)\b(?:number|num|id)\s*=\s*["']([^"'>]*)["']""", attributes)
        identifier = named[1] if named else fields.get("num") or fields.get("number")
        description = fields.get("desc") or fields.get("description")
        asked = fields.get("title") or fields.get("query") or fields.get("question") or description
        if named and not fields:  # all of it is the query
            asked = _plain(topic)
        if not identifier or not asked:
            raise DatasetError(f"{path}, topic {number}: no <num> or no <title>; write both")
        rest = {
            "description": description,
            "question": fields.get("question"),
            "narrative": fields.get("narr") or fields.get("narrative"),
        }
        yield Record(
            identifier, "", asked, {name: value for name, value in rest.items() if value and value != asked}
        )


def documents(path: Path) -> Iterator[tuple[str, Record]]:
    """Place and document of everything between ``<DOC>`` and ``</DOC>``.

    Raises:
        DatasetError: a document has no ``<DOCNO>``, or the file is not UTF-8.
    """
    lines: list[str] = []
    start = 1
    for number, line in text_lines(path):
        if DOCUMENT.match(line):
            lines, start = [], number
        lines.append(line)
        if re.search(r"(?i)</doc>", line):
            yield f"{path}:{start}", _document(f"{path}:{start}", "\n".join(lines))
            lines = []
    if any(line.strip() for line in lines):
        raise DatasetError(f"{path}:{start}: <DOC> is never closed; write </DOC>, or get the whole file")


def judgements(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """Place, query, document and grade of every line: ``query 0 document grade``, or without the 0.

    Raises:
        DatasetError: a line has other columns, or is not UTF-8.
    """
    wanted = None
    for number, line in text_lines(path):
        columns = line.split("\t") if SHORT_JUDGEMENT.fullmatch(line) else line.split()
        wanted = wanted or (len(columns) if len(columns) in (3, 4) else 4)
        if len(columns) != wanted:
            raise DatasetError(
                f"{path}:{number}: {len(columns)} columns, not {wanted}; a TREC qrels line has query, 0, "
                "document, grade"
            )
        yield f"{path}:{number}", columns[0], columns[-2], columns[-1]


def numbered_texts(path: Path) -> Iterator[tuple[str, str, str]]:
    """Place, id and text of every line (MS MARCO).

    Raises:
        DatasetError: a line has other columns than two, or is not UTF-8.
    """
    for number, line in text_lines(path):
        columns = line.split("\t")
        if len(columns) != 2:
            raise DatasetError(f"{path}:{number}: {len(columns)} columns, not 2; separate them by one tab")
        yield f"{path}:{number}", columns[0], columns[1]


def _document(place: str, text: str) -> Record:
    identifier = re.search(r"(?is)<docno>\s*(.*?)\s*</docno>", text)
    if not identifier or not identifier[1]:
        raise DatasetError(f"{place}: a document without <DOCNO>; write one for each")
    title = re.search(r"(?is)<(title|headline|head)>(.*?)</\1>", text)
    rest = text.replace(identifier[0], "")
    if title:
        rest = rest.replace(title[0], "", 1)
    return Record(identifier[1], _plain(title[2]) if title else "", _plain(rest))


def _plain(text: str) -> str:
    return " ".join(html.unescape(_TAG.sub(" ", text)).split())
