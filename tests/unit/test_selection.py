"""Which step and scale become an expert, and when it is better than the base."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routerretriever.errors import BadInput
from routerretriever.training.scaling import scale_weights, weights_set
from routerretriever.training.selection import (
    Choice,
    HeldOut,
    choose,
    doubt,
    join_folds,
    judge,
    select,
    split_folds,
)
from routerretriever.training.settings import TrainingSettings

STEPS, SCALES = (20, 40, 60), (0.25, 0.5, 1.0)


def held_out(seed, queries=40, gain=0.0):
    random = np.random.default_rng(seed)
    base = random.uniform(size=queries)
    change = random.normal(gain, 0.2, size=(len(STEPS), len(SCALES), queries))
    return HeldOut(STEPS, SCALES, np.clip(base + change, 0, 1), base)


@given(st.integers(0, 10_000), st.integers(2, 80))
def test_a_choice_is_never_further_from_the_base_than_the_best_nor_much_worse(seed, queries):
    measured = held_out(seed, queries)
    step, scale = np.unravel_index(measured.ndcg_TSQ.mean(axis=2).argmax(), (len(STEPS), len(SCALES)))
    best, chosen = Choice(STEPS[step], SCALES[scale]), choose(measured)
    assert chosen.scale <= best.scale

    def values(choice):
        return measured.ndcg_TSQ[STEPS.index(choice.step), SCALES.index(choice.scale)]

    loss = values(best) - values(chosen)
    assert loss.mean() <= loss.std(ddof=1) / np.sqrt(queries) + 1e-9


@given(st.integers(0, 10_000), st.integers(2, 80), st.floats(0, 1))
def test_a_surer_gain_gets_no_smaller_scale(seed, queries, better):
    measured = held_out(seed, queries)
    surer = HeldOut(STEPS, SCALES, measured.ndcg_TSQ, measured.base_Q - better)
    assert choose(surer).scale >= choose(measured).scale


def test_doubt_is_whole_for_what_may_be_luck_and_goes_with_its_standard_error():
    noise = np.resize([-1.0, 1.0], 100)
    error = noise.std(ddof=1) / 10
    found = [doubt(noise + errors * error) for errors in (-1, 0, 1, 2, 4, 8)]
    assert found == pytest.approx([1, 1, 1, 1, 0.5, 0.25])
    assert doubt(np.full(4, 0.5)) == doubt(np.array([0.1])) == 0
    assert doubt(np.zeros(3)) == 1


@given(st.integers(0, 10_000), st.permutations(range(30)))
def test_a_choice_does_not_depend_on_the_order_of_queries(seed, order):
    measured = held_out(seed, 30)
    shuffled = HeldOut(STEPS, SCALES, measured.ndcg_TSQ[:, :, order], measured.base_Q[order])
    assert choose(shuffled) == choose(measured)


def test_clear_evidence_gets_the_full_scale_and_noise_the_smallest():
    base = np.full(200, 0.3)
    change = np.array([[0.1, 0.2, 0.4]] * 3)[:, :, None]
    noise = np.random.default_rng(0).normal(0, 0.02, (3, 3, 200))
    assert choose(HeldOut(STEPS, SCALES, base + change + noise, base)).scale == 1.0
    noise = np.random.default_rng(1).normal(0, 0.4, (3, 3, 200))
    assert choose(HeldOut(STEPS, SCALES, base + noise, base)).scale == 0.25


@given(st.integers(0, 10_000), st.integers(10, 200))
@settings(max_examples=25)
def test_an_expert_that_does_worse_on_every_query_is_not_deployed(seed, queries):
    base = np.random.default_rng(seed).uniform(0.2, 1, queries)
    assert not judge(base - 0.1, base).deployed
    assert not judge(base, base).deployed
    assert judge(base + 0.1, base).deployed


def test_what_has_lost_is_not_deployed_however_little_confidence_is_asked_for():
    base = np.full(40, 0.5)
    assert not judge(base - 0.01, base, confidence=0.0).deployed
    assert not judge(base, base, confidence=0.0).deployed
    assert judge(base + 0.01, base, confidence=0.0).deployed


def test_a_gain_that_may_be_luck_is_told_with_its_interval():
    random = np.random.default_rng(0)
    base = random.uniform(size=97)
    verdict = judge(base + random.normal(0.003, 0.06, 97), base)
    assert not verdict.deployed
    assert verdict.low < 0 < verdict.high
    assert verdict.low <= verdict.gain <= verdict.high
    assert verdict.sentence().startswith("no gain over the base: ")
    assert "on 97 held-out queries" in verdict.sentence()


def test_too_few_queries_prove_nothing():
    assert not judge(np.ones(9), np.zeros(9)).deployed
    assert judge(np.ones(10), np.zeros(10)).deployed


def test_folds_are_joined_at_the_steps_that_all_have_reached():
    first, second = held_out(0, 5), held_out(1, 4)
    shorter = HeldOut(STEPS[:2], SCALES, second.ndcg_TSQ[:2], second.base_Q)
    joined = join_folds([first, shorter])
    assert joined.steps == STEPS[:2]
    assert np.array_equal(joined.ndcg_TSQ[:, :, :5], first.ndcg_TSQ[:2])
    assert np.array_equal(joined.base_Q, np.concatenate([first.base_Q, second.base_Q]))
    assert select(joined, 0.9).choice in [Choice(t, s) for t in STEPS[:2] for s in SCALES]


def test_folds_that_end_before_their_first_evaluation_is_due_are_joined_at_their_ends():
    folds = [held_out(seed, 5) for seed in range(3)]
    ends = [
        HeldOut((last,), SCALES, fold.ndcg_TSQ[:1], fold.base_Q)
        for last, fold in zip((7, 6, 7), folds, strict=True)
    ]
    joined = join_folds(ends)
    assert joined.steps == (6,)
    assert np.array_equal(joined.ndcg_TSQ[:, :, :5], folds[0].ndcg_TSQ[:1])
    assert select(joined, 0.9).choice.step == 6


@given(st.sets(st.text(max_size=4), min_size=3, max_size=50), st.integers(2, 3))
def test_folds_share_out_every_query_once(ids, count):
    folds = split_folds(list(ids), count)
    assert sorted(query for fold in folds for query in fold) == sorted(ids)
    assert max(map(len, folds)) - min(map(len, folds)) <= 1
    assert folds == split_folds(sorted(ids, reverse=True), count)


@given(st.dictionaries(st.text(max_size=4), st.sampled_from("abcdef"), min_size=12, max_size=50))
def test_a_group_is_in_one_fold_and_no_fold_is_empty(groups):
    count = min(3, len(set(groups.values())))
    folds = split_folds(list(groups), count, groups)
    assert sorted(query for fold in folds for query in fold) == sorted(groups)
    assert sum(len({groups[query] for query in fold}) for fold in folds) == len(set(groups.values()))
    assert all(folds)
    alone = {query: query for query in groups}
    assert split_folds(list(groups), 3, alone) == split_folds(list(groups), 3)


@given(st.floats(0, 1.25))
def test_a_loras_update_is_scaled_exactly_as_its_b(scale):
    random = torch.Generator().manual_seed(0)
    weights = {
        "q.lora_A.weight": torch.randn(2, 5, generator=random),
        "q.lora_B.weight": torch.randn(4, 2, generator=random),
    }
    scaled = scale_weights(weights, scale)
    update = scaled["q.lora_B.weight"] @ scaled["q.lora_A.weight"]
    assert torch.allclose(
        update, scale * (weights["q.lora_B.weight"] @ weights["q.lora_A.weight"]), atol=1e-5
    )


def test_ia3_moves_towards_one_and_a_prefix_cannot_be_scaled():
    factors = {"k.ia3_l": torch.tensor([1.5, 0.5])}
    assert scale_weights(factors, 0.5)["k.ia3_l"].tolist() == [1.25, 0.75]
    assert scale_weights(factors, 0.0)["k.ia3_l"].tolist() == [1.0, 1.0]
    with pytest.raises(BadInput, match="best_step"):
        scale_weights({"prefix.keys": torch.ones(2)}, 0.5)


def test_weights_come_back_to_the_last_bit():
    parameters = {"a": torch.nn.Parameter(torch.tensor([0.1, 0.2]))}
    before = parameters["a"].detach().clone()
    with weights_set(parameters, {"a": torch.tensor([3.0, 4.0])}):
        assert parameters["a"].tolist() == [3.0, 4.0]
    assert torch.equal(parameters["a"].detach(), before)


def test_auto_cross_validates_where_labelled_queries_are_few():
    training = TrainingSettings()
    assert training.selects_by(228) == "cross_validation"
    assert training.selects_by(1000) == "dev"
    assert training.plain().selects_by(228) == "best_step"
    assert "distillation" not in training.plain().identity()
