"""An evaluation in words: what routing gains over the base, where that is sure, and where it loses."""

from __future__ import annotations

from routerretriever.evaluation.evaluation import Evaluation
from routerretriever.evaluation.system import Kind, System
from routerretriever.reports.tables import percent

_SOME = 6
"""Test sets named one by one; of more, the number is said."""


def verdict(evaluation: Evaluation) -> list[str]:
    """Sentences for people who read no table; "surely" is the corrected paired test's 5 % level."""
    base = next(iter(evaluation.of_kind(Kind.BASE)), None)
    if base is None:
        return []
    told = [
        _means(evaluation, base),
        _sure(evaluation, base),
        _without_expert(evaluation, base),
        _served(evaluation),
    ]
    return [sentence for sentence in told if sentence]


def _means(evaluation: Evaluation, base: System) -> str:
    ours, plain = evaluation.mean(evaluation.deployed), evaluation.mean(base.name)
    if ours is None or plain is None:
        return ""
    sets = evaluation.with_expert
    where = f"on {sets[0]}" if len(sets) == 1 else f"on the {len(sets)} test sets with an expert"
    found = f"{evaluation.deployed} has an nDCG@10 of {percent(ours)} {where}, the base {percent(plain)}"
    if ours <= plain:
        return f"{found}: experts gain nothing here, so serve the base, with words beside its vectors."
    return f"{found}: a gain of {percent(ours - plain)}."


def _sure(evaluation: Evaluation, base: System) -> str:
    found = {
        name: rivals[base.name] for name, rivals in evaluation.differences.items() if base.name in rivals
    }
    if not found:
        return ""
    better = [name for name, one in found.items() if one.significant and one.mean > 0]
    worse = [name for name, one in found.items() if one.significant and one.mean < 0]
    of = f"of {len(found)} sets"
    return f"Surely better than the base on {_named(better, of)}, surely worse on {_named(worse, of)}."


def _named(sets: list[str], of: str) -> str:
    if not sets:
        return "none"
    return f"{len(sets)} {of}" + (f" ({', '.join(sets)})" if len(sets) <= _SOME else "")


def _without_expert(evaluation: Evaluation, base: System) -> str:
    ours, plain = (evaluation.mean(name, zero_shot=True) for name in (evaluation.deployed, base.name))
    if ours is None or plain is None:
        return ""
    sets = evaluation.zero_shot
    where = f"{sets[0]}, which has no expert" if len(sets) == 1 else f"the {len(sets)} sets without an expert"
    return f"On {where}: {percent(ours)}, the base {percent(plain)}."


def _served(evaluation: Evaluation) -> str:
    served = next((system for system in evaluation.systems if system.served), None)
    if served is None:
        return ""
    figures = [
        f"{percent(mean)} {where}"
        for where, mean in (
            ("with an expert", evaluation.mean(served.name)),
            ("without", evaluation.mean(served.name, zero_shot=True)),
        )
        if mean is not None
    ]
    return (
        f"Searches as they are served, with words beside the vectors ({served.name}): {', '.join(figures)}."
    )
