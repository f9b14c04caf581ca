"""Which texts are the same, or nearly, and how any text reaches a terminal as text."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import regex

HAN_AND_KANA = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
THAI_AND_LIKE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
"""Thai, Lao, Myanmar and Khmer."""
UNSPACED = HAN_AND_KANA + THAI_AND_LIKE
"""Ranges of the scripts that are written without spaces."""
WITH_PARTS = f"{UNSPACED}\uac00-\ud7af"
"""Those and Hangul, which has spaces, but whose words carry particles: parts of a word say something."""
_WORD = re.compile(rf"[{HAN_AND_KANA}]{{1,2}}|[{THAI_AND_LIKE}]{{1,4}}|[^\s{UNSPACED}]+")
_LETTERS = regex.compile(r"[\p{L}\p{N}_][\p{L}\p{N}\p{M}_]*")  # vowels of Hindi and Tamil are marks
_JOINERS = "\u200c\u200d"
"""Part letters of Persian, and join emoji."""
_CONTROL = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def normal_text(text: str) -> str:
    """A text without its case, spacing and encoding of characters; texts that agree in it ask the same."""
    return " ".join(_one_spelling(text).casefold().split())


def words(text: str) -> list[str]:
    """What stands between spaces; where a script has none, so many characters as a word has on average: two,
    or four where vowels and tones are characters too."""
    return _WORD.findall(text)


def without_punctuation(text: str) -> str:
    """A text's letters and numbers with their marks, in small letters, however the text encodes them."""
    return " ".join(_LETTERS.findall(_one_spelling(text).lower()))


def first_words(text: str, count: int) -> str:
    """The beginning of a text, of so many words at most, on one line."""
    line = " ".join(text.split())
    end = 0
    for word in islice(_WORD.finditer(line), count):
        end = word.end()
    return line[:end]


def equal_groups(texts: Mapping[str, str]) -> dict[str, str]:
    """Id -> the first id (by order of ids) whose text agrees as a ``normal_text``."""
    first: dict[str, str] = {}
    for identifier in sorted(texts):
        first.setdefault(normal_text(texts[identifier]), identifier)
    return {identifier: first[normal_text(text)] for identifier, text in texts.items()}


def joined_groups(*labels: Mapping[str, str]) -> dict[str, str]:
    """Id -> the first id (by order of ids) of its group: of all with a label in common, chains included.

    Args:
        labels: id -> label, once for each way to belong together; an id may lack any of them.
    """
    groups = _Groups(identifier for own in labels for identifier in own)
    for own in labels:
        first: dict[str, str] = {}
        for identifier, label in own.items():
            groups.join(identifier, first.setdefault(label, identifier))
    return groups.names()


def close_groups(texts: Mapping[str, str], similarity: float = 0.7) -> dict[str, str]:
    """Id -> one id of its group; texts that share most of their words are in one group, chains included.

    Groups come from MinHash signatures over pairs of letters' trigrams in words (Broder, 1997), bucketed by
    locality-sensitive hashing. What is found is close to the Jaccard similarity, not equal to it.

    Args:
        texts: texts by id.
        similarity: Jaccard similarity of character trigrams from which two texts belong together.
    """
    from rensa import RMinHash, RMinHashLSH

    lsh = RMinHashLSH(threshold=similarity, num_perm=128, num_bands=32)
    group = equal_groups(texts)
    ids = sorted(set(group.values()))
    close = _Groups(ids)
    signatures: list[Any] = []
    for number, identifier in enumerate(ids):
        signature = RMinHash(num_perm=128, seed=42)
        signature.update(_shingles(texts[identifier]))
        for other in lsh.query(signature):
            if signature.jaccard(signatures[other]) >= similarity:
                close.join(ids[other], identifier)
        lsh.insert(number, signature)
        signatures.append(signature)
    names = close.names()
    return {identifier: names[first] for identifier, first in group.items()}


class _Groups:
    """Groups of ids that grow together; the first id of each is its name."""

    def __init__(self, ids: Iterable[str]) -> None:
        self._parent = {identifier: identifier for identifier in ids}

    def join(self, one: str, other: str) -> None:
        """Make one group of two ids' groups."""
        low, high = sorted((self._name(one), self._name(other)))
        self._parent[high] = low

    def names(self) -> dict[str, str]:
        """Id -> the name of its group."""
        return {identifier: self._name(identifier) for identifier in self._parent}

    def _name(self, identifier: str) -> str:
        parent = self._parent
        while parent[identifier] != identifier:
            parent[identifier] = parent[parent[identifier]]
            identifier = parent[identifier]
        return identifier


def printable(text: str) -> str:
    """A text as a terminal can show it: on one line, without control or direction characters.

    Markup of the terminal library is the printer's business (``rich.markup.escape`` or ``markup=False``).
    """
    shown = (" " if char.isspace() else _shown(char) for char in text)
    return re.sub(r" {2,}", " ", "".join(shown)).strip()


def printable_lines(text: str) -> str:
    """The same for each line of a text; indents stay."""
    lines = text.split("\n")
    return "\n".join(line[: len(line) - len(line.lstrip(" "))] + printable(line) for line in lines)


def scripts(texts: Iterable[str]) -> dict[str, float]:
    """Script -> share of the letters, the largest first; from the characters' Unicode names."""
    characters: Counter[str] = Counter()
    for text in texts:
        characters.update(_one_spelling(text))
    counts: Counter[str] = Counter()
    for char, count in characters.items():
        if char.isalpha():
            name = "LATIN" if char.isascii() else unicodedata.name(char, "UNKNOWN")
            counts[name.split()[0].split("-")[0]] += count
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {script.capitalize(): count / total for script, count in ordered}


def _one_spelling(text: str) -> str:
    """A text whose characters are encoded in one way, as indexes have them (NFKC)."""
    return text if text.isascii() else unicodedata.normalize("NFKC", text)


def _shown(char: str) -> str:
    if unicodedata.category(char) not in _CONTROL or char in _JOINERS:
        return char
    return "\ufffd" if unicodedata.category(char) == "Cs" else f"\\u{ord(char):04x}"


def _shingles(text: str) -> list[str]:
    padded = f" {normal_text(text)} "
    return [padded[start : start + 3] for start in range(max(1, len(padded) - 2))]
