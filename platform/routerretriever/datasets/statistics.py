"""A page of figures about a collection: lengths, judgements, overlap, copies, scripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from routerretriever.datasets.collection import Collection
from routerretriever.datasets.passages import count_tokens
from routerretriever.datasets.texts import scripts
from routerretriever.encoder.card import read_card
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.encoder.source import FAKE, encoder_folder
from routerretriever.encoder.tokens import CHARACTERS_PER_TOKEN
from routerretriever.errors import EncoderError

SAMPLE = 2000
"""Documents that are measured, spread over the corpus."""
_NOTED_SAMPLE = 500
_NOTED_FROM = 100_000
"""Before a run fewer are measured, spread over so many of the first: large corpora are not read once more."""


@dataclass(frozen=True)
class Tokens:
    """How an encoder cuts texts."""

    unit: str
    count: Callable[[Sequence[str]], list[tuple[int, int]]]
    """Texts -> their tokens, and how many of them are unknown to it."""
    limit: int | None = None
    """Tokens of a document that are read; the rest is cut."""
    query_limit: int | None = None
    """Those of a query."""
    characters: int | None = None
    """Only so many of a text are counted; None where all are."""
    special: int = 0
    """Tokens of a text that stand for none of its words."""


_UNKNOWN_SHARE = 0.05
_UNREADABLE_SHARE = 0.95
"""With more unknown tokens than this, texts have vectors that say nothing of them."""
WORDS = Tokens("words", lambda texts: [(count_tokens(text), 0) for text in texts])


@dataclass(frozen=True)
class Lengths:
    """Lengths of some texts."""

    unit: str
    texts: int
    median: float
    highest: int
    """Of the longest text, or of what was counted of it."""
    highest_is_more: bool
    """Whether a text was too long to be counted to its end."""
    limit: int | None
    """What the encoder reads of one; None where all of it is read."""
    cut: int
    """Texts longer than what the encoder reads."""
    unknown_share: float
    """Share of the words' tokens that the encoder does not know; special ones are left out."""


@dataclass(frozen=True)
class Statistics:
    """Figures of a collection."""

    documents: int
    document_lengths: Lengths
    query_lengths: dict[str, Lengths]
    """By split."""
    judgements: dict[str, float]
    """Split -> relevant documents a query, on average."""
    only_zero: dict[str, int]
    """Split -> queries judged 0 only."""
    equal_queries: dict[str, int]
    copies: int
    scripts: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """The figures for programs."""
        return asdict(self)

    def page(self) -> str:
        """The figures for people; see ``notes`` for what to act on."""
        lines = [f"documents: {self.documents}, {_told(self.document_lengths)}"]
        for split, lengths in self.query_lengths.items():
            line = (
                f"{split} queries: {lengths.texts}, {_told(lengths)}; "
                f"{self.judgements[split]:.1f} relevant documents each"
            )
            lines.append(line + (f"; {zero} judged only 0" if (zero := self.only_zero.get(split)) else ""))
        lines.append(f"copies: {self.copies} documents have an earlier one's text")
        overlap = ", ".join(f"{name} {count}" for name, count in self.equal_queries.items())
        lines.append(f"equal queries: {overlap or 'none'}")
        shares = ", ".join(f"{name} {share:.0%}" for name, share in list(self.scripts.items())[:4])
        return "\n".join([*lines, f"scripts: {shares or 'none'}", *self.notes()])

    def notes(self) -> list[str]:
        """What the encoder will not see."""
        found = _notes(self.document_lengths)
        for split, lengths in self.query_lengths.items():
            if lengths.cut:
                found.append(
                    f"{lengths.cut} of {lengths.texts} {split} queries are longer than is read of them"
                )
        return found


def describe(folder: Path, tokens: Tokens | None = None) -> Statistics:
    """Measure a collection.

    Args:
        folder: a BEIR folder.
        tokens: how lengths are counted; by default in words.

    Raises:
        DatasetError: the collection cannot be read.
    """
    tokens = tokens or WORDS
    collection = Collection("collection", folder)
    contents = collection.require(None)
    texts = _sample(collection, contents.survey.documents, SAMPLE)
    queries = {split: collection.queries(split) for split in collection.splits()}
    qrels = {split: collection.qrels(split) for split in queries}
    return Statistics(
        documents=contents.survey.documents,
        document_lengths=_measure(texts, tokens, tokens.limit),
        query_lengths={
            split: _measure(list(own.values()), tokens, tokens.query_limit) for split, own in queries.items()
        },
        judgements={
            split: sum(grade > 0 for judged in own.values() for grade in judged.values()) / max(1, len(own))
            for split, own in qrels.items()
        },
        only_zero={split: len(file.grades) - len(file.relevant()) for split, file in contents.files.items()},
        equal_queries={f"{one} in {other}": count for (one, other), count in contents.equal_queries.items()},
        copies=sum(len(group) - 1 for group in contents.survey.copies),
        scripts=scripts(text[:2000] for text in texts),
    )


def reading_notes(collection: Collection, tokens: Tokens) -> list[str]:
    """What an encoder will not see of a collection's documents, or of its passages.

    Raises:
        DatasetError: the collection cannot be read.
        EncoderError: the encoder knows next to no word of it.
    """
    documents = min(collection.require(None).survey.documents, _NOTED_FROM)
    lengths = _measure(_sample(collection, documents, _NOTED_SAMPLE), tokens, tokens.limit)
    if lengths.unknown_share > _UNREADABLE_SHARE:
        raise EncoderError(
            f"encoder.name: {lengths.unknown_share:.0%} of the tokens in {collection.folder} are unknown to "
            "this encoder; choose one of that language or script, or look at the files of its tokenizer"
        )
    return _notes(lengths)


def tokens_of(settings: EncoderSettings) -> Tokens:
    """The tokens of what encodes documents, special ones among them; only its tokenizer is loaded.

    Raises:
        EncoderError: there is no such encoder, or it has no tokenizer.
    """
    if settings.name == FAKE:
        return WORDS
    from routerretriever.encoder.files import read_tokenizer

    reader = settings.for_documents()
    tokenizer = read_tokenizer(encoder_folder(reader), reader)
    known = read_card(settings).settings

    def count(texts: Sequence[str]) -> list[tuple[int, int]]:
        if not texts:
            return []
        rows = tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        return [(len(row), sum(token == tokenizer.unk_token_id for token in row)) for row in rows]

    # Another encoder's tokens say nothing about where queries are cut.
    query_limit = None if settings.documents else known.query_max_length
    most = max(filter(None, (known.document_max_length, known.query_max_length)))
    return Tokens(
        "tokens",
        count,
        known.document_max_length,
        query_limit,
        most * CHARACTERS_PER_TOKEN,
        tokenizer.num_special_tokens_to_add(),
    )


def _sample(collection: Collection, documents: int, wanted: int) -> list[str]:
    stride = max(1, documents // wanted)
    limit = documents // stride if documents == _NOTED_FROM else None
    return [one.content for one in collection.documents(stride, limit)]


def _notes(lengths: Lengths) -> list[str]:
    found = []
    if lengths.cut:
        cut = f"{lengths.cut} of {lengths.texts} measured documents are cut at {lengths.limit} {lengths.unit}"
        found.append(f"{cut}; set passages to read all of them")
    if lengths.unknown_share > _UNKNOWN_SHARE:
        share = f"{lengths.unknown_share:.0%} unknown tokens"
        found.append(f"{share}: this encoder knows little of the language or script; choose another")
    return found


def _measure(texts: list[str], tokens: Tokens, limit: int | None) -> Lengths:
    # A book is not tokenised to its end for what is read of it.
    counts = np.array(tokens.count([text[: tokens.characters] for text in texts]) or [(0, 0)])
    words = int(counts[:, 0].sum()) - tokens.special * len(texts)
    return Lengths(
        unit=tokens.unit,
        texts=len(texts),
        median=float(np.median(counts[:, 0])),
        highest=int(counts[:, 0].max()),
        highest_is_more=tokens.characters is not None and any(len(one) > tokens.characters for one in texts),
        limit=limit,
        cut=0 if limit is None else int((counts[:, 0] > limit).sum()),
        unknown_share=float(counts[:, 1].sum() / max(1, words)),
    )


def _told(lengths: Lengths) -> str:
    highest = f"{lengths.highest} at most"
    if lengths.highest_is_more:
        highest = f"the longest has at least {lengths.highest}"
    return f"{lengths.median:.0f} {lengths.unit} in the middle, {highest}"
