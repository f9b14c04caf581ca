"""Documents on their way into a collection: the texts that are embedded, and what is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from routerretriever.datasets.collection import Document
from routerretriever.datasets.passages import about_how_many, cut
from routerretriever.datasets.settings import PassageSettings
from routerretriever.errors import WrongField


@dataclass(frozen=True)
class Texts:
    """What is embedded of some documents; make it with ``texts_of``."""

    contents: list[str]
    """Each with its document's title."""
    passages: list[list[str]] | None = None
    """The texts that each document was cut into; None if they are whole."""
    settings: PassageSettings | None = None
    """How they were cut."""

    def told(self, truncated: Sequence[bool], tokens: int) -> dict[str, Any]:
        """Fields of ``schemas.ChangeResponse``.

        Args:
            truncated: of each content, whether it is longer than the encoder reads.
            tokens: how many the encoder reads.
        """
        each = iter(truncated)
        sizes = [1] * len(self.contents) if self.passages is None else map(len, self.passages)
        found: dict[str, Any] = {"truncated": sum(any(list(islice(each, size))) for size in sizes)}
        if self.passages is not None:
            found["passage_count"] = len(self.contents)
        if found["truncated"]:
            found["hint"] = f"the encoder reads {tokens} tokens of a text; {self._remedy}"
        return found

    @property
    def _remedy(self) -> str:
        if self.settings is None:
            return "create the collection with `passages` to have all of a document searched"
        return (
            f"passages of {self.settings.tokens} words are too long; create the collection with shorter ones"
        )


def texts_of(documents: Sequence[Document], settings: PassageSettings | None, most: int) -> Texts:
    """Cut documents, if their collection does.

    Args:
        documents: whole.
        settings: how they are cut; None if they are not.
        most: passages that one request may have.

    Raises:
        WrongField: they would be cut into more; nothing has been cut yet.
    """
    if settings is None:
        return Texts([document.content for document in documents])
    expected = sum(about_how_many(document.text, settings) for document in documents)
    if expected > most:
        remedy = "send fewer documents at a time"
        if len(documents) == 1:
            remedy = "send it in parts, or to a collection with longer passages"
        raise WrongField("documents", f"about {expected} passages are more than {most}; {remedy}")
    passages = [cut(document, settings) for document in documents]
    return Texts(
        [passage.content for own in passages for passage in own],
        [[passage.text for passage in own] for own in passages],
        settings,
    )
