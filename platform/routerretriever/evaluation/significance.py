"""Is one way of answering better than another, or luckier? Paired tests over the queries of a test set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from routerretriever.measures import Values

_RESAMPLES = 4999


@dataclass(frozen=True)
class Difference:
    """Mean paired difference, its 95 % interval (bootstrap), and the p-value (randomisation test)."""

    mean: float
    low: float
    high: float
    p_value: float

    @property
    def significant(self) -> bool:
        """At the 5 % level, not corrected for the number of comparisons."""
        return self.p_value < 0.05


def compare(ours: Values, theirs: Values, seed: int = 0) -> Difference:
    """Compare two ways on the same queries.

    Args:
        ours: a measure per query [Q].
        theirs: the same measure of the other way [Q].
        seed: of the resampling.
    """
    from scipy.stats import bootstrap, permutation_test

    difference = ours - theirs
    mean = float(difference.mean())
    if len(difference) < 2 or np.allclose(difference, difference[0]):
        return Difference(mean, mean, mean, 1.0)
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
    return Difference(mean, float(interval.low), float(interval.high), float(tested.pvalue))
