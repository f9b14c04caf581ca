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
from routerretriever.encoder.settings import EncoderSettings

SAMPLE = 2000
"""Documents that are measured: the first ones, spread over the corpus where there are more."""


@dataclass(frozen=True)
class Tokens:
    """How an encoder cuts texts."""

    unit: str
    count: Callable[[Sequence[str]], list[tuple[int, int]]]
    """Texts -> their tokens, and how many of them are unknown to it."""
    limit: int | None
    """Tokens of a document that are read; the rest is cut."""


WORDS = Tokens("words", lambda texts: [(count_tokens(text), 0) for text in texts], None)


@dataclass(frozen=True)
class Lengths:
    """Lengths of some texts."""

    unit: str
    texts: int
    median: float
    highest: int
    cut: int
    """Texts longer than what the encoder reads."""
    unknown_share: float
    """Share of the tokens that the encoder does not know."""


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
            lines.append(
                f"{split} queries: {lengths.texts}, {_told(lengths)}; "
                f"{self.judgements[split]:.1f} relevant documents each"
            )
        lines.append(f"copies: {self.copies} documents have an earlier one's text")
        overlap = ", ".join(f"{name} {count}" for name, count in self.equal_queries.items())
        lines.append(f"equal queries: {overlap or 'none'}")
        shares = ", ".join(f"{name} {share:.0%}" for name, share in list(self.scripts.items())[:4])
        return "\n".join([*lines, f"scripts: {shares or 'none'}", *self.notes()])

    def notes(self) -> list[str]:
        """What the encoder will not see."""
        lengths, found = self.document_lengths, []
        if lengths.cut:
            found.append(f"{lengths.cut} of {lengths.texts} measured documents are cut; set passages")
        if lengths.unknown_share > 0.05:
            share = f"{lengths.unknown_share:.0%} unknown tokens"
            found.append(f"{share}: this encoder does not know the script; choose another")
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
    stride = max(1, contents.survey.documents // SAMPLE)
    texts = [one.content for number, one in enumerate(collection.documents()) if number % stride == 0]
    queries = {split: collection.queries(split) for split in collection.splits()}
    qrels = {split: collection.qrels(split) for split in queries}
    return Statistics(
        documents=contents.survey.documents,
        document_lengths=_measure(texts, tokens),
        query_lengths={split: _measure(list(own.values()), tokens) for split, own in queries.items()},
        judgements={
            split: sum(grade > 0 for judged in own.values() for grade in judged.values()) / max(1, len(own))
            for split, own in qrels.items()
        },
        only_zero={split: len(file.grades) - len(file.relevant) for split, file in contents.files.items()},
        equal_queries={f"{one} in {other}": count for (one, other), count in contents.equal_queries.items()},
        copies=sum(len(group) - 1 for group in contents.survey.copies),
        scripts=scripts(text[:2000] for text in texts),
    )


def tokens_of(settings: EncoderSettings) -> Tokens:
    """The tokens of a base encoder; only its tokenizer is loaded.

    Raises:
        EncoderError: there is no such encoder.
    """
    if settings.name == "fake":
        return WORDS
    from transformers import AutoTokenizer

    from routerretriever.encoder.source import encoder_folder

    tokenizer = AutoTokenizer.from_pretrained(str(encoder_folder(settings)))

    def count(texts: Sequence[str]) -> list[tuple[int, int]]:
        rows = tokenizer(list(texts), add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return [(len(row), sum(token == tokenizer.unk_token_id for token in row)) for row in rows]

    return Tokens("tokens", count, settings.document_max_length)


def _measure(texts: list[str], tokens: Tokens) -> Lengths:
    counts = np.array(tokens.count(texts) or [(0, 0)])
    limit = tokens.limit
    return Lengths(
        unit=tokens.unit,
        texts=len(texts),
        median=float(np.median(counts[:, 0])),
        highest=int(counts[:, 0].max()),
        cut=0 if limit is None else int((counts[:, 0] > limit).sum()),
        unknown_share=float(counts[:, 1].sum() / max(1, counts[:, 0].sum())),
    )


def _told(lengths: Lengths) -> str:
    return f"{lengths.median:.0f} {lengths.unit} in the middle, {lengths.highest} at most"
