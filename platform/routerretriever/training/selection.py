"""Which step and scale of a trained adapter become the expert, and whether it is better than the base.

An expert's scale is the share of its adapter that is applied: 0 is the base, 1 is the adapter as trained.
All is decided on held-out queries: on dev, or by cross-validation where labelled queries are few. Among
choices that the evidence cannot tell apart, the one nearest to the base is taken (the one-standard-error
rule: Breiman et al., Classification and Regression Trees, 1984, section 3.4.3). The surer it is that the
best choice gains over the base, the less of a standard error may be given away.

Pure functions of arrays. Shapes: T steps, S scales, Q held-out queries. Values are nDCG@10 from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from routerretriever.types import Values

_RESAMPLES = 5000
MIN_QUERIES = 10
"""Held-out queries below which no test can tell an expert from the base."""


@dataclass(frozen=True)
class HeldOut:
    """How held-out queries were answered at each step of training, by each scale of the adapter."""

    steps: tuple[int, ...]
    scales: tuple[float, ...]
    ndcg_TSQ: Values
    base_Q: Values

    def __post_init__(self) -> None:
        expected = (len(self.steps), len(self.scales), len(self.base_Q))
        assert self.ndcg_TSQ.shape == expected, f"{self.ndcg_TSQ.shape}, not {expected}"


@dataclass(frozen=True)
class Choice:
    """A step and a scale."""

    step: int
    scale: float


@dataclass(frozen=True)
class Verdict:
    """An expert against the base on the same held-out queries: mean paired gain and its 95 % interval."""

    queries: int
    gain: float
    low: float
    high: float
    deployed: bool

    def sentence(self) -> str:
        """One line for people, in nDCG@10 x 100."""
        figures = (
            f"{100 * self.gain:+.1f} nDCG@10, 95 % {100 * self.low:+.1f} to {100 * self.high:+.1f}, "
            f"on {self.queries} held-out queries"
        )
        return f"better than the base: {figures}" if self.deployed else f"no gain over the base: {figures}"

    def as_card(self) -> dict[str, Any]:
        """The figures for the expert's card."""
        return asdict(self) | {"sentence": self.sentence()}


@dataclass(frozen=True)
class Selected:
    """A choice, and what the held-out queries say of it."""

    choice: Choice
    verdict: Verdict


def select(held_out: HeldOut, confidence: float) -> Selected:
    """Choose a step and a scale, and judge them."""
    choice = choose(held_out)
    return Selected(choice, judge_choice(held_out, choice, confidence))


def choose(held_out: HeldOut) -> Choice:
    """The smallest scale, and of its steps the best, within a standard error of the best choice.

    The surer it is that the best choice gains over the base, the smaller a part of that error may be lost
    (``doubt``). The error is that of the paired difference to the best choice, so queries that are hard for
    all do not count.

    Raises:
        AssertionError: there is no query, step or scale.
    """
    assert held_out.ndcg_TSQ.size, "nothing to choose from"
    mean_TS = held_out.ndcg_TSQ.mean(axis=2)
    best = np.unravel_index(np.argmax(mean_TS), mean_TS.shape)
    loss_TSQ = held_out.ndcg_TSQ[best] - held_out.ndcg_TSQ
    may_lose_TS = doubt(held_out.ndcg_TSQ[best] - held_out.base_Q) * standard_error(loss_TSQ)
    allowed_TS = loss_TSQ.mean(axis=2) <= may_lose_TS + 1e-12
    order = sorted(
        np.argwhere(allowed_TS).tolist(), key=lambda ts: (held_out.scales[ts[1]], held_out.steps[ts[0]])
    )
    # Of the steps at the smallest allowed scale the best: fewer steps at one scale are not surely safer.
    smallest = order[0][1]
    steps = [step for step, scale in order if scale == smallest]
    step = max(steps, key=lambda row: (mean_TS[row, smallest], -held_out.steps[row]))
    return Choice(held_out.steps[step], held_out.scales[smallest])


def doubt(gain_Q: Values) -> float:
    """1 for a mean gain of two standard errors or less, which may be luck; 1/2 for four, 1/4 for eight."""
    gain = float(gain_Q.mean())
    return min(1.0, 2 * float(standard_error(gain_Q)) / gain) if gain > 0 else 1.0


def standard_error(values: Values) -> Values:
    """Of the mean over the last axis."""
    count = values.shape[-1]
    if count < 2:
        return np.zeros(values.shape[:-1])
    return np.asarray(values.std(axis=-1, ddof=1) / np.sqrt(count))


def judge(expert_Q: Values, base_Q: Values, confidence: float = 0.9, seed: int = 0) -> Verdict:
    """Is an expert better than the base on the same queries? A paired bootstrap over queries.

    Args:
        expert_Q: the expert's nDCG@10.
        base_Q: the base's.
        confidence: share of the resamples in which the expert must gain.
        seed: of the resampling.
    """
    difference_Q = np.asarray(expert_Q, dtype=np.float64) - base_Q
    count = len(difference_Q)
    assert count, "no held-out queries"
    draws = np.random.default_rng(seed).integers(0, count, (_RESAMPLES, count))
    means = difference_Q[draws].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    gain = float(difference_Q.mean())
    # However little confidence is asked for, what has lost is no better.
    deployed = count >= MIN_QUERIES and gain > 0 and bool((means > 0).mean() >= confidence)
    return Verdict(count, gain, float(low), float(high), deployed)


def judge_choice(held_out: HeldOut, choice: Choice, confidence: float = 0.9) -> Verdict:
    """``judge`` for a choice, on the queries that it was chosen on: a little too kind to the expert."""
    step, scale = held_out.steps.index(choice.step), held_out.scales.index(choice.scale)
    return judge(held_out.ndcg_TSQ[step, scale], held_out.base_Q, confidence)


def join_folds(folds: Sequence[HeldOut]) -> HeldOut:
    """Held-out queries of all folds, at the steps that every fold has reached.

    If there is none, since folds of other lengths ended before their first evaluation was due, at the end of
    each, as if all had ended with the shortest.
    """
    assert folds, "no folds"
    shared = [step for step in folds[0].steps if all(step in fold.steps for fold in folds)]
    parts = [fold.ndcg_TSQ[[fold.steps.index(step) for step in shared]] for fold in folds]
    if not shared:
        shared = [min(fold.steps[-1] for fold in folds)]
        parts = [fold.ndcg_TSQ[-1:] for fold in folds]
    return HeldOut(
        tuple(shared),
        folds[0].scales,
        np.concatenate(parts, axis=2),
        np.concatenate([fold.base_Q for fold in folds]),
    )


def split_folds(
    query_ids: Sequence[str], count: int, groups: Mapping[str, str] | None = None
) -> list[list[str]]:
    """Disjoint folds of about one size, in a fixed random order that does not depend on the given one.

    Args:
        query_ids: the queries.
        count: folds.
        groups: query -> its group, which is in one fold; at least so many groups as folds. Without groups of
            two or more the folds are the same as without this argument.
    """
    order = sorted(query_ids)
    np.random.default_rng(0).shuffle(order)
    members: dict[str, list[str]] = {}
    for query in order:
        members.setdefault(groups[query] if groups else query, []).append(query)
    folds: list[list[str]] = [[] for _ in range(count)]
    for queries in sorted(members.values(), key=len, reverse=True):  # the small ones even out the large
        min(folds, key=len).extend(queries)
    return folds


def advice(held_out: int) -> str:
    """What would help a domain whose expert is not better than the base."""
    return (
        f"More labelled queries help most (this was judged on {held_out}); queries generated from the "
        "documents, or another base encoder, may help too."
    )
