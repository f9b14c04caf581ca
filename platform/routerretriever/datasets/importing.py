"""Write a BEIR folder from what people have: tables, pairs, TREC and MS MARCO files, folders of texts.

Everything is streamed. Ids that the source has are kept; others come from the text, so that equal texts
become one record and no two collide. ``provenance.json`` tells where all of it came from.
"""

from __future__ import annotations

import codecs
import json
import logging
import math
import re
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn
from zipfile import is_zipfile

from routerretriever.datasets import sources, trec
from routerretriever.datasets.archives import unpacked
from routerretriever.datasets.checking import check_collection
from routerretriever.datasets.files import SPLIT_WORDS, ZIPPED_TEXTS, known_split
from routerretriever.datasets.pairs import PairColumns
from routerretriever.datasets.passages import cut
from routerretriever.datasets.reading import HIGHEST_GRADE, Record, mend
from routerretriever.datasets.settings import PassageSettings
from routerretriever.datasets.sources import Found, Source, find_sources
from routerretriever.datasets.tables import (
    Row,
    id_of,
    is_absent,
    list_in,
    number_columns,
    number_of,
    read_rows,
    read_text,
    suffix,
    text_of,
)
from routerretriever.datasets.writing import FolderWriter
from routerretriever.errors import DatasetError, first_line
from routerretriever.hashing import file_hash

_NAMELESS = re.compile(r"|Unnamed: \d+|__index_level_\d+__")
"""Columns of row numbers, as pandas writes them."""
_SLIDE = re.compile(r"<!-- Slide number: \d+ -->\n?")
_HEADING = re.compile(r"\s*(?:#\s+(.+)|(?:={3,}[ \t]*\r?\n)?[ \t]*(\S.*)\r?\n={3,}[ \t]*(?=\r?\n|$))")
"""What a text begins with: ``# Title``, or a title underlined as Markdown and reStructuredText do."""
_ENCODING = re.compile(rb"(?i)<(?:meta[^>]*?charset|\?xml[^>]*?encoding)\s*=\s*[\"']?\s*([\w.:-]+)")
"""How an HTML page says in which encoding it is."""
_ISO_2022 = re.compile(r"\x1b\$(?:[@AB]|[()][A-D])")
_AS_BROWSERS = {
    "ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "gb2312": "gb18030",
    "shift_jis": "cp932", "euc_kr": "cp949",
}  # fmt: skip
"""Encodings that pages name for larger ones, as the HTML standard reads them."""
_COMMAND = "routerretriever datasets import"


@dataclass(frozen=True)
class Imported:
    """What was read and written."""

    folder: Path
    files: list[tuple[str, str]]
    """File and what it was taken for."""
    counts: dict[str, int]
    judgements: dict[str, int]
    metadata: dict[str, list[str]]
    """Field of the documents' metadata -> the kinds of its values."""
    skipped: list[str]
    """Tables whose columns mean nothing here."""
    beside: list[str]
    """Other files that were not read."""

    def told(self) -> str:
        """What was understood, for people."""
        lines = [f"{file}: read as {role}" for file, role in self.files[:10]]
        if len(self.files) > 10:
            lines.append(f"... and {len(self.files) - 10} more files")
        if self.skipped:
            lines.append(f"not read, for their columns mean nothing here: {_first(self.skipped)}")
        if self.beside:
            names = [sources.described(Path(name)) for name in self.beside]
            lines.append(f"not read, beside the data: {_first(names)}")
        lines.append(
            f"wrote {self.folder}: {self.counts['documents']} documents, {self.counts['queries']} queries, "
            f"{self.counts['merged']} equal records merged"
        )
        if self.metadata:
            fields = [f"{name} ({' or '.join(kinds)})" for name, kinds in self.metadata.items()]
            lines.append(f"metadata: {_first(fields)}")
        if empty := self.counts["without_text"]:
            lines.append(f"{empty} files without text: are they scanned pages?")
        if not self.counts["documents"]:
            lines.append("no documents in it: give their table columns such as _id and text")
        elif not self.judgements:
            lines.append(
                "no judgements in it: a domain with expert: false makes it searchable; add queries and qrels "
                "before training or evaluating"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class _Options:
    """What a caller wants."""

    root: Path
    split: str
    """Of judgements that name none."""
    passage_tokens: int | None
    relevant_from: float | None


def import_data(
    source: Path,
    folder: Path,
    split: str | None = None,
    passage_tokens: int | None = None,
    relevant_from: float | None = None,
) -> Imported:
    """Write a new BEIR folder.

    Args:
        source: a file, a folder, or a zip or tar archive of one.
        folder: the new folder. An earlier import that fails its check, and is as it was written, is replaced.
        split: of judgements in files that name none; by default train, unless others of them name one.
        passage_tokens: cut the files of a folder of texts into passages of at most so many words.
        relevant_from: make grades of scores: 1 from this score on, 0 below; by default scores are grades.

    Raises:
        DatasetError: the folder exists or cannot be written, the split cannot be a file's name, the score
            is no number, or something cannot be read; names file and line.
    """
    if folder.exists() and not _is_failed(folder):
        raise DatasetError(f"{folder}: there already, and never written over; name a new folder")
    if relevant_from is not None and not math.isfinite(relevant_from):
        raise DatasetError(f"relevant_from: {relevant_from} is no score; give the lowest that is relevant")
    named = _split_name(split or "train")
    try:
        with unpacked(source, folder.parent) as content:
            root = content if content.is_dir() else content.parent
            options = _Options(root, named, passage_tokens, relevant_from)
            found = find_sources(content)
            if split is None:
                _require_splits(found.sources)
            return _write(found, source, folder, options)
    except OSError as error:  # what cannot be read was told as such already
        reason = error.strerror or str(error)
        raise DatasetError(
            f"{folder}: cannot be written ({reason}), nothing was left; make room or name another folder"
        ) from None


def _write(found: Found, source: Path, folder: Path, options: _Options) -> Imported:
    """Write all of it beside the new folder, which gets its name when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        writer = FolderWriter(Path(scratch) / folder.name)
        try:
            read_as = _copy_all(found.sources, writer, options)
        finally:
            writer.close()
        files = [
            (_relative(each.path, options.root), role)
            for each, role in zip(found.sources, read_as, strict=True)
        ]
        skipped = [_relative(path, options.root) for path in found.unknown]
        beside = [_relative(path, options.root) for path in found.beside]
        provenance = {
            "source": mend(str(source)),
            "imported_by": _COMMAND,
            "files": {
                name: {"read_as": role, "sha256": file_hash(each.path)}
                for (name, role), each in zip(files, found.sources, strict=True)
            },
            "not_read": [*skipped, *beside],
            "counts": writer.counts,
            "judgements": writer.judgements,
        }
        text = json.dumps(provenance, indent=2, ensure_ascii=False)
        (writer.folder / "provenance.json").write_text(text + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(Path(scratch) / "replaced")
        writer.folder.rename(folder)
    metadata = {name: sorted(kinds) for name, kinds in writer.metadata.items()}
    return Imported(folder, files, writer.counts, writer.judgements, metadata, skipped, beside)


def _is_failed(folder: Path) -> bool:
    """Whether a folder is an import that fails its check, and nobody changed it since.

    Documents without judgements are a fine import, though no run can learn from them alone.
    """
    try:
        provenance = json.loads(read_text(folder / "provenance.json"))
    except (DatasetError, ValueError):
        return False
    if not isinstance(provenance, dict) or provenance.get("imported_by") != _COMMAND:
        return False
    splits = provenance.get("judgements") or {}
    written = {"corpus.jsonl", "queries.jsonl", "provenance.json", *(f"qrels/{one}.tsv" for one in splits)}
    changed = {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file()
    }
    if changed.keys() != written or max(changed.values()) > changed["provenance.json"]:
        return False
    empty = (provenance.get("counts") or {}).get("documents") == 0
    return bool(splits or empty) and not check_collection(folder, 1).ok


def _copy_all(found: list[Source], writer: FolderWriter, options: _Options) -> list[str]:
    """Write all sources; returns what each was read as.

    Raises:
        DatasetError: a table is flawed, or files of text cannot be read; of these all are named.
    """
    read_as, unreadable = [], []
    for source in found:
        try:
            columns = _copy(source, writer, options)
        except DatasetError as error:
            if source.role != "text":  # what follows in other tables may rest on this one
                raise
            unreadable.append(error)
        else:
            read_as.append(f"{source.role} ({columns})" if columns else str(source.role))
    if unreadable:
        raise sources.all_of(unreadable)
    return read_as


def _copy(source: Source, writer: FolderWriter, options: _Options) -> str:
    """Write one source; returns what its columns were taken for, where that could be asked."""
    if source.role == "pairs":
        return _copy_pairs(source, writer, options)
    if source.role == "queries":
        _copy_queries(source, writer, options)
    elif source.role == "corpus":
        _copy_corpus(source, writer)
    elif source.role == "judgements":
        _copy_judgements(source, writer, options)
    elif source.role == "questions":
        _copy_questions(source, writer, options)
    elif source.role == "question set":
        _copy_set(source, writer, options)
    elif source.role == "topics":
        for topic in trec.topics(source.path):
            writer.query(topic.text, topic.id, topic.metadata, str(source.path))
    elif source.role == "trec documents":
        for place, document in trec.documents(source.path):
            writer.document(document.text, document.title, document.id, None, place)
    elif source.role == "trec judgements":
        for place, query, identifier, grade in trec.judgements(source.path):
            split = source.split or options.split
            writer.judge(split, query, identifier, _grade(grade, place, options), place)
    elif source.role == "numbered texts":
        for place, identifier, text in trec.numbered_texts(source.path):
            named = _named(identifier, place)
            if source.columns == ("queries",):
                writer.query(text, named, None, place)
            else:
                writer.document(text, "", named, None, place)
    else:
        _copy_text(source.path, writer, options)
    return ""


def _copy_corpus(source: Source, writer: FolderWriter) -> None:
    names = sources.IDS, sources.TEXTS, ("title",)
    identifier, text, title = (source.column(each) for each in names)
    used, numbers = {identifier, text, title}, number_columns(source.path)
    for row in read_rows(source.path):
        own = _named(id_of(row, identifier), row.place) if identifier else None
        heading = text_of(row, title) if title else ""
        writer.document(text_of(row, text or "text"), heading, own, _metadata(row, used, numbers), row.place)


def _copy_queries(source: Source, writer: FolderWriter, options: _Options) -> None:
    """Queries, and the ids of documents that a query names."""
    identifier = source.column(sources.IDS)
    relevant, negative = source.column(sources.RELEVANT_IDS), source.column(sources.NEGATIVE_IDS)
    text = source.column(("text", *sources.QUERIES, *sources.TEXTS, "title"))
    assert text
    split = source.column(("split",)) if relevant else None
    judged = {relevant: 1, negative: 0} if relevant else {}
    used, numbers = {identifier, text, split, *judged}, number_columns(source.path)
    for row in read_rows(source.path):
        own = _named(id_of(row, identifier), row.place) if identifier else None
        query = writer.query(text_of(row, text), own, _metadata(row, used, numbers), row.place)
        for column, grade in judged.items():
            for document in _ids(row, column):
                writer.judge(_split_of(row, split, source, options), query, document, grade, row.place)


def _copy_judgements(source: Source, writer: FolderWriter, options: _Options) -> None:
    query, document = sources.judged_columns(source, source.path.as_posix().lower())
    grade, split = source.column(sources.GRADES), source.column(("split",))
    asked = source.column(sources.QUERIES)
    for row in read_rows(source.path):
        value = _grade(row.fields.get(grade), row.place, options) if grade else 1
        one, other = id_of(row, query), id_of(row, document) or ""
        if asked and asked != query and (text := text_of(row, asked)).strip():
            one = writer.query(text, one, None, row.place)
        writer.judge(_split_of(row, split, source, options), one or "", other, value, row.place)


def _copy_pairs(source: Source, writer: FolderWriter, options: _Options) -> str:
    columns, numbers = PairColumns(source), number_columns(source.path)
    met: dict[str, None] = {}
    for row in read_rows(source.path):
        pair = columns.read(row)
        met[" and ".join(pair.columns)] = None
        split = _split_of(row, columns.split, source, options)
        metadata = _metadata(row, columns.used(pair), numbers)
        query = writer.query(pair.query, pair.query_id, None, row.place)
        value = _grade(row.fields.get(columns.grade), row.place, options) if columns.grade else 1
        for one in pair.answers:
            document = writer.document(one.text, one.title, one.id, metadata, row.place)
            own = value if one.grade is None else _grade(one.grade, row.place, options)
            writer.judge(split, query, document, own, row.place)
        for one in pair.negatives:
            document = writer.document(one.text, one.title, one.id, None, row.place)
            writer.judge(split, query, document, 0, row.place)
    grade = f", grade: {columns.grade}" if columns.grade else ""
    return f"query: {columns.query}, document: {' or '.join(met)}{grade}"


def _copy_questions(source: Source, writer: FolderWriter, options: _Options) -> None:
    column = source.column(("split",))
    for row in read_rows(source.path):
        split = _split_of(row, column, source, options)
        paragraphs = row.fields.get("paragraphs")
        for paragraph in paragraphs if isinstance(paragraphs, list) else []:
            context = Row(row.place, paragraph if isinstance(paragraph, dict) else {})
            text, questions = text_of(context, "context"), context.fields.get("qas")
            if not text.strip() or not isinstance(questions, list):
                raise DatasetError(f'{row.place}: a paragraph without "context" or "qas"; write both')
            document = writer.document(text, text_of(row, "title"))
            for question in questions:
                asked = text_of(Row(row.place, question if isinstance(question, dict) else {}), "question")
                if not asked.strip():
                    raise DatasetError(f'{row.place}: a question without "question"; write it or cut it')
                grade = 0 if question.get("is_impossible") else 1
                writer.judge(split, writer.query(asked), document, grade, row.place)


def _copy_set(source: Source, writer: FolderWriter, options: _Options) -> None:
    split = source.split or options.split
    for row in read_rows(source.path):
        queries, corpus, relevant = (row.fields.get(name) for name in ("queries", "corpus", "relevant_docs"))
        if not (isinstance(queries, dict) and isinstance(corpus, dict) and isinstance(relevant, dict)):
            raise DatasetError(f'{row.place}: "queries", "corpus" or "relevant_docs" is not an object by id')
        for add, texts in ((writer.query, queries), (writer.document, corpus)):
            for identifier in texts:
                add(text_of(Row(row.place, texts), identifier), identifier=_named(identifier, row.place))
        for query, documents in relevant.items():
            for document in documents if isinstance(documents, list) else [documents]:
                identifier = text_of(Row(row.place, {query: document}), query)
                writer.judge(split, query, identifier, 1, row.place)


def _copy_text(path: Path, writer: FolderWriter, options: _Options) -> None:
    converted, own_title = _converted(path)
    text, named = _without_front_matter(converted)
    heading = _HEADING.match(text)
    title = (heading[1] or heading[2]).strip() if heading else named or own_title or path.stem
    # Other names have no percent sign or space, so no two files share an id.
    name = re.sub(r"[\s%\udc80-\udcff]", _quoted, path.relative_to(options.root).as_posix())
    document = Record(name, title, text[heading.end() :].strip() if heading else text.strip())
    writer.counts["without_text"] += not document.text
    if options.passage_tokens is None:
        writer.document(document.text, title, name, {"file": name})
        return
    settings = PassageSettings(tokens=options.passage_tokens, overlap=options.passage_tokens // 5)
    for passage in cut(document, settings):
        writer.document(passage.text, title, passage.id, {"file": name, "parent": name})


def _without_front_matter(text: str) -> tuple[str, str]:
    """A text without the YAML block that site generators put before it, and the title in that."""
    block = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", text, re.DOTALL)
    if block is None:
        return text, ""
    title = re.search(r"(?m)^title:[ \t]*([\"']?)(.*?)\1[ \t\r]*$", block[1])
    return text[block.end() :], title[2].strip() if title else ""


def _converted(path: Path) -> tuple[str, str]:
    """A file's text as Markdown, and the title that stands outside of it, as HTML's does."""
    if suffix(path) in (".md", ".markdown", ".txt", ".rst"):
        return _require_utf8(path, read_text(path)), ""
    try:
        text, title = (_pdf_text(path), "") if suffix(path) == ".pdf" else _markdown(path)
    except Exception as error:  # what broken files raise is of many libraries' kinds
        reason = first_line(error)[:200]
        raise DatasetError(
            f"{path}: cannot be converted to text ({reason}); save it anew or remove it"
        ) from None
    text = mend(text)
    if suffix(path) in (".html", ".htm"):
        _require_utf8(path, text)
    return text, mend(" ".join(title.split()))


def _require_utf8(path: Path, text: str) -> str:
    """Refuse what can be read as UTF-8 and is none: UTF-16 without its mark, and ISO 2022 of East Asia."""
    found = ""
    if 100 * text.count("\0") > len(text):  # one now and then is a slip
        found = "many NUL characters, as UTF-16"
    elif _ISO_2022.search(text):
        found = "an escape sequence, as ISO-2022"
    if found:
        raise DatasetError(f"{path}: holds {found} does; save it as UTF-8")
    return text


def _pdf_text(path: Path) -> str:
    from pdfminer.high_level import extract_text

    logging.getLogger("pdfminer").setLevel(logging.ERROR)  # its warnings are about how pages look
    return str(extract_text(path)).replace("\f", "\n").strip()


def _markdown(path: Path) -> tuple[str, str]:
    from markitdown import MarkItDown, StreamInfo

    kind = suffix(path)
    if kind in ZIPPED_TEXTS and not is_zipfile(path):
        raise ValueError(f"no {kind[1:]} file, or one with a password")  # it would be read as plain text
    encoding = "utf-8" if kind == ".ipynb" else _declared_encoding(path)
    told = StreamInfo(charset=encoding)  # without it the encoding is guessed
    found = MarkItDown(enable_plugins=False).convert_local(str(path), stream_info=told)
    return _SLIDE.sub("", str(found.text_content)), str(found.title or "")


def _declared_encoding(path: Path) -> str | None:
    """The encoding that a page names, as browsers take it; None if it names none, or begins with a mark."""
    with path.open("rb") as file:
        start = file.read(4096)
    declared = _ENCODING.search(start)
    if declared is None or start.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return None
    try:
        name = codecs.lookup(declared[1].decode()).name
    except LookupError:
        return None
    # A page whose declaration could be read is in no such encoding, whatever it says.
    return None if name.startswith(("utf-16", "utf-32")) else _AS_BROWSERS.get(name, name)


def _metadata(row: Row, used: set[str | None], numbers: Set[str]) -> dict[str, Any]:
    """The fields that are not used, and those of an object, or its JSON, that is called metadata.

    Args:
        row: a row of a table.
        used: columns that are something else.
        numbers: columns whose texts are numbers, or empty.
    """
    rest = {
        key: number_of(value) if key in numbers else value
        for key, value in row.fields.items()
        if key not in used
        and not is_absent(value)
        and not _NAMELESS.fullmatch(key)
        and not (key in numbers and not value.strip())
    }
    if not rest:
        return rest
    own = rest.get("metadata")
    if isinstance(own, str) and own.startswith("{"):
        try:
            own = json.loads(own)
        except (ValueError, RecursionError):
            return rest
    if not isinstance(own, dict):
        return rest
    return {**own, **{key: value for key, value in rest.items() if key != "metadata"}}


def _grade(value: Any, place: str, options: _Options) -> int:
    text = "" if is_absent(value) else str(value).strip()
    try:
        number = float({"true": 1, "false": 0}.get(text.lower(), text))
    except ValueError:
        raise DatasetError(
            f"{place}: the grade is no number, found {text[:60]!r}; write 0, 1, 2, or give a column that is "
            "no grade another name"
        ) from None
    if options.relevant_from is not None and math.isfinite(number):
        return int(number >= options.relevant_from)
    if not number.is_integer() or number > HIGHEST_GRADE:
        raise DatasetError(
            f"{place}: the grade {text[:60]!r} is not an integer up to {HIGHEST_GRADE}; write 0, 1, 2, or "
            "say from which score on a document is relevant, as in --relevant-from 0.5"
        )
    return int(number)


def _ids(row: Row, column: str | None) -> list[str]:
    value = row.fields.get(column) if column else None
    if isinstance(value, str):
        value = list_in(value) or value
    values = value if isinstance(value, list) else [value]
    return [found for one in values if column and (found := id_of(Row(row.place, {column: one}), column))]


def _split_of(row: Row, column: str | None, source: Source, options: _Options) -> str:
    """The split that a row names, or its file, or the caller.

    Raises:
        DatasetError: the row names something else, which may be held out; names the first of such rows.
    """
    value = text_of(row, column).strip() if column else ""
    if not column or not value:
        return source.split or options.split
    return known_split(value) or _refuse_splits(row, column, source)


def _refuse_splits(row: Row, column: str, source: Source) -> NoReturn:
    """Name all values of a column that are no splits, from the first row that has one."""
    values = (text_of(each, column).strip() for each in read_rows(source.path))
    unknown = dict.fromkeys(repr(value[:40]) for value in values if value and not known_split(value))
    raise DatasetError(
        f'{row.place}: "{column}" names no split that is known: {_first(list(unknown))}; write one of '
        f"{', '.join(SPLIT_WORDS)}, leave it empty, or rename the column"
    )


def _require_splits(found: list[Source]) -> None:
    """Refuse judgements whose file names no split beside others that do: they may be held out."""
    judgements = [one for one in found if one.role in ("judgements", "trec judgements")]
    told = next((one for one in judgements if one.split), None)
    silent = [one for one in judgements if not one.split and not one.column(("split",))]
    if told and silent:
        raise DatasetError(
            f"{silent[0].path}: its name tells no split, as that of {told.path.name} does; put train, dev or "
            "test into it, or say what such files are, as in --split test"
        )


def _split_name(split: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", split):
        raise DatasetError(
            f"split: {split!r} cannot be a file's name; write train, dev, test or another word"
        )
    return known_split(split) or split


def _relative(path: Path, root: Path) -> str:
    return mend(path.relative_to(root).as_posix())


def _quoted(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02x}" for byte in match.group().encode("utf-8", "surrogateescape"))


def _first(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _named(identifier: str | None, place: str) -> str:
    if not identifier:
        raise DatasetError(f"{place}: the id is empty; give every row an id of its own")
    return identifier
