"""Write a BEIR folder from what people have: tables, pairs, TREC and MS MARCO files, folders of texts.

Everything is streamed. Ids that the source has are kept; others come from the text, so that equal texts
become one record and no two collide. ``provenance.json`` tells where all of it came from.
"""

from __future__ import annotations

import html
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import is_zipfile

from routerretriever.datasets import sources
from routerretriever.datasets.files import read_lines
from routerretriever.datasets.issues import raise_error
from routerretriever.datasets.passages import cut
from routerretriever.datasets.reading import HIGHEST_GRADE, Record, mend
from routerretriever.datasets.settings import PassageSettings
from routerretriever.datasets.sources import Source, find_sources
from routerretriever.datasets.tables import Row, read_rows, read_text, suffix, text_of
from routerretriever.datasets.writing import FolderWriter
from routerretriever.errors import DatasetError
from routerretriever.hashing import file_hash


@dataclass(frozen=True)
class Imported:
    """What was read and written."""

    folder: Path
    files: list[tuple[str, str]]
    """File and what it was taken for."""
    counts: dict[str, int]
    judgements: dict[str, int]
    skipped: list[str]
    """Tables whose columns mean nothing here."""

    def told(self) -> str:
        """What was understood, for people."""
        lines = [f"{file}: read as {role}" for file, role in self.files[:10]]
        if len(self.files) > 10:
            lines.append(f"... and {len(self.files) - 10} more files")
        if self.skipped:
            lines.append(f"not read, for their columns mean nothing here: {', '.join(self.skipped[:10])}")
        lines.append(
            f"wrote {self.folder}: {self.counts['documents']} documents, {self.counts['queries']} queries, "
            f"{self.counts['merged']} equal records merged"
        )
        if empty := self.counts["without_text"]:
            lines.append(f"{empty} files without text: are they scanned pages?")
        if not self.judgements:
            lines.append("no judgements in it: add queries and qrels before training or evaluating")
        return "\n".join(lines)


def import_data(
    source: Path, folder: Path, split: str = "train", passage_tokens: int | None = None
) -> Imported:
    """Write a new BEIR folder.

    Args:
        source: a file or a folder.
        folder: the new folder.
        split: of judgements in files that name none.
        passage_tokens: cut the files of a folder of texts into passages of at most so many words.

    Raises:
        DatasetError: the folder exists or cannot be written, the split cannot be a file's name, or something
            cannot be read; names file and line.
    """
    if folder.exists():
        raise DatasetError(f"{folder}: there already, and never written over; name a new folder")
    split = _split_name(split)
    found, unknown = find_sources(source)
    try:
        return _write(found, unknown, source, folder, split, passage_tokens)
    except OSError as error:  # what cannot be read was told as such already
        reason = error.strerror or str(error)
        raise DatasetError(
            f"{folder}: cannot be written ({reason}), nothing was left; make room or name another folder"
        ) from None


def _write(
    found: list[Source],
    unknown: list[Path],
    source: Path,
    folder: Path,
    split: str,
    passage_tokens: int | None,
) -> Imported:
    """Write all of it beside the new folder, which gets its name when it is whole."""
    root = source if source.is_dir() else source.parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        writer = FolderWriter(Path(scratch) / folder.name)
        try:
            for each in found:
                _copy(each, root, writer, split, passage_tokens)
        finally:
            writer.close()
        files = [(_relative(each.path, root), str(each.role)) for each in found]
        skipped = [_relative(path, root) for path in unknown]
        provenance = {
            "source": mend(str(source)),
            "imported_by": "routerretriever datasets import",
            "files": {
                name: {"read_as": role, "sha256": file_hash(each.path)}
                for (name, role), each in zip(files, found, strict=True)
            },
            "not_read": skipped,
            "counts": writer.counts,
            "judgements": writer.judgements,
        }
        text = json.dumps(provenance, indent=2, ensure_ascii=False)
        (writer.folder / "provenance.json").write_text(text + "\n", encoding="utf-8")
        writer.folder.rename(folder)
    return Imported(folder, files, writer.counts, writer.judgements, skipped)


def _copy(source: Source, root: Path, writer: FolderWriter, split: str, passage_tokens: int | None) -> None:
    split = source.split or split
    if source.role in ("corpus", "queries"):
        _copy_records(source, writer)
    elif source.role == "judgements":
        _copy_judgements(source, writer, split)
    elif source.role == "pairs":
        _copy_pairs(source, writer, split)
    elif source.role == "questions":
        _copy_questions(source, writer, split)
    elif source.role == "question set":
        _copy_set(source, writer, split)
    elif source.role == "topics":
        for identifier, text in _topics(source.path):
            writer.query(text, identifier)
    elif source.role == "trec judgements":
        _copy_trec(source.path, writer, split)
    elif source.role == "numbered texts":
        for place, (identifier, text) in _columns(source.path, 2):
            add = writer.query if source.columns == ("queries",) else writer.document
            add(text, identifier=_named(identifier, place))
    else:
        _copy_text(source.path, root, writer, passage_tokens)


def _copy_records(source: Source, writer: FolderWriter) -> None:
    names = sources.IDS, sources.TEXTS, ("title",)
    identifier, text, title = (source.column(each) for each in names)
    used = {identifier, text, title}
    for row in read_rows(source.path):
        own = _named(text_of(row, identifier), row.place) if identifier else None
        content = text_of(row, text or "text")
        metadata = _metadata(row, used)
        if source.role == "queries":
            if title and row.fields.get(title):
                metadata["title"] = row.fields[title]
            writer.query(content, own, metadata)
        else:
            writer.document(content, text_of(row, title) if title else "", own, metadata)


def _copy_judgements(source: Source, writer: FolderWriter, split: str) -> None:
    query, document = source.column(sources.QUERY_IDS), source.column(sources.DOCUMENT_IDS)
    grade = source.column(sources.GRADES)
    assert query
    assert document
    for row in read_rows(source.path):
        value = _grade(text_of(row, grade), row.place) if grade else 1
        writer.judge(split, text_of(row, query), text_of(row, document), value, row.place)


def _copy_pairs(source: Source, writer: FolderWriter, split: str) -> None:
    query = source.column(sources.QUERIES)
    positives = source.columns_in(sources.POSITIVES)
    assert query
    assert positives
    negatives = [
        column for column in source.columns if re.sub(r"_?\d+$", "", column.lower()) in sources.NEGATIVES
    ]
    title, grade = source.column(("title",)), source.column(sources.GRADES)
    kept = {query, title, grade, *negatives}
    for row in read_rows(source.path):
        positive, texts = next(
            ((name, texts) for name in positives if (texts := _texts(row, name))), (positives[0], [])
        )
        asked = text_of(row, query)
        if not asked.strip() or not texts:
            raise DatasetError(f'{row.place}: "{query}" or "{positive}" is empty; fill it in or cut the row')
        metadata = _metadata(row, {positive, *kept})
        asked_id = writer.query(asked)
        value = _grade(text_of(row, grade), row.place) if grade else 1
        for text in texts:
            document = writer.document(text, text_of(row, title) if title else "", metadata=metadata)
            writer.judge(split, asked_id, document, value, row.place)
        for column in negatives:
            for text in _texts(row, column):
                writer.judge(split, asked_id, writer.document(text), 0, row.place)


def _copy_questions(source: Source, writer: FolderWriter, split: str) -> None:
    for row in read_rows(source.path):
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


def _copy_set(source: Source, writer: FolderWriter, split: str) -> None:
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


def _copy_trec(path: Path, writer: FolderWriter, split: str) -> None:
    for line, raw in read_lines(path, raise_error):
        place, columns = f"{path}:{line}", raw.decode(errors="replace").split()
        if len(columns) != 4:
            raise DatasetError(
                f"{place}: {len(columns)} columns; a TREC qrels line has query, 0, document, grade"
            )
        writer.judge(split, columns[0], columns[2], _grade(columns[3], place), place)


def _topics(path: Path) -> Iterator[tuple[str, str]]:
    # <top> with tags that are never closed, or XML: <topic number="1">.
    parts = re.split(r"""(?i)<(?:top|topic\s+number=["']([^"'>]*)["'][^>]*)>""", read_text(path))
    for number, (named, topic) in enumerate(zip(parts[1::2], parts[2::2], strict=True), start=1):
        fields = {
            name.lower(): " ".join(html.unescape(value).split())
            for name, value in re.findall(r"(?is)<(num|title|query|desc)>\s*([^<]*)", topic)
        }
        identifier = named or re.sub(r"(?i)^number:\s*", "", fields.get("num", ""))
        text = (
            fields.get("title")
            or fields.get("query")
            or re.sub(r"(?i)^description:\s*", "", fields.get("desc", ""))
        )
        if not identifier or not text:
            raise DatasetError(f"{path}, topic {number}: no <num> or no <title>; write both")
        yield identifier, text


def _copy_text(path: Path, root: Path, writer: FolderWriter, passage_tokens: int | None) -> None:
    text = _converted(path)
    heading = re.match(r"\s*#\s+(.+)", text)
    title = heading.group(1).strip() if heading else path.stem
    # Other names have no percent sign or space, so no two files share an id.
    name = re.sub(r"[\s%\ud800-\udfff]", _quoted, path.relative_to(root).as_posix())
    document = Record(name, title, text[heading.end() :].strip() if heading else text.strip())
    writer.counts["without_text"] += not document.text
    if passage_tokens is None:
        writer.document(document.text, title, name, {"file": name})
        return
    settings = PassageSettings(tokens=passage_tokens, overlap=passage_tokens // 5)
    for passage in cut(document, settings):
        writer.document(passage.text, title, passage.id, {"file": name, "parent": name})


def _converted(path: Path) -> str:
    """A file's text as Markdown."""
    if suffix(path) in (".md", ".txt", ".rst"):
        return read_text(path)
    try:
        return mend(_pdf_text(path) if suffix(path) == ".pdf" else _markdown(path))
    except Exception as error:  # what broken files raise is of many libraries' kinds
        reason = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
        raise DatasetError(
            f"{path}: cannot be converted to text ({reason}); save it anew or remove it"
        ) from None


def _pdf_text(path: Path) -> str:
    from pdfminer.high_level import extract_text

    logging.getLogger("pdfminer").setLevel(logging.ERROR)  # its warnings are about how pages look
    return str(extract_text(path)).replace("\f", "\n").strip()


def _markdown(path: Path) -> str:
    from markitdown import MarkItDown

    if suffix(path) == ".docx" and not is_zipfile(path):
        raise ValueError("no Word file")  # it would be read as plain text
    return str(MarkItDown(enable_plugins=False).convert_local(str(path)).text_content)


def _columns(path: Path, wanted: int) -> Iterator[tuple[str, list[str]]]:
    for line, raw in read_lines(path, raise_error):
        columns = raw.decode(errors="replace").split("\t")
        if len(columns) != wanted:
            raise DatasetError(
                f"{path}:{line}: {len(columns)} columns, not {wanted}; separate them by one tab"
            )
        yield f"{path}:{line}", columns


def _texts(row: Row, column: str) -> list[str]:
    value: Any = row.fields.get(column)
    if isinstance(value, str):
        return [mend(value)] if value.strip() else []
    if isinstance(value, dict):  # {"text": [...]}, as answers are often kept
        value = value.get("text")
    values = value if isinstance(value, list) else [value]
    return [text for one in values if (text := text_of(Row(row.place, {column: one}), column)).strip()]


def _metadata(row: Row, used: set[str | None]) -> dict[str, Any]:
    """The fields that are not used, and those of an object, or its JSON, that is called metadata."""
    rest = {key: value for key, value in row.fields.items() if key not in used and value is not None}
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


def _grade(text: str, place: str) -> int:
    try:
        number = float(text)
    except ValueError:
        raise DatasetError(
            f"{place}: the grade is not a number, found {text[:60]!r}; write 0, 1, 2"
        ) from None
    if not number.is_integer() or number > HIGHEST_GRADE:
        raise DatasetError(
            f"{place}: the grade {text[:60]!r} is not an integer up to {HIGHEST_GRADE}; write 0, 1, 2"
        )
    return int(number)


def _split_name(split: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", split):
        raise DatasetError(
            f"split: {split!r} cannot be a file's name; write train, dev, test or another word"
        )
    return sources.SPLITS.get(split, split)


def _relative(path: Path, root: Path) -> str:
    return mend(path.relative_to(root).as_posix())


def _quoted(match: re.Match[str]) -> str:
    return f"%{ord(match.group()):02x}"


def _named(identifier: str, place: str) -> str:
    if not identifier:
        raise DatasetError(f"{place}: the id is empty; give every row an id of its own")
    return identifier
