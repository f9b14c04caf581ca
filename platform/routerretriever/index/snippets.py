"""The part of a document that shows why it was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from typing import NamedTuple

import regex

from routerretriever.index.words import Analyzer

_REACH = 20_000
"""Characters of a text that are looked at, so that a thousand long results do not take minutes."""
_CHARACTER = regex.compile(r"\X")
"""As it is seen: a letter with its marks, or a whole emoji."""


class Snippet(NamedTuple):
    """A part of a text, and where in it the query's words stand."""

    text: str
    highlights: tuple[tuple[int, int], ...]
    """First and last + 1 character of each word, counted from the start of the part; words that overlap are
    one."""


def snippet(text: str, query: str, analyze: Analyzer, length: int = 240) -> Snippet:
    """The stretch of at most ``length`` characters with most different words of the query.

    It begins at a word. Without any of the words in the first 20,000 characters, it is the beginning of the
    text.
    """
    places = _places(text, set(analyze(query)), analyze)
    best, most = 0, 0
    last, within = 0, Counter[str]()  # the words from the first place to the last
    for first, (start, _, word) in enumerate(places):
        while last < len(places) and places[last][1] <= start + length:
            within[places[last][2]] += 1
            last += 1
        if len(within) > most:
            best, most = start, len(within)
        if last == first:  # longer than the whole part
            last += 1
            continue
        within[word] -= 1
        if not within[word]:
            del within[word]
    if best + length > len(text):
        first, best = best, max(0, len(text) - length)
        while best < first and text[best - 1 : best].strip():
            best += 1  # to the next word, where there are spaces
    stop = _end_of_character(text, best, best + length)
    marks = [(start - best, end - best) for start, end, _ in places if best <= start and end <= stop]
    return Snippet(text[best:stop], _without_overlaps(marks))


def _end_of_character(text: str, start: int, stop: int) -> int:
    """Where the last character ends that is whole in a part of a text."""
    if stop >= len(text) or text[stop].isascii():
        return stop
    *_, last = _CHARACTER.finditer(text, start, stop + 1)
    return last.start() if last.start() > start else stop


def _without_overlaps(marks: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Stretches in order, those that overlap as one: pairs of characters, or an identifier and its parts."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted(marks):
        if found and start < found[-1][1]:
            found[-1] = found[-1][0], max(stop, found[-1][1])
        else:
            found.append((start, stop))
    return tuple(found)


def _places(text: str, wanted: Set[str], analyze: Analyzer) -> list[tuple[int, int, str]]:
    """Where the wanted words start and end in the part of a text that is looked at."""
    seen = text[:_REACH]
    end = len(seen) if seen == text else len(seen) - 1  # the last word may be cut
    return [
        (start, stop, word) for word, start, stop in analyze.spans(seen) if word in wanted and stop <= end
    ]
