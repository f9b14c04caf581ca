"""Which texts are the same, or nearly, and how any text reaches a terminal as text."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
import regex
from numpy.typing import NDArray

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
_PERMUTATIONS, _BANDS = 128, 32
"""Of MinHash; texts are compared if all of a band is equal."""
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
    ids = list(dict.fromkeys(identifier for own in labels for identifier in own))
    groups = _Groups(ids)
    for own in labels:
        first: dict[str, str] = {}
        for identifier, label in own.items():
            groups.join(identifier, first.setdefault(label, identifier))
    return groups.names(ids)


def close_groups(texts: Mapping[str, str], similarity: float = 0.7) -> dict[str, str]:
    """Id -> one id of its group; texts that share most of their words are in one group, chains included.

    Groups come from MinHash signatures over pairs of letters' trigrams in words (Broder, 1997), bucketed by
    locality-sensitive hashing. What is found is close to the Jaccard similarity, not equal to it.

    Args:
        texts: texts by id.
        similarity: Jaccard similarity of character trigrams from which two texts belong together.
    """
    group = equal_groups(texts)
    ids = sorted(set(group.values()))
    close = _Groups(ids)
    signatures_NP = signatures_of([texts[identifier] for identifier in ids])
    least = next(equal for equal in range(_PERMUTATIONS + 1) if equal / _PERMUTATIONS >= similarity)
    for band in np.split(signatures_NP, _BANDS, axis=1):
        for bucket in _buckets(band):
            names = close.names(ids[row] for row in bucket)
            if len(set(names.values())) > 1:
                for one, other in close_pairs(bucket, signatures_NP, least):
                    close.join(ids[one], ids[other])
    names = close.names(ids)
    return {identifier: names[first] for identifier, first in group.items()}


def signatures_of(texts: Sequence[str]) -> NDArray[np.uint32]:
    """MinHash signatures [N, P] of texts."""
    from rensa import RMinHash

    signatures_NP = np.empty((len(texts), _PERMUTATIONS), dtype=np.uint32)
    for row, text in enumerate(texts):
        signature = RMinHash(num_perm=_PERMUTATIONS, seed=42)
        signature.update(_shingles(text))
        signatures_NP[row] = signature.digest()
    return signatures_NP


def _buckets(band: NDArray[np.uint32]) -> Iterator[NDArray[np.int64]]:
    """Rows of a part of all signatures that are equal, where several are."""
    keys = np.ascontiguousarray(band).view(f"V{band.shape[1] * band.itemsize}").ravel()
    _, bucket, count = np.unique(keys, return_inverse=True, return_counts=True)
    shared = np.flatnonzero(count[bucket] > 1)
    ordered = shared[np.argsort(bucket[shared], kind="stable")]
    if len(ordered):
        yield from np.split(ordered, np.flatnonzero(np.diff(bucket[ordered])) + 1)


def close_pairs(
    rows: NDArray[np.int64], signatures_NP: NDArray[np.uint32], least: int
) -> Iterator[tuple[int, int]]:
    """Pairs of rows whose signatures agree in ``least`` places at least: enough of them to connect all such.

    What has been reached is compared with what has not, so that many texts that are all alike take one look.
    """
    left = rows
    reached: list[np.int64] = []
    while len(left):
        if not reached:
            reached, left = [left[0]], left[1:]
        row = reached.pop()
        is_close = (signatures_NP[left] == signatures_NP[row]).sum(axis=1) >= least
        yield from ((int(row), int(other)) for other in left[is_close])
        reached += list(left[is_close])
        left = left[~is_close]


class _Groups:
    """Groups of ids that grow together; the first id of each is its name."""

    def __init__(self, ids: Iterable[str]) -> None:
        self._parent = {identifier: identifier for identifier in ids}

    def join(self, one: str, other: str) -> None:
        """Make one group of two ids' groups."""
        low, high = sorted((self._name(one), self._name(other)))
        self._parent[high] = low

    def names(self, ids: Iterable[str]) -> dict[str, str]:
        """Id -> the name of its group."""
        return {identifier: self._name(identifier) for identifier in ids}

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
