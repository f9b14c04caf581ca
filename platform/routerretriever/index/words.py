"""Text into the words that the lexical index counts."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Any

from routerretriever.index.settings import LexicalSettings

# Scripts that are written without spaces: kana, Han, Thai, Lao, Myanmar, Khmer. Hangul has spaces, but its
# words carry their particles, so that parts of a word must be found, too.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
    "\uf900-\ufaff\U00020000-\U0003134f]+"
)
_WORD = re.compile(r"[^\W_]+")
_IDENTIFIER_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_A-Za-z]+")
_IDENTIFIER = re.compile(r"\w+")
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

    Words are lower case and stemmed. Where a script has no spaces, every character and every pair of
    neighbours is a word. For code nothing is stemmed, and identifiers count whole and in their parts.
    """

    def __init__(self, settings: LexicalSettings) -> None:
        self._code = settings.language == "code"
        self._stop_words = stop_words(settings.language) if settings.stop_words else frozenset()
        self._stem = _no_stem if settings.language in ("code", "none") else _stemmer(settings.language)

    def __call__(self, text: str) -> list[str]:
        """The words of a text in their order, repeated ones repeated."""
        return [word for word, _, _ in self.spans(text)]

    def spans(self, text: str) -> list[tuple[str, int, int]]:
        """Words, each with where it starts and ends in the text."""
        if not text.isascii():
            normal = unicodedata.normalize("NFKC", text)
            text = normal if len(normal) == len(text) else text  # places must stay what they are
        found = self._identifiers(text) if self._code else self._words(text)
        return [each for each in found if each[0] not in self._stop_words]

    def _words(self, text: str) -> list[tuple[str, int, int]]:
        found = []
        for match in _WORD.finditer(text):
            word, start = match.group(), match.start()
            if word.isascii():
                found.append((self._stem(word.lower()), start, match.end()))
                continue
            last = 0
            for run in _UNSPACED.finditer(word):
                if run.start() > last:
                    found.append(
                        (self._stem(word[last : run.start()].lower()), start + last, start + run.start())
                    )
                found += _grams(run.group(), start + run.start())
                last = run.end()
            if last < len(word):
                found.append((self._stem(word[last:].lower()), start + last, match.end()))
        return found

    def _identifiers(self, text: str) -> list[tuple[str, int, int]]:
        found = []
        for match in _IDENTIFIER.finditer(text):
            word, start = match.group(), match.start()
            if _UNSPACED.search(word):
                found += (
                    self._words(word)
                    if start == 0
                    else [(gram, start + first, start + last) for gram, first, last in self._words(word)]
                )
                continue
            found.append((word.lower(), start, match.end()))
            parts = list(_IDENTIFIER_PART.finditer(word))
            if len(parts) > 1:
                found += [(part.group().lower(), start + part.start(), start + part.end()) for part in parts]
        return found


def stop_words(language: str) -> frozenset[str]:
    """A language's words without content, as its documents have them; empty where none are known."""
    from bm25s import stopwords

    known = getattr(stopwords, f"STOPWORDS_{_STOP_WORDS[language]}") if language in _STOP_WORDS else ()
    return frozenset(_stemmer(language)(word) for word in known)


def _grams(run: str, start: int) -> list[tuple[str, int, int]]:
    singles = [(char, start + place, start + place + 1) for place, char in enumerate(run)]
    pairs = [(run[place : place + 2], start + place, start + place + 2) for place in range(len(run) - 1)]
    return singles + pairs


def _no_stem(word: str) -> str:
    return word


@cache
def _stemmer(language: str) -> Any:
    import Stemmer

    return Stemmer.Stemmer(language).stemWord  # keeps the stems of the last 10,000 words
