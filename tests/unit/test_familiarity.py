"""How familiar queries are: by relative Mahalanobis distance, and by their neighbours."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routerretriever.routing.constant import fit_uniform
from routerretriever.routing.data import RoutingData
from routerretriever.routing.fallback import fit_fallback
from routerretriever.routing.familiarity import DistanceMeasure, distances_of_references
from routerretriever.routing.settings import FallbackSettings, RoutingSettings


def domains(sizes, width=6, seed=0):
    """Features of queries in as many places as there are sizes, and their dataset."""
    random = np.random.default_rng(seed)
    places = random.normal(size=(len(sizes), width)) * 3
    features = np.concatenate([
        place + random.normal(size=(size, width)) for place, size in zip(places, sizes, strict=True)
    ])  # fmt: skip
    return features.astype(np.float32), np.repeat(np.arange(len(sizes)), sizes)


def drawn(rows):
    """A covariance as the measure estimates it."""
    covariance, (size, width) = np.cov(rows.T, bias=True), rows.shape
    share = width / (width + size)
    return (1 - share) * covariance + share * np.trace(covariance) / width * np.eye(width)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(3, 30), min_size=2, max_size=4), st.integers(0, 1000))
def test_the_distance_is_that_of_its_definition(sizes, seed):
    features, dataset = domains(sizes, seed=seed)
    fresh, _ = domains(sizes, seed=seed + 1)
    like = DistanceMeasure.fit(features, dataset, len(sizes)).of(fresh)
    means = np.stack([features[dataset == number].mean(axis=0) for number in range(len(sizes))])

    def squared(point, mean, covariance):
        return (point - mean) @ np.linalg.solve(covariance, point - mean)

    within, overall = drawn(features - means[dataset]), drawn(features - features.mean(axis=0))
    for row, point in enumerate(fresh):
        own = [squared(point, mean, within) for mean in means]
        expected = squared(point, features.mean(axis=0), overall) - min(own)
        assert like.value_B[row] == pytest.approx(expected, rel=1e-3, abs=1e-3)
        assert like.dataset_Bk[row, 0] == np.argmin(own)


def test_queries_far_from_all_are_less_familiar_than_any_of_a_domain():
    features, dataset = domains([60, 60, 60])
    measure = DistanceMeasure.fit(features, dataset, 3)
    direction = np.random.default_rng(1).normal(size=(50, 6))
    far = 40 * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    assert measure.of(far.astype(np.float32)).value_B.max() < measure.of(features).value_B.min()


def test_a_reference_query_is_compared_with_the_others_alone():
    features, dataset = domains([40, 40], width=30)  # few for so many dimensions
    own = distances_of_references(features, dataset, 2, seed=0).value_B
    places = np.stack([features[dataset == number].mean(axis=0) for number in range(2)])
    noise = np.random.default_rng(9).normal(size=features.shape)
    fresh = (places[dataset] + noise).astype(np.float32)  # other queries in the same places
    seen = DistanceMeasure.fit(features, dataset, 2)
    flattered, honest = np.median(seen.of(features).value_B), np.median(seen.of(fresh).value_B)
    assert flattered - honest > 5
    assert abs(np.median(own) - honest) < (flattered - honest) / 2


@pytest.mark.parametrize("sizes", [[1, 1], [1, 5], [2, 1, 1]])
def test_domains_of_a_query_or_two_are_no_obstacle(sizes):
    features, dataset = domains(sizes)
    like = distances_of_references(features, dataset, len(sizes), seed=0)
    assert np.isfinite(like.value_B).all()
    assert set(like.dataset_Bk.ravel()) <= set(range(len(sizes)))


def test_equal_queries_are_no_obstacle():
    features = np.ones((8, 5), dtype=np.float32)
    like = DistanceMeasure.fit(features, np.repeat([0, 1], 4), 2).of(features)
    assert np.isfinite(like.value_B).all()


def in_a_cone(count, place, seed):
    """Features whose cosines are all high, as those of many encoders; domains differ a little."""
    random = np.random.default_rng(seed)
    features = np.full(12, 4.0) + 2.0 * np.eye(12)[place] + random.normal(size=(count, 12)) * 0.5
    return features.astype(np.float32)


def test_a_single_domain_is_compared_with_queries_of_none():
    """Alone it cannot be told from all queries together, and all are near in a cone."""
    data = RoutingData(
        ["a"],
        {"a": np.ones((200, 1))},
        {"a": in_a_cone(200, 0, 0)},
        background={f"other{place}": in_a_cone(80, place, place) for place in (5, 6, 7)},
    )
    settings = RoutingSettings(features="embedding")
    fallback = FallbackSettings(answer="base", unfamiliar_quantile=0.01, familiar_quantile=0.05, slack=0.0)
    router = fit_fallback(data, settings, fallback, fit_uniform(data, settings))
    assert router.state()[0]["measure"] == "distance"
    assert router.familiarity(in_a_cone(100, 0, 20)).mean() > 0.9
    for unseen in (5, 9, 10):  # of the background, and of nothing that was ever seen
        assert router.familiarity(in_a_cone(100, unseen, 30 + unseen)).mean() < 0.1
