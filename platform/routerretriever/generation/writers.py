"""Which writer a setting names, and the one that needs no model."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from routerretriever.generation.prompts import Request
from routerretriever.generation.protocol import Writer, Written
from routerretriever.generation.settings import (
    EndpointSettings,
    ExtractSettings,
    GenerationSettings,
)
from routerretriever.hashing import content_hash


def open_writer(settings: GenerationSettings, spent: int = 0) -> Writer:
    """The writer that settings name.

    Args:
        settings: of the generation.
        spent: tokens of its budget that earlier runs have spent.
    """
    if isinstance(settings.writer, EndpointSettings):
        from routerretriever.generation.endpoint import EndpointWriter

        return EndpointWriter(settings, settings.writer, spent)
    if isinstance(settings.writer, ExtractSettings):
        return ExtractWriter(settings.writer, settings.seed)
    from routerretriever.generation.local import LocalWriter

    return LocalWriter(settings, settings.writer)


class ExtractWriter:
    """The words of a document that are rarest in it and longest, in an order of its own."""

    def __init__(self, settings: ExtractSettings, seed: int) -> None:
        self._settings = settings
        self._seed = seed

    def check(self) -> None:
        """Always can."""

    def write(self, requests: Sequence[Request]) -> Iterator[tuple[int, Written]]:
        """Extract the words."""
        for number, request in enumerate(requests):
            counts = Counter(re.findall(r"\w+", request.text.lower()))
            words = sorted(counts, key=lambda word: (counts[word], -len(word), word))[: self._settings.words]
            random.Random(content_hash(self._seed, request.document, request.type)).shuffle(words)
            yield number, Written(" ".join(words))
