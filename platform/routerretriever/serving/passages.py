"""Documents on their way into a collection: cut into passages, and what the encoder does not read of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from routerretriever.datasets.collection import Document
from routerretriever.datasets.passages import about_how_many, cut
from routerretriever.datasets.settings import PassageSettings
from routerretriever.errors import WrongField


def cut_all(documents: Sequence[Document], settings: PassageSettings, most: int) -> list[list[str]]:
    """The texts that each document is cut into.

    Raises:
        WrongField: they would be more than ``most``; nothing has been cut yet.
    """
    expected = sum(about_how_many(document.text, settings) for document in documents)
    if expected > most:
        raise WrongField(
            "documents",
            f"about {expected} passages are more than {most} in one request; send fewer documents at a time",
        )
    return [[passage.text for passage in cut(document, settings)] for document in documents]


def contents_of(documents: Sequence[Document], passages: Sequence[Sequence[str]] | None) -> list[str]:
    """What is embedded: the documents' contents, or those of all passages in their order."""
    if passages is None:
        return [document.content for document in documents]
    return [
        document._replace(text=text).content
        for document, texts in zip(documents, passages, strict=True)
        for text in texts
    ]


def count_truncated(truncated: Sequence[bool], passages: Sequence[Sequence[str]] | None) -> int:
    """How many documents the encoder read only in part.

    Args:
        truncated: of every text that was embedded, whether it was longer than the encoder reads.
        passages: the texts that each document was cut into; None if each is one text.
    """
    if passages is None:
        return sum(truncated)
    each = iter(truncated)
    return sum(any(list(islice(each, len(texts)))) for texts in passages)


def truncation_hint(settings: PassageSettings | None, tokens: int) -> str:
    """What to do about documents that were read only in part; the encoder reads so many tokens."""
    if settings is None:
        remedy = "create the collection with `passages` to have all of their text searched"
    else:
        remedy = f"passages of {settings.tokens} words are too long for it; create the collection with fewer"
    return f"the encoder reads {tokens} tokens of a text; {remedy}"
