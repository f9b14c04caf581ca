"""Text into the words that the lexical index counts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import accumulate
from operator import add
from typing import Any, NamedTuple

import regex

from routerretriever.datasets.texts import WITH_PARTS
from routerretriever.index.settings import LexicalSettings

_VERSION, _VERSION_OF = 3, {"turkish": 4}

_UNSPACED = re.compile(f"[{WITH_PARTS}]")
_STRETCH = regex.compile(rf"(?P<unspaced>[{WITH_PARTS}][{WITH_PARTS}\p{{M}}]*)|[^{WITH_PARTS}]+")
_MARK = regex.compile(r"\p{M}")
_CHARACTER = regex.compile(r"\P{M}\p{M}*", regex.DOTALL)

# Soft hyphens, joiners and the choice of a glyph are no part of a word's spelling.
_INVISIBLE = r"\u00ad\u200d\u2060\ufe00-\ufe0f\U000e0100-\U000e01ef"
# What normalises together with the character before: marks (those of half-width kana too), and the vowels and
# finals of Korean syllables.
_JOINING = rf"\p{{M}}\u1160-\u11ff\u3131-\u318e\uff9e-\uffdc{_INVISIBLE}"
_CLUSTER = regex.compile(
    rf"(?V1)(?P<settled>[\p{{Decomposition_Type=None}}--[{_JOINING}]]+(?![{_JOINING}]))|.[{_JOINING}]*",
    regex.DOTALL,
)
# Nobody writes 30 marks on a character, and to bring thousands into order takes minutes.
_LEFT_OUT = regex.compile(rf"[{_INVISIBLE}]|(?<=[{_JOINING}]{{30}})[{_JOINING}]")
_SEEN_INVISIBLE = regex.compile(rf"[{_INVISIBLE}]")


class _Patterns(NamedTuple):
    word: Any
    identifier: Any


# Parts of an identifier: ``parse``, ``HTTP`` and ``Header`` in ``parseHTTPHeader``.
_ASCII_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# The same of other scripts' capitals and small letters, each with its marks; what is neither stays together.
_CAPITAL, _SMALL = r"(?:\p{Lu}\p{M}*+)", r"(?:\p{Ll}\p{M}*+)"
_PART = regex.compile(
    rf"(?V1){_CAPITAL}+(?!\p{{Ll}})|{_CAPITAL}?{_SMALL}+|\d+|[[\p{{L}}\p{{N}}\p{{M}}]--[\p{{Lu}}\p{{Ll}}\d]]+"
)
# Marks belong to words; keycaps and circles around characters do not. Without marks, re is quicker.
_PLAIN = _Patterns(re.compile(r"[^\W_]+"), re.compile(r"\w+"))
_MARKED = _Patterns(
    regex.compile(r"[\p{L}\p{N}][\p{L}\p{N}\p{Mn}\p{Mc}]*"),
    regex.compile(r"[\p{L}\p{N}_][\p{L}\p{N}\p{Mn}\p{Mc}_]*"),
)
_STOP_WORDS = {
    "dutch": "DUTCH",
    "english": "EN_PLUS",
    "french": "FRENCH",
    "german": "GERMAN",
    "italian": "ITALIAN",
    "norwegian": "NORWEGIAN",
    "portuguese": "PORTUGUESE",
    "russian": "RUSSIAN",
    "spanish": "SPANISH",
    "swedish": "SWEDISH",
    "turkish": "TURKISH",
}


class Analyzer:
    """Cuts text into words, in one language.

    Words are lower case and stemmed, and the same however a text encodes its characters (NFKC). Where a
    script has no spaces, every character and every pair of neighbours is a word. For code nothing is stemmed,
    and identifiers count whole and in their parts.
    """

    def __init__(self, settings: LexicalSettings) -> None:
        self._code = settings.language == "code"
        self._stop_words = stop_words(settings.language) if settings.stop_words else frozenset()
        self._lower = _lower_turkish if settings.language == "turkish" else str.lower
        self._stem = _no_stem if settings.language in ("code", "none") else _stemmer(settings.language)

    def __call__(self, text: str) -> list[str]:
        """The words of a text in their order, repeated ones repeated."""
        return [word for word, _, _ in self._found(text if _is_normal(text) else _normalized(text))]

    def spans(self, text: str) -> list[tuple[str, int, int]]:
        """Words, each with where it starts and ends in the text."""
        if _is_normal(text):
            return self._found(text)
        normal, starts, stops = _with_places(text)
        return [(word, starts[first], stops[last - 1]) for word, first, last in self._found(normal)]

    def _found(self, text: str) -> list[tuple[str, int, int]]:
        if self._lower is str.lower and not text.isascii():
            text = text.replace("İ", "I")  # Python's small letter of it is an i with two dots
        patterns = _MARKED if not text.isascii() and _MARK.search(text) else _PLAIN
        found = self._identifiers(text, patterns) if self._code else self._words(text, patterns)
        return [each for each in found if each[0] not in self._stop_words]

    def _words(self, text: str, patterns: _Patterns, place: int = 0) -> list[tuple[str, int, int]]:
        """The words of a part of a text that starts at ``place``."""
        found = []
        for match in patterns.word.finditer(text):
            word, start = match.group(), place + match.start()
            if word.isascii() or not _UNSPACED.search(word):
                found.append((self._stem(self._lower(word)), start, place + match.end()))
                continue
            for stretch in _STRETCH.finditer(word):
                part, first = stretch.group(), start + stretch.start()
                if stretch.lastgroup == "unspaced":
                    found += _grams(part, first)
                else:
                    found.append((self._stem(self._lower(part)), first, first + len(part)))
        return found

    def _identifiers(self, text: str, patterns: _Patterns) -> list[tuple[str, int, int]]:
        found = []
        for match in patterns.identifier.finditer(text):
            word, start = match.group(), match.start()
            if _UNSPACED.search(word):
                found += self._words(word, patterns, start)
                continue
            found.append((self._lower(word), start, match.end()))
            parts = list((_ASCII_PART if word.isascii() else _PART).finditer(word))
            if len(parts) > 1:
                found += [
                    (self._lower(part.group()), start + part.start(), start + part.end()) for part in parts
                ]
        return found


@cache
def stop_words(language: str) -> frozenset[str]:
    """A language's words without content, as its documents have them; empty where none are known."""
    from bm25s import stopwords

    known = getattr(stopwords, f"STOPWORDS_{_STOP_WORDS[language]}") if language in _STOP_WORDS else ()
    return frozenset(_stemmer(language)(word) for word in known)


def words_version(language: str) -> int:
    """Part of the key of what is made of a language's words; raise it when they are cut otherwise."""
    return _VERSION_OF.get(language, _VERSION)


def _is_normal(text: str) -> bool:
    return text.isascii() or (unicodedata.is_normalized("NFKC", text) and not _SEEN_INVISIBLE.search(text))


def _normalized(text: str) -> str:
    """NFKC of what is seen of a text."""
    return unicodedata.normalize("NFKC", _LEFT_OUT.sub("", text))


_normalized_cluster = lru_cache(maxsize=10_000)(_normalized)


def _with_places(text: str) -> tuple[str, list[int], list[int]]:
    """A text as ``_normalized`` gives it, and where each character's origin starts and ends in the text."""
    parts: list[str] = []
    starts: list[int] = []
    stops: list[int] = []
    for cluster in _CLUSTER.finditer(text):
        part, (start, stop) = cluster.group(), cluster.span()
        if cluster.lastgroup == "settled":
            starts += range(start, stop)
            stops += range(start + 1, stop + 1)
        else:
            part = _normalized_cluster(part)
            starts += [start] * len(part)
            stops += [stop] * len(part)
        parts.append(part)
    return "".join(parts), starts, stops


def _grams(run: str, start: int) -> list[tuple[str, int, int]]:
    """Every character with its marks, then every pair of neighbours."""
    characters: Sequence[str] = _CHARACTER.findall(run) if _MARK.search(run) else run
    places = [*accumulate(map(len, characters), initial=start)]
    pairs = map(add, characters, characters[1:])
    return [
        *zip(characters, places, places[1:], strict=False),
        *zip(pairs, places, places[2:], strict=False),
    ]


def _lower_turkish(word: str) -> str:
    """Its small i has a dot if the capital has one, as in ``İstanbul`` and ``ISPARTA``."""
    return word.replace("İ", "i").replace("I", "ı").lower()


def _no_stem(word: str) -> str:
    return word


@cache
def _stemmer(language: str) -> Any:
    import Stemmer

    return Stemmer.Stemmer(language).stemWord  # keeps the stems of the last 10,000 words
