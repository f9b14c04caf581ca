"""The out-of-domain fallback is chosen by leaving domains out."""

import dataclasses
import re

import faiss
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError
from routerretriever.index.dense import SearchIndex
from routerretriever.measures import measure
from routerretriever.methods.experts import Experts
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.routing.calibration import (
    CANDIDATES,
    IN_DOMAIN_LIMIT,
    LEFT_OUT_LIMIT,
    choose,
    interpolate,
)
from routerretriever.routing.data import HeldOut, RoutingData
from routerretriever.routing.fit import calibrate, fit, with_chosen_fallback
from routerretriever.routing.settings import FallbackSettings, RoutingSettings
from routerretriever.scoring.mixed_vectors import MixedVectors
from routerretriever.scoring.table import ScoredModel, SplitScores
from routerretriever.types import BASE
from support.recipes import tiny_recipe
from support.workers import work_here

losses = st.floats(-0.05, 0.05)
tables = st.integers(1, 6).flatmap(
    lambda count: st.tuples(
        arrays(np.float64, (count, 3), elements=losses),
        arrays(np.float64, (count, 4), elements=losses),
        arrays(np.float64, count, elements=st.floats(0, 1)),
    )
)


@example((np.full((2, 3), 0.03125), np.array([[0.002, -0.03125, 0.0, 0.0], [0.0] * 4]), np.zeros(2)))
@given(tables)
def test_what_is_chosen_keeps_to_the_limits_if_anything_does(table):
    in_domain, left_out, base = table
    known, worst = in_domain.mean(axis=1), left_out.max(axis=1)
    best = choose(in_domain, left_out, base)
    if (known <= IN_DOMAIN_LIMIT).any():
        assert known[best] <= IN_DOMAIN_LIMIT + 1e-9
    both = (known <= IN_DOMAIN_LIMIT) & (worst <= LEFT_OUT_LIMIT)
    if both.any():
        assert worst[best] <= LEFT_OUT_LIMIT
        total = known + left_out.mean(axis=1)
        assert total[best] <= total[both].min() + 1e-8
    else:
        allowed = known <= max(IN_DOMAIN_LIMIT, known.min())
        assert worst[best] <= worst[allowed].min() + 1e-8


@given(tables)
def test_without_a_domain_left_out_the_base_gets_what_the_limit_allows(table):
    in_domain, left_out, base = table
    known = in_domain.mean(axis=1)
    assume((known <= IN_DOMAIN_LIMIT).any())
    best = choose(in_domain, left_out[:, :0], base)
    assert base[best] == base[known <= IN_DOMAIN_LIMIT + 1e-12].max()


@given(arrays(np.float64, 4, elements=st.floats(0, 1)))
def test_of_candidates_that_are_alike_the_one_nearest_to_the_base_is_taken(base):
    same = np.zeros((4, 2))
    assert base[choose(same, same, base)] == base.max()


@given(
    arrays(np.float64, (5, 3), elements=st.floats(0, 1)),
    arrays(np.float32, 3, elements=st.floats(0, 1, width=32)),
)
def test_interpolation_is_exact_where_measured_and_between_neighbours_elsewhere(ndcg, share):
    for row, at in enumerate(np.linspace(0, 1, 5)):
        np.testing.assert_allclose(interpolate(ndcg, np.full(3, at, np.float32)), ndcg[row])
    below = np.minimum((share * 4).astype(int), 3)
    pair = np.stack([ndcg[below, range(3)], ndcg[below + 1, range(3)]])
    value = interpolate(ndcg, share)
    assert (value >= pair.min(axis=0) - 1e-12).all()
    assert (value <= pair.max(axis=0) + 1e-12).all()


NAMES = ["a", "b", "c", "d"]
DIMENSION, DOCUMENTS, QUERIES = 16, 60, 40


def world(names, *, harm, seed=0, learned=True, apart=3.0):
    """Scored queries of domains that can be told apart.

    The base finds most of what is relevant, each expert all of it in its domain, if it has ``learned`` from
    these queries, else as much as the base. Elsewhere an expert adds ``harm`` times a direction that has
    nothing to do with the query, or takes so much of the base's error away if that is negative.
    """
    random = np.random.default_rng(seed)
    columns = [BASE, *names]
    scores, qrels, indexes, features = {}, {}, {}, {}
    for number, name in enumerate(names):
        documents = random.normal(size=(DOCUMENTS, DIMENSION)).astype(np.float32)
        documents /= np.linalg.norm(documents, axis=1, keepdims=True)
        flat = faiss.IndexFlatIP(DIMENSION)
        flat.add(documents)
        indexes[name] = SearchIndex(flat, [f"d{row}" for row in range(DOCUMENTS)])
        relevant = random.integers(DOCUMENTS, size=QUERIES)
        ids = [f"q{row}" for row in range(QUERIES)]
        qrels[name] = {i: {f"d{row}": 1} for i, row in zip(ids, relevant, strict=True)}
        noise = random.normal(size=(QUERIES, DIMENSION)).astype(np.float32) / 4
        vectors = np.repeat((documents[relevant] + noise)[:, None], len(columns), axis=1)
        for column, expert in enumerate(columns):
            if expert == name:
                vectors[:, column] = documents[relevant] if learned else vectors[:, 0]
            elif expert != BASE and harm < 0:
                vectors[:, column] += harm * noise
            elif expert != BASE:
                vectors[:, column] += harm * random.normal(size=DIMENSION).astype(np.float32)
        runs = [
            measure(qrels[name], indexes[name].run(ids, vectors[:, e], 10), ids) for e in range(len(columns))
        ]
        fields = [field.name for field in dataclasses.fields(runs[0])]
        measured = type(runs[0])(*(np.stack([getattr(run, f) for run in runs], axis=1) for f in fields))
        scores[name] = SplitScores(name, "train", ids, columns, measured, vectors)
        place = np.eye(DIMENSION, dtype=np.float32)[number] * apart
        features[name] = (place + random.normal(size=(QUERIES, DIMENSION)) * 0.5).astype(np.float32)
    mixed = MixedVectors(scores=scores, qrels=qrels, indexes=indexes)
    data = RoutingData(
        list(names), {n: s.utilities(names) for n, s in scores.items()}, features, answered=mixed.mixed_ndcg
    )
    return data, mixed, scores


SETTINGS = RoutingSettings(features="embedding", min_share=0.0)


def fit_and_choose(data, settings):
    router = fit(data, settings)
    chosen = with_chosen_fallback(router, data, settings)
    return calibrate(router, data, chosen), chosen


def loss_when_left_out(data, mixed, scores, settings, name):
    router, _ = fit_and_choose(data.only([other for other in data.own_datasets if other != name]), settings)
    routed = mixed.mixed_ndcg(name, None, router.experts, router.weights(data.features[name]))
    return float(scores[name].utilities([BASE]).mean() - routed.mean())


@pytest.mark.parametrize(("familiarity", "apart"), [("neighbours", 3.0), ("distance", 4.0)])
def test_experts_that_harm_elsewhere_leave_unseen_domains_to_the_base(familiarity, apart):
    data, mixed, scores = world(NAMES, harm=1.0, apart=apart)
    asked = SETTINGS.model_copy(update={"fallback": FallbackSettings(familiarity=familiarity)})
    router, chosen = fit_and_choose(data, asked)
    assert chosen.fallback.answer == "base"
    assert chosen.fallback.model_copy(update={"familiarity": "distance"}) in CANDIDATES
    without = SETTINGS.model_copy(update={"fallback": None})
    for name in NAMES:
        assert loss_when_left_out(data, mixed, scores, without, name) > 0.1
        assert loss_when_left_out(data, mixed, scores, chosen, name) <= LEFT_OUT_LIMIT
    open_router, _ = fit_and_choose(data, without)
    in_domain = [
        mixed.mixed_ndcg(name, None, open_router.experts, open_router.weights(data.features[name])).mean()
        - mixed.mixed_ndcg(name, None, router.experts, router.weights(data.features[name])).mean()
        for name in NAMES
    ]
    assert np.mean(in_domain) <= IN_DOMAIN_LIMIT + 0.005


def test_what_a_fallback_costs_is_seen_on_queries_that_no_expert_has_learned_from():
    data, mixed, scores = world(NAMES, harm=0.4, apart=1.0)
    unseen, others, _ = world(NAMES, harm=0.4, apart=1.0, seed=1, learned=False)
    held_out = HeldOut(unseen.features, others.mixed_ndcg)
    worst = [
        max(loss_when_left_out(data, mixed, scores, chosen, name) for name in NAMES)
        for _, chosen in (
            fit_and_choose(one, SETTINGS) for one in (data, dataclasses.replace(data, held_out=held_out))
        )
    ]
    assert worst[1] < worst[0] / 2


def test_experts_that_help_elsewhere_answer_what_is_unfamiliar_if_they_are_few(monkeypatch):
    data, _, _ = world(NAMES, harm=-0.5)
    assert fit_and_choose(data, SETTINGS)[1].fallback.answer != "base"
    monkeypatch.setattr("routerretriever.routing.calibration.MOST_EXPERTS", 3)
    assert fit_and_choose(data, SETTINGS)[1].fallback.answer == "base"


def test_it_is_told_who_answers_what_is_unfamiliar_and_whether_that_gains(caplog):
    data, _, _ = world(NAMES, harm=1.0, apart=4.0)
    with caplog.at_level("INFO", logger="routerretriever"):
        fit_and_choose(data, SETTINGS)
    assert re.search(
        r"go to the base \(.*: known domains (lose|gain) \d\.\d\d by it; "
        r"the worst domain, left out in turn, (lose|gain) \d",
        caplog.text,
    )


@pytest.mark.parametrize("background", [{}, {"other": -np.eye(DIMENSION, dtype=np.float32)}])
def test_a_single_scored_query_is_no_obstacle(background):
    data, _, _ = world(["a"], harm=1.0)
    one = dataclasses.replace(
        data,
        utilities={"a": data.utilities["a"][:1]},
        features={"a": data.features["a"][:1]},
        background=background,
    )
    router, _ = fit_and_choose(one, SETTINGS)
    weights = router.weights(data.features["a"])
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("names", [["a"], ["a", "b"]])
def test_with_one_or_two_domains_a_foreign_query_is_the_bases(names):
    data, _, _ = world(names, harm=1.0)
    router, chosen = fit_and_choose(data, SETTINGS)
    assert chosen.fallback.answer == "base"
    foreign = -np.ones((3, DIMENSION), dtype=np.float32)
    np.testing.assert_allclose(router.weights(foreign)[:, router.experts.index(BASE)], 1, atol=1e-6)
    own = router.weights(data.features["a"])[:, 0]
    assert own.mean() > 0.5


def test_a_chosen_fallback_is_the_same_for_any_order_of_calls():
    data, _, _ = world(NAMES, harm=1.0)
    assert fit_and_choose(data, SETTINGS)[1] == fit_and_choose(data, SETTINGS)[1]


def test_settings_that_auto_chooses_cannot_be_given_with_it():
    with pytest.raises(ValidationError, match="slack: answer 'auto' chooses it"):
        FallbackSettings(slack=0.5)
    assert FallbackSettings(answer="base", slack=0.5).slack == 0.5
    assert FallbackSettings(neighbours=4).answer == "auto"


def test_a_run_chooses_once_and_keeps_it_in_storage(tiny_data, monkeypatch):
    work_here(monkeypatch, "corpus.build", "runtime.shards")

    def opened():
        """A run whose two experts are the base."""
        run = Pipeline(tiny_recipe(tiny_data, scoring={"source": "dev"}))
        workspace, experts = run.workspace, run.method(Experts)
        steps = workspace.score_steps("dev", [ScoredModel.base(workspace.encoder)], ["fruit", "metal"])
        experts.scores = {
            name: SplitScores(
                name, "dev", table.query_ids, [BASE, "fruit", "metal"],
                table.measured[:, [0, 0, 0]], table.vectors_QEd[:, [0, 0, 0]],
            )
            for name, table in workspace.scores(steps).items()
        }  # fmt: skip
        return experts

    chosen = opened().routing.fallback
    assert chosen in CANDIDATES
    monkeypatch.setattr("routerretriever.methods.experts.with_chosen_fallback", None)  # nobody asks again
    again = opened()
    assert again.routing.fallback == chosen
    assert again.router.experts == ["fruit", "metal", BASE]
