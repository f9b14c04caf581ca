"""Passages of long documents: cut, named after their parent, and led back to it (MaxP).

A passage's id is its parent's with ``#`` and a number. Every passage has one, so no two ids collide and the
parent is what stands before the last ``#``. MaxP: Dai and Callan, 2019.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice, pairwise
from math import ceil
from typing import Any

import regex

from routerretriever.datasets.reading import Record
from routerretriever.datasets.settings import PassageSettings
from routerretriever.datasets.texts import WITH_PARTS

# Marks belong to what they stand on: vowels of Hindi and Tamil are marks. Without any, re is quicker.
_PLAIN = re.compile(rf"[{WITH_PARTS}]|[^\W{WITH_PARTS}]+|[^\w\s]")
_MARKED = regex.compile(rf"(?V1)[{WITH_PARTS}]\p{{M}}*|[[\w\p{{M}}]--[{WITH_PARTS}]]+|[^\w\s\p{{M}}]")
_MARK = regex.compile(r"\p{M}")
_ENDS = re.compile(r"[\n\r.!?。！？]")
_STRETCH = 10_000
"""Characters without any of these ends from which a text is cut in windows."""
_WINDOW = 10
"""How many passages a window has room for."""


def count_tokens(text: str) -> int:
    """Words and punctuation marks of a text; of scripts without spaces, and of Hangul, each character."""
    return sum(1 for _ in _tokens(text))


def cut(document: Record, settings: PassageSettings) -> list[Record]:
    """The passages of a document, at least one; each keeps the title and the metadata."""
    texts = [document.text]
    if count_tokens(document.text) > settings.tokens:
        texts = _cut(document.text, settings) or texts
    return [
        Record(f"{document.id}#{number}", document.title, text, document.metadata)
        for number, text in enumerate(texts, start=1)
    ]


def about_how_many(text: str, settings: PassageSettings) -> int:
    """About how many passages ``cut`` makes of a text; much quicker than cutting it."""
    step = settings.tokens - settings.overlap
    return max(1, ceil((count_tokens(text) - settings.overlap) / step))


def join(passages: Sequence[str], settings: PassageSettings) -> str:
    """The text that passages were cut from, each overlap once.

    White space between passages that do not overlap was not kept; a line break stands for it.
    """
    parts = list(passages[:1])
    for before, after in pairwise(passages):
        ends = [token.end() for token in islice(_tokens(after), settings.overlap)]
        shared = next((end for end in reversed(ends) if before.endswith(after[:end])), 0)
        parts.append(after[shared:] if shared else f"\n{after}")
    return "".join(parts)


def parent_of(passage_id: str) -> str:
    """The document that a passage was cut from."""
    return passage_id.rpartition("#")[0]


def number_of(passage_id: str) -> int:
    """A passage's place in its document, from 1."""
    return int(passage_id.rpartition("#")[2])


def best_passages(run: Mapping[str, Mapping[str, float]], depth: int) -> dict[str, dict[str, float]]:
    """Search results over passages as results over documents: the best passage's score, the first ``depth``.

    Search for more passages than ``depth``: several of one document may be found.
    """
    found: dict[str, dict[str, float]] = {}
    for query, scores in run.items():
        best: dict[str, float] = {}
        for passage, score in scores.items():
            parent = parent_of(passage)
            best[parent] = max(score, best.get(parent, score))
        ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))
        found[query] = dict(ranked[:depth])
    return found


def passage_ids(document_id: str, count: int) -> Iterator[str]:
    """The ids of a document's passages."""
    return (f"{document_id}#{number}" for number in range(1, count + 1))


def _tokens(text: str) -> Iterator[Any]:
    """Where they stand, as matches."""
    return _token_pattern(text).finditer(text)


def _token_pattern(text: str) -> Any:
    marked = not text.isascii() and _MARK.search(text)
    return _MARKED if marked else _PLAIN


def _cut(text: str, settings: PassageSettings) -> list[str]:
    if all(len(stretch) < _STRETCH for stretch in _ENDS.split(text)):
        return list(_splitter(settings).chunks(text))
    return list(cut_in_windows(text, settings))


def cut_in_windows(text: str, settings: PassageSettings) -> Iterator[str]:
    """The same passages, in time that grows with the text and not with its square.

    For each passage the splitter reads on to the next end of a line or sentence, however far that is. A
    window's end changes no passage that begins long enough before it; the next window begins with the last of
    these.
    """
    splitter, pattern, start = _splitter(settings), _token_pattern(text), 0
    most = _WINDOW * settings.tokens
    while len(ends := [token.end() for token in islice(pattern.finditer(text, start), most)]) == most:
        safe = ends[-2 * settings.tokens] - start
        found = splitter.chunk_indices(text[start : ends[-1]])
        *kept, (begin, _) = [(begin, passage) for begin, passage in found if begin < safe]
        yield from (passage for _, passage in kept)
        start += begin
    yield from splitter.chunks(text[start:])


@lru_cache(maxsize=8)
def _splitter(settings: PassageSettings) -> Any:
    from semantic_text_splitter import TextSplitter

    return TextSplitter.from_callback(count_tokens, settings.tokens, overlap=settings.overlap)
