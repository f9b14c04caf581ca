"""Which generated queries are kept. Rules are functions of texts and ranks; what is dropped has a reason.

The round trip is that of InPars and GPL's successors in its simplest form: a query must find its own source
document (Alberti et al., "Synthetic QA Corpora Generation with Roundtrip Consistency", 2019).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from routerretriever.datasets.texts import (
    HAN_AND_KANA,
    THAI_AND_LIKE,
    UNSPACED,
    close_groups,
    normal_text,
    scripts,
    without_punctuation,
    words,
)
from routerretriever.generation.prompts import Request
from routerretriever.generation.settings import FilterSettings

Ranks = Callable[[Sequence["Draft"]], Sequence[int | None]]
"""Gives the rank of each query's source document, None where it was not found."""

_UNIT = re.compile(rf"(?P<han>[{HAN_AND_KANA}])|(?P<thai>[{THAI_AND_LIKE}])|[^\s{UNSPACED}]+")
_SHARES = {"han": 0.5, "thai": 0.25, "": 1.0}
_SCRIPT_LETTERS = 8
"""Fewer letters say nothing of a script: names and numbers are the same everywhere."""
_KANA = {"Hiragana", "Katakana"}
"""Japanese is written in both; a query of foreign words has Katakana alone."""


class _Unit(NamedTuple):
    """A word, or a character of a script without spaces."""

    text: str
    share: float
    """Of a word, as ``words`` counts."""


@dataclass(frozen=True)
class Draft:
    """A query that was written, and what was found of it."""

    request: Request
    query: str
    problem: str = ""
    """Why it is dropped; empty while it is kept."""
    rank: int | None = None
    """Of its source document in the round trip, from 1."""

    def dropped(self, problem: str) -> Draft:
        """The same with a reason against it."""
        return replace(self, problem=problem)


def apply_filters(
    drafts: Sequence[Draft],
    real: Iterable[str],
    settings: FilterSettings,
    ranks: Ranks | None,
    teacher: Ranks | None = None,
) -> list[Draft]:
    """All drafts in their order, each kept or with the first reason against it.

    Args:
        drafts: what was written; those with a problem keep it.
        real: queries of people; what equals one of them is dropped.
        settings: the rules.
        ranks: the round trip; None leaves it out.
        teacher: the same by a teacher, which is asked about what the round trip keeps; None leaves it out.
    """
    known = {normal_text(text) for text in real}
    checked = [
        draft if draft.problem else draft.dropped(text_problem(draft, known, settings)) for draft in drafts
    ]
    checked = _without_similar(checked, settings.similarity)
    if ranks is not None:
        checked = _without_unfound(checked, ranks, "source not found")
    if teacher is not None:
        checked = _without_unfound(checked, teacher, "teacher prefers others")
    return checked


def text_problem(draft: Draft, known: set[str], settings: FilterSettings) -> str:
    """What is wrong with a query's text; empty if nothing is."""
    own = words(draft.query)
    if len(own) < settings.min_words:
        return "too short"
    if len(own) > settings.max_words:
        return "too long"
    if _repeats(own):
        return "repeats itself"
    if normal_text(draft.query) in known:
        return "asked by people"
    if settings.same_script and _other_script(draft.query, draft.request.text):
        return "other script"
    if longest_run(draft.query, draft.request.text) >= settings.copied_words:
        return "copied"
    return ""


def longest_run(query: str, document: str) -> float:
    """The most words in a row that a query shares with a document; characters of scripts without spaces are
    parts of a word."""
    asked, there = _units(query), _units(document)
    best = 0.0
    before = [0.0] * (len(there) + 1)
    for unit in asked:
        now = [0.0] * (len(there) + 1)
        for place, other in enumerate(there):
            if unit == other:
                now[place + 1] = before[place] + unit.share
        best = max(best, *now)
        before = now
    return best


def reasons(drafts: Iterable[Draft]) -> dict[str, int]:
    """Reason -> drafts that were dropped for it, the most frequent first."""
    counted = Counter(draft.problem for draft in drafts if draft.problem)
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))


def _without_similar(drafts: Sequence[Draft], similarity: float) -> list[Draft]:
    texts = {f"{number:09d}": draft.query for number, draft in enumerate(drafts) if not draft.problem}
    groups = close_groups(texts, similarity) if len(texts) > 1 else {}
    met: set[str] = set()
    out = []
    for number, draft in enumerate(drafts):
        group = groups.get(f"{number:09d}")
        if group is not None and group in met:
            draft = draft.dropped("near-duplicate")
        elif group is not None:
            met.add(group)
        out.append(draft)
    return out


def _without_unfound(drafts: Sequence[Draft], ranks: Ranks, problem: str) -> list[Draft]:
    out = list(drafts)
    asked = [number for number, draft in enumerate(drafts) if not draft.problem]
    for number, rank in zip(asked, ranks([drafts[each] for each in asked]), strict=True):
        draft = drafts[number]
        out[number] = draft.dropped(problem) if rank is None else replace(draft, rank=draft.rank or rank)
    return out


def _repeats(own: Sequence[str]) -> bool:
    """Whether a small model has run in a circle."""
    return len(own) >= 6 and len({word.lower() for word in own}) <= len(own) / 2


def _other_script(query: str, document: str) -> bool:
    if sum(char.isalpha() for char in query) < _SCRIPT_LETTERS:
        return False
    shares = scripts([document])
    main = next(iter(scripts([query])))
    alike = _KANA if main in _KANA else {main}
    return bool(shares) and sum(shares.get(one, 0.0) for one in alike) < 0.05


def _units(text: str) -> list[_Unit]:
    plain = without_punctuation(text)
    return [_Unit(found.group(), _SHARES[found.lastgroup or ""]) for found in _UNIT.finditer(plain)]
