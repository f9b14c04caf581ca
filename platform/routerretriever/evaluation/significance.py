"""Is one system better than another, or luckier? Paired tests over the queries of a test set."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from routerretriever.types import Values

_RESAMPLES = 4999
_LEAST = 2 / (_RESAMPLES + 1)
"""The least p-value of so many resamples."""
_RESAMPLES_A_COMPARISON = 80
"""With so many the least p-value, times the number of comparisons, is half of the 5 % level."""

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval (percentile bootstrap)."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Mean paired difference, its 95 % interval (bootstrap), and the p-value (randomisation test)."""

    mean: float
    low: float
    high: float
    p_value: float
    adjusted_p_value: float = 1.0
    """Corrected for the number of comparisons in the table (Holm's method)."""

    @property
    def significant(self) -> bool:
        """At the 5 % level, corrected for the number of comparisons."""
        return self.adjusted_p_value < 0.05


def compare_all(pairs: Mapping[K, tuple[Values, Values]]) -> dict[K, Difference]:
    """Compare many pairs of systems, and correct the p-values for their number (Holm 1979).

    Of many pairs, those with the least p-value are tested again with more resamples; else none of them could
    be significant.
    """
    found = {key: compare(ours, theirs) for key, (ours, theirs) in pairs.items()}
    resamples = _RESAMPLES_A_COMPARISON * len(pairs)
    if resamples > _RESAMPLES:
        for key, difference in found.items():
            if difference.p_value <= _LEAST:
                ours, theirs = pairs[key]
                found[key] = replace(difference, p_value=_p_value(ours - theirs, resamples))
    adjusted = holm([difference.p_value for difference in found.values()])
    return {
        key: replace(difference, adjusted_p_value=p_value)
        for (key, difference), p_value in zip(found.items(), adjusted, strict=True)
    }


def mean_interval(samples: Sequence[Values], seed: int = 0) -> Interval:
    """The mean of means over several sets of queries; queries are resampled within their set.

    Args:
        samples: a measure per query [Q] of each set, at least one set with at least one query.
        seed: of the resampling.
    """
    random = np.random.default_rng(seed)
    drawn = [
        values[random.integers(0, len(values), (_RESAMPLES, len(values)))].mean(axis=1) for values in samples
    ]
    low, high = np.percentile(np.mean(drawn, axis=0), [2.5, 97.5])
    return Interval(float(np.mean([values.mean() for values in samples])), float(low), float(high))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the same order: the smallest times n, the next times n - 1 ..., never falling."""
    order = sorted(range(len(p_values)), key=lambda position: p_values[position])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = largest
    return adjusted


def compare(ours: Values, theirs: Values, seed: int = 0) -> Difference:
    """Compare two systems on the same queries, as if this were the only comparison.

    Args:
        ours: a measure per query [Q].
        theirs: the same measure of the other system [Q].
        seed: of the resampling.
    """
    from scipy.stats import bootstrap, permutation_test

    difference = ours - theirs
    mean = float(difference.mean())
    if len(difference) < 2 or not difference.any():
        return Difference(mean, mean, mean, 1.0, 1.0)
    random = np.random.default_rng(seed)
    interval = bootstrap(
        (difference,),
        np.mean,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=random,
        vectorized=True,
        batch=500,
    ).confidence_interval
    # One sample with signs flipped at random is the paired randomisation test.
    tested = permutation_test(
        (difference,),
        np.mean,
        permutation_type="samples",
        n_resamples=_RESAMPLES,
        rng=random,
        vectorized=True,
        batch=500,
    )
    p_value = float(tested.pvalue)
    return Difference(mean, float(interval.low), float(interval.high), p_value, p_value)


def _p_value(difference: Values, resamples: int) -> float:
    """Of the paired randomisation test, by signs drawn for all differences [Q] at once, which is quicker."""
    from scipy.stats import monte_carlo_test

    random = np.random.default_rng(0)

    def flipped(size: tuple[int, ...]) -> Values:
        return difference * (2.0 * random.integers(0, 2, size, dtype=np.int8) - 1)

    tested = monte_carlo_test(difference, flipped, np.mean, vectorized=True, n_resamples=resamples, batch=500)
    return float(tested.pvalue)
