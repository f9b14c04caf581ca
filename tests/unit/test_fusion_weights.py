import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from routerretriever.errors import BadInput
from routerretriever.index.fusion_weights import GRID, FusionWeights
from routerretriever.index.settings import FusionSettings


def curves(best, queries, slope=1.0):
    return np.tile(0.9 - slope * np.abs(np.array(GRID) - best), (queries, 1))


def test_a_domain_gets_its_own_weight_and_a_stranger_the_prior():
    weights = FusionWeights.fit({"a": curves(0.3, 400), "b": curves(0.0, 400)}, FusionSettings())
    assert weights.for_domain("a") == 0.3
    assert weights.for_domain("b") == 0.0
    assert weights.for_domain("c") == 0.1
    assert weights.predict(np.zeros((1, 2))).tolist() == [0.1]
    assert FusionWeights.fit({}, FusionSettings()).predict(np.zeros((1, 0))).tolist() == [0.1]
    assert FusionWeights.fit({}, FusionSettings(prior=0.12)).for_domain("a") == 0.12


def test_little_evidence_leaves_the_prior():
    settings = FusionSettings(caution=0.05)
    few, many = (FusionWeights.fit({"a": curves(0.5, n, 0.3)}, settings) for n in (3, 3000))
    assert few.for_domain("a") == settings.prior
    assert many.for_domain("a") == 0.5


def test_without_caution_too_a_weight_that_gains_nothing_is_not_moved_to():
    flat = np.full((40, len(GRID)), 0.5)
    weights = FusionWeights.fit({"flat": flat, "a": curves(0.3, 400)}, FusionSettings(caution=0.0))
    assert [weights.for_domain(name) for name in ("flat", "a", "unknown")] == [0.1, 0.3, 0.1]
    assert weights.predict(np.zeros((1, 2))).tolist() == [0.1]


def flat_until(bm25, queries, dense=0.6):
    """Dev queries to which no weight matters, but for BM25 alone."""
    values = np.full((queries, len(GRID)), dense)
    values[:, -1] = bm25
    return values


def test_a_domain_where_bm25_is_poor_starts_without_it():
    of = {"poor": flat_until(0.2, 25), "fair": flat_until(0.36, 2000), "good": flat_until(0.6, 25)}
    weights = FusionWeights.fit(of | {"few": flat_until(0.0, 2)}, FusionSettings())
    assert [weights.for_domain(name) for name in of] == [0.0, 0.05, 0.1]
    # Two queries say little.
    assert weights.for_domain("few") > 0.05
    again = FusionWeights.from_json(json.loads(json.dumps(weights.to_json())))
    assert again.for_domain("fair") == 0.05
    assert FusionWeights.fit({"none": np.zeros((9, len(GRID)))}, FusionSettings()).for_domain("none") == 0.1
    # Evidence moves it from there.
    useful = flat_until(0.2, 400)
    useful[:, GRID.index(0.05)] += 0.02
    assert FusionWeights.fit({"a": useful}, FusionSettings()).for_domain("a") == 0.05


def test_the_bounds_of_poor_and_useful_are_in_order():
    with pytest.raises(ValueError, match=r"poor: 0.8 is not below useful: 0.75"):
        FusionSettings(poor=0.8)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 1000))
def test_between_two_domains_the_weight_lies_between_theirs_where_curves_have_one_peak(first, share, seed):
    best = np.random.default_rng(seed).choice(GRID, size=2)
    weights = FusionWeights.fit({"a": curves(best[0], 400), "b": curves(best[1], 400)}, FusionSettings())
    a, b = weights.for_domain("a"), weights.for_domain("b")
    (mixed,) = weights.predict(np.array([[share * first, share * (1 - first)]]))
    low, high = min(a, b, 0.1), max(a, b, 0.1)
    assert low <= mixed <= high


def test_saved_weights_are_read_again():
    weights = FusionWeights.fit({"a": curves(0.3, 40)}, FusionSettings())
    again = FusionWeights.from_json(json.loads(json.dumps(weights.to_json())))
    assert again.for_domain("a") == weights.for_domain("a")
    with pytest.raises(BadInput, match="other weights"):
        FusionWeights.from_json({**weights.to_json(), "grid": [0, 1]})


def test_values_of_another_shape_are_refused():
    with pytest.raises(BadInput, match="a: expected nDCG"):
        FusionWeights.fit({"a": np.zeros((3, 2))}, FusionSettings())
