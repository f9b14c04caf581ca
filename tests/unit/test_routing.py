import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from routerretriever.errors import BadInput, RouterRetrieverError
from routerretriever.routing.constant import ConstantRouter
from routerretriever.routing.data import RoutingData
from routerretriever.routing.fit import fit_router
from routerretriever.routing.neighbours import References
from routerretriever.routing.pilot_library import best_expert, build_library
from routerretriever.routing.pilots import PilotRouter
from routerretriever.routing.protocol import softmax
from routerretriever.routing.saving import load_router, save_router
from routerretriever.routing.settings import FallbackSettings, RoutingSettings
from routerretriever.types import BASE

TIED = np.array([[1.0, 1.0, 0.0], [0.0, 0.5, 0.2], [0.0, 0.3, 0.3]])


@pytest.mark.parametrize(
    ("ties", "own", "expected"),
    [
        ("own", 0, [[1, 0, 0], [0, 1, 0], [0, 0, 0]]),
        ("own", None, [[0, 0, 0], [0, 1, 0], [0, 0, 0]]),
        ("drop", 0, [[0, 0, 0], [0, 1, 0], [0, 0, 0]]),
        ("first", 2, [[1, 0, 0], [0, 1, 0], [0, 1, 0]]),
        ("all", 2, [[1, 1, 0], [0, 1, 0], [0, 1, 1]]),
    ],
)
def test_the_tie_rules(ties, own, expected):
    np.testing.assert_array_equal(best_expert(TIED, own, ties), np.array(expected, dtype=bool))


def routing(**settings):
    return RoutingSettings(
        **{"features": "embedding", "fallback": None, "temperature": 1.0, "min_share": 0.0, **settings}
    )


def data(seed=0, queries=40):
    random = np.random.default_rng(seed)
    centres = np.eye(4)[:3] * 3
    features = {
        n: random.normal(centres[i], 0.3, (queries, 4)).astype(np.float32) for i, n in enumerate("abc")
    }
    utilities = {}
    for i, name in enumerate("abc"):
        utility = random.uniform(0, 0.4, (queries, 3))
        utility[:, i] += 0.5
        utilities[name] = utility
    return RoutingData(list("abc"), utilities, features)


def test_a_pilot_is_the_mean_of_its_group():
    d = data()
    library = build_library(d.experts, d.utilities, d.features)
    for dataset, owner, pilot, size in zip(
        library.dataset_P, library.expert_P, library.vectors_Pd, library.size_P, strict=True
    ):
        group = d.features[dataset][d.utilities[dataset].argmax(axis=1) == owner]
        assert len(group) == size
        np.testing.assert_allclose(pilot, group.mean(axis=0), rtol=1e-5)
    assert len(library.vectors_Pd) <= 9


@given(arrays(np.float32, (5, 4), elements=st.floats(-1, 1, width=32)))
def test_mean_similarity_is_similarity_to_the_mean_pilot(features):
    pilots = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    owners = np.array([0, 0, 1, 1, 1, 2])
    scores = PilotRouter(list("abc"), pilots, owners).scores(features)
    means = np.stack([pilots[owners == e].mean(axis=0) for e in range(3)])
    np.testing.assert_allclose(scores, features @ means.T, atol=1e-5)


@given(arrays(np.float64, (4, 3), elements=st.floats(-50, 50)))
def test_soft_weights_are_a_distribution_in_the_order_of_the_scores(scores):
    weights = softmax(scores)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-5)
    best = scores.max(axis=1, keepdims=True) == scores
    assert (weights[best] >= weights.max(axis=1).repeat(best.sum(axis=1)) - 1e-6).all()


def test_an_expert_without_pilots_is_reported_and_never_chosen():
    d = data()
    utilities = {
        name: np.concatenate([u[:, :2], np.zeros((len(u), 1))], axis=1) for name, u in d.utilities.items()
    }
    assert build_library(d.experts, utilities, d.features).without_pilots == ["c"]
    for mixing in ("hard", "soft"):
        router = fit_router(
            RoutingData(d.experts, utilities, d.features), routing(router="pilots", mixing=mixing)
        )
        assert (router.weights(d.features["c"])[:, 2] == 0).all()


def test_no_evidence_at_all_is_an_error():
    d = data()
    with pytest.raises(RouterRetrieverError, match="tells the experts apart"):
        build_library(
            d.experts, {n: np.ones_like(u) for n, u in d.utilities.items()}, d.features, ties="drop"
        )


@pytest.mark.parametrize(
    "settings",
    [
        routing(router="pilots", mixing="hard"),
        routing(router="pilots", mixing="hard", clusters=3),
        routing(router="pilots", mixing="hard", aggregate="nearest"),
        routing(router="pilots", temperature=0.1),
        routing(router="posterior", mixing="hard"),
        routing(router="posterior", mixing="soft"),
        routing(
            router="posterior", fallback=FallbackSettings(answer="base", familiar_quantile=0.2, slack=0.0)
        ),
        routing(router="posterior", fallback=FallbackSettings(answer="base")),
        routing(router="posterior", fallback=FallbackSettings(answer="base", familiarity="neighbours")),
        routing(router="posterior", fallback=FallbackSettings(answer="both")),
        routing(router="neighbours", neighbours=5, temperature=0.05),
        routing(router="utility", temperature=0.05),
        routing(router="centroids", temperature=0.05),
        routing(router="expert_classifier", mixing="hard"),
        routing(router="classification_head", mixing="hard"),
        routing(router="dataset", mixing="hard"),
    ],
    ids=str,
)
def test_routers_find_clear_domains_and_survive_saving(settings, tmp_path):
    d, fresh = data(), data(seed=1)
    router = fit_router(d, settings)
    save_router(router, tmp_path)
    # A service may be another user than the run.
    assert len({file.stat().st_mode for file in tmp_path.iterdir()}) == 1
    loaded = load_router(tmp_path)
    for column, name in enumerate("abc"):
        weights = router.weights(fresh.features[name])
        assert weights.shape == (40, 4 if router.experts[-1] == BASE else 3)
        np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-5)
        assert (weights.argmax(axis=1) == column).mean() > 0.9
        np.testing.assert_array_equal(weights, loaded.weights(fresh.features[name]))


def test_uniform_and_fixed(tmp_path):
    d = data()
    uniform = fit_router(d, routing(router="uniform"))
    np.testing.assert_allclose(uniform.weights(d.features["a"]), 1 / 3)
    fixed = fit_router(d, routing(router="fixed", expert="b"))
    assert (fixed.weights(d.features["a"])[:, 1] == 1).all()
    save_router(fixed, tmp_path)
    np.testing.assert_array_equal(
        load_router(tmp_path).weights(d.features["a"]), fixed.weights(d.features["a"])
    )


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"kind": "oracle"}, "no router of kind 'oracle'"),
        ({"settings": {"horns": 2}}, "register the recipe again"),
    ],
)
def test_a_router_of_another_version_is_told_in_one_line(tmp_path, changed, told):
    save_router(fit_router(data(), routing(router="fixed", expert="b")), tmp_path)
    file = tmp_path / "router.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(BadInput, match=told):
        load_router(tmp_path)


def test_two_domains_are_enough_for_the_posterior():
    d = data()
    two = RoutingData(["a", "b"], {n: d.utilities[n][:, :2] for n in "ab"}, {n: d.features[n] for n in "ab"})
    router = fit_router(two, routing(router="posterior", mixing="soft"))
    assert router.weights(d.features["a"])[:, 0].mean() > 0.9


def far_away(queries=20):
    return np.tile(np.array([0, 0, 0, 1], dtype=np.float32), (queries, 1))


@pytest.mark.parametrize("familiarity", ["distance", "neighbours"])
@pytest.mark.parametrize(
    ("fallback", "expected"),
    [("uniform", [1 / 3] * 3), ("base", [0, 0, 0, 1]), ("both", [1 / 6, 1 / 6, 1 / 6, 1 / 2])],
)
def test_the_fallback_answers_a_foreign_query(fallback, expected, familiarity):
    d = data()
    settings = routing(
        router="posterior",
        fallback=FallbackSettings(answer=fallback, familiar_quantile=0.2, slack=0.0, familiarity=familiarity),
    )
    router = fit_router(d, settings)
    np.testing.assert_allclose(router.weights(far_away()), np.tile(expected, (20, 1)), atol=1e-6)
    without = fit_router(d, routing(router="posterior"))
    open_ = router.familiarity(d.features["a"]) == 1
    assert 0.7 < open_.mean() < 0.95  # calibrated: a fifth of the training queries is below the quantile
    np.testing.assert_allclose(
        router.weights(d.features["a"])[open_][:, :3], without.weights(d.features["a"])[open_], rtol=1e-5
    )


def test_many_experts_beside_half_a_base_are_not_cut_for_having_little_each():
    names = [f"e{number}" for number in range(20)]
    random = np.random.default_rng(0)
    features = {name: random.normal(size=(30, 40)) + 9 * np.eye(40)[row] for row, name in enumerate(names)}
    d = RoutingData(
        names,
        {name: np.eye(20)[np.full(30, row)] for row, name in enumerate(names)},
        {name: own.astype(np.float32) for name, own in features.items()},
    )
    router = fit_router(
        d, routing(router="posterior", fallback=FallbackSettings(answer="both"), min_share=0.2)
    )
    foreign = np.full((1, 40), -9, dtype=np.float32)
    np.testing.assert_allclose(router.weights(foreign), [[1 / 40] * 20 + [1 / 2]], rtol=1e-5)
    own = router.weights(d.features["e3"])
    assert (own > 0).sum(axis=1).mean() < 5


def test_an_explanation_quotes_the_nearest_training_queries():
    d = data()
    queries = {name: [f"{name}{row}" for row in range(40)] for name in "abc"}
    d = RoutingData(d.experts, d.utilities, d.features, queries)
    router = fit_router(
        d,
        routing(
            router="posterior", fallback=FallbackSettings(answer="base", familiar_quantile=0.2, slack=0.0)
        ),
    )
    (reason,) = router.explain(d.features["b"][7:8])
    assert max(reason.scores, key=reason.scores.get) == "b"
    assert (reason.nearest[0].dataset, reason.nearest[0].query) == ("b", "b7")
    assert reason.nearest[0].similarity == pytest.approx(1, abs=1e-5)
    (foreign,) = router.explain(far_away(1))
    assert foreign.familiarity == 0
    assert reason.margin > 0


def test_neighbours_predict_the_mean_utility_of_the_nearest():
    d = data()
    router = fit_router(d, routing(router="neighbours", neighbours=1))
    np.testing.assert_allclose(router.scores(d.features["c"]), d.utilities["c"], rtol=1e-6)


@pytest.mark.parametrize("width", [8, 20, 384])
def test_the_nearest_are_those_of_an_exhaustive_comparison(width):
    random = np.random.default_rng(width)
    references, queries = random.normal(size=(300, width)), random.normal(size=(50, width))
    queries[:, 0] *= 30  # beyond what any reference has there
    similarity_Bk, rows_Bk = References(references).nearest(1000 * queries, 5)
    lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(references, axis=1)
    cosine_BN = queries @ references.T / lengths
    np.testing.assert_allclose(similarity_Bk, np.sort(cosine_BN, axis=1)[:, :-6:-1], atol=1e-5)
    np.testing.assert_allclose(similarity_Bk, np.take_along_axis(cosine_BN, rows_Bk, axis=1), atol=1e-5)


def test_a_query_without_features_is_like_nothing():
    similarity_Bk, _ = References(np.eye(4)).nearest(np.zeros((1, 4)), 2)
    assert (similarity_Bk == 0).all()


def test_of_a_domain_left_out_nothing_remains():
    d = data().only(["a", "c"])
    assert d.experts == ["a", "c"]
    assert list(d.utilities) == list(d.features) == ["a", "c"]
    assert d.utilities["a"].shape == (40, 2)


def test_with_a_single_expert_there_is_nothing_to_learn():
    d = data()
    one = RoutingData(["a"], {"a": d.utilities["a"][:, :1]}, {"a": d.features["a"]})
    for name in ("posterior", "pilots", "dataset"):
        assert (fit_router(one, routing(router=name)).weights(d.features["b"]) == 1).all()


@given(arrays(np.float32, (4, 5), elements=st.floats(0.0625, 1, width=32)), st.floats(0, 0.9))
def test_small_shares_are_dropped_and_the_rest_still_sums_to_one(weights, min_share):
    for row in weights:
        router = ConstantRouter(list("abcde"), row / row.sum())
        router.min_share = min_share
        (kept,) = router.weights(np.zeros((1, 2), dtype=np.float32))
        assert kept.sum() == pytest.approx(1, rel=1e-5)
        assert kept[row == row.max()].min() > 0
        assert (kept[row < (min_share - 1e-4) * row.max()] == 0).all()
        assert (kept[row > (min_share + 1e-4) * row.max()] > 0).all()
