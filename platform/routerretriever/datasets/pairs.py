"""Rows that hold a query and what answers it: which of their fields is what.

A field holds one text, a list of texts, objects with text, title and id (Tevatron, DPR, MuSiQue), an object
of lists (MS MARCO and SQuAD on the Hugging Face hub), or titles with sentences, and beside them the
titles that a question needs (HotpotQA, 2WikiMultihopQA).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from routerretriever.datasets import sources
from routerretriever.datasets.sources import Source, first_column
from routerretriever.datasets.tables import Row, id_of, list_in, text_of
from routerretriever.errors import DatasetError


class Passage(NamedTuple):
    """A document as a row holds it."""

    text: str
    title: str = ""
    id: str | None = None
    grade: str | None = None
    """Its own grade, where it has one."""


class Pair(NamedTuple):
    """A row: a query, and documents with and without relevance."""

    query: str
    query_id: str | None
    answers: list[Passage]
    """Relevant, unless they have a grade of their own."""
    negatives: list[Passage]
    columns: tuple[str, ...]
    """Where the answers stand."""


class PairColumns:
    """Which columns of a table are what."""

    def __init__(self, source: Source) -> None:
        query = source.column(sources.QUERIES)
        assert query
        self._columns = source.columns
        self.query = query
        self.context = source.column(("input",)) if sources.plain(query) == "instruction" else None
        """What Alpaca's instructions are about."""
        self.answers = sources.answers_in(source.columns)
        """Columns that answer together, the best first."""
        self.graded = source.columns_in(sources.GRADED)
        self.negatives = [
            name for name in source.columns if sources.without_number(name) in sources.NEGATIVES
        ]
        self.facts = source.column(("supporting_facts",))
        """Titles of the paragraphs in ``context`` that a question needs."""
        ids = ("_id", "id") if self.facts or sources.SUPPORTED in self.graded else ()
        self.query_id = source.column((*sources.QUERY_IDS, *ids))
        self.document_id = source.column(sources.DOCUMENT_IDS)
        self.title = source.column(("title",))
        # Beside negatives a score is a teacher's margin.
        self.grade = None if self.negatives else source.column(sources.GRADES)
        self.split = source.column(("split",))

    def read(self, row: Row) -> Pair:
        """What a row says.

        Raises:
            DatasetError: the query or everything that could answer it is empty.
        """
        query = "\n".join(
            text for name in (self.query, self.context) if name and (text := text_of(row, name)).strip()
        )
        columns, answers = self._answers(row)
        if (
            query
            and not answers
            and (name := next((one for one in self.graded if _candidates(row, one)), None))
        ):
            raise DatasetError(
                f'{row.place}: no grade for each of "{name}"; give each text and label: 1 or 0'
            )
        if not query or not answers:
            names = '" or "'.join((self.query, *columns))
            raise DatasetError(f'{row.place}: "{names}" is empty; fill it in or cut the row')
        negatives = [one for name in self.negatives for one in passages(row, name)]
        return Pair(query, id_of(row, self.query_id), answers, negatives, columns)

    def used(self, pair: Pair) -> set[str | None]:
        """The columns that are no metadata of a document."""
        if self.facts or pair.columns == (sources.SUPPORTED,):
            return set(self._columns)  # they tell of the question
        document_id = self.document_id if len(pair.answers) == 1 else None
        return {
            self.query, self.context, *pair.columns, self.query_id, document_id, self.title, self.grade,
            self.split, *self.negatives,
        }  # fmt: skip

    def _answers(self, row: Row) -> tuple[tuple[str, ...], list[Passage]]:
        if self.facts:
            return ("context",), _supported(row, self.facts)
        for name in self.graded:  # a list of candidates says nothing unless each has a grade
            found = _candidates(row, name)
            if found and all(one.grade is not None for one in found):
                return (name,), found
        for names in self.answers:
            if found := [one for name in names for one in passages(row, name)]:
                title = text_of(row, self.title) if self.title else ""
                own = id_of(row, self.document_id) if len(found) == 1 else None
                found = [one._replace(title=one.title or title, id=one.id or own) for one in found]
                return tuple(names), found
        return tuple(next(iter([*self.answers, self.graded]))), []


def passages(row: Row, column: str) -> list[Passage]:
    """The documents of a field; those without text are left out.

    Raises:
        DatasetError: the field holds something else.
    """
    value: Any = row.fields.get(column)
    if isinstance(value, str):
        texts = list_in(value) or [value]
        value = texts if all(isinstance(one, str) for one in texts) else [value]
    if isinstance(value, dict):
        value = list(_transposed(value))
    values = value if isinstance(value, list) else [value]
    return [one for each in values if (one := _passage(Row(row.place, {column: each}), column)).text.strip()]


def _supported(row: Row, facts: str) -> list[Passage]:
    """The paragraphs of ``context``: titles and sentences, relevant where ``facts`` name the title."""
    named, context = row.fields.get(facts), row.fields.get("context")
    titles = named.get("title") if isinstance(named, dict) else named
    if not isinstance(titles, list):
        raise DatasetError(
            f'{row.place}: "{facts}" is no list of titles; write [["title", 0]] or cut the row'
        )
    titles = [one[0] if isinstance(one, list) and one else one for one in titles]
    if isinstance(context, dict):
        heads, bodies = context.get("title"), context.get("sentences")
        if isinstance(heads, list) and isinstance(bodies, list):
            context = [list(pair) for pair in zip(heads, bodies, strict=False)]
    found = []
    for number, one in enumerate(context if isinstance(context, list) else [], start=1):
        if not isinstance(one, list) or len(one) != 2 or not isinstance(one[1], list):
            raise DatasetError(
                f'{row.place}: paragraph {number} of "context" is not a title and a list of sentences; '
                "write both"
            )
        title, body = one
        sentences = (text_of(Row(row.place, {"context": each}), "context").strip() for each in body)
        text = " ".join(filter(None, sentences))
        found.append({"title": title, "text": text, "is_supporting": title in titles})
    return passages(Row(row.place, {"context": found}), "context")


def _candidates(row: Row, column: str) -> list[Passage]:
    """The same of a field that need not hold documents."""
    try:
        return passages(row, column)
    except DatasetError:
        return []


def _passage(row: Row, column: str) -> Passage:
    value = row.fields[column]
    if not isinstance(value, dict):
        return Passage(text_of(row, column))
    held = Row(f'{row.place}, "{column}"', value)
    text = first_column(value, sources.TEXTS)
    if text is None:
        names = ", ".join(map(str, value))[:100]
        raise DatasetError(f"{held.place}: no text among {names}; name it text")
    title, grade = first_column(value, ("title",)), first_column(value, sources.GRADES_INSIDE)
    return Passage(
        text_of(held, text),
        text_of(held, title) if title else "",
        id_of(held, first_column(value, ("_id", "id", *sources.DOCUMENT_IDS))),
        str(value[grade]) if grade and value[grade] is not None else None,
    )


def _transposed(fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """An object of lists as objects; one whose text is no list is itself one."""
    text = first_column(fields, sources.TEXTS)
    if text is None or not isinstance(fields[text], list):
        yield fields
        return
    size = len(fields[text])
    lists = {name: value for name, value in fields.items() if isinstance(value, list) and len(value) == size}
    for number in range(size):
        yield {name: value[number] for name, value in lists.items()}
