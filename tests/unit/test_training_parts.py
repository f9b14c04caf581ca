import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError
from routerretriever.adapters.prefix import PrefixSettings
from routerretriever.index.lexical import LexicalIndex, Postings
from routerretriever.index.settings import LexicalSettings
from routerretriever.index.words import Analyzer
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.training.candidates import ScoredCandidates
from routerretriever.training.examples import Batch
from routerretriever.training.expert import expert_step
from routerretriever.training.loop import evaluations
from routerretriever.training.objective import above_target, candidate_loss, draw_targets
from routerretriever.training.schedule import DomainSchedule, learning_rate_factor, run_length
from routerretriever.training.settings import TrainingSettings
from routerretriever.training.soup import Soup
from routerretriever.training.teacher import (
    RerankingTeacher,
    Teacher,
    WordsTeacher,
    hybrid_scores,
    on_base_scale,
)
from routerretriever.training.teacher_settings import EndpointTeacher
from support.recipes import TINY_TRAINING, tiny_recipe
from support.workers import work_here

TEACHER = EndpointTeacher(kind="endpoint", url="http://localhost:1", model="m")


def rows(*values):
    return np.array(values, dtype=np.int64)


def test_the_loss_is_softmax_over_candidates_with_other_positives_masked():
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    documents = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.2, 0.1]])
    loss = candidate_loss(query, documents, rows(0, 1, 2, 3), rows(0, 2), [rows(0, 1), rows(2)], 0.5)

    def one(scores, target):
        return -math.log(math.exp(scores[target] / 0.5) / sum(math.exp(s / 0.5) for s in scores))

    first = one([1.0, 0.0, 0.2], 0)  # document 1 is the first query's other positive
    second = one([0.0, 0.5, 1.0, 0.1], 2)
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-5)


def test_candidates_may_be_any_rows_of_the_corpus():
    query = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    documents = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
    chosen = rows(1, 4, 7, 9)
    loss = candidate_loss(query, documents[chosen], chosen, rows(4, 9), [rows(4, 8, 9), rows(9)], 1.0)
    logits = query @ documents[chosen].T
    logits[0, 3] = float("-inf")
    assert loss.item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits, torch.tensor([1, 3])).item()
    )


@pytest.mark.parametrize("settings", [{}, {"distillation": 0.7}, {"distillation": 0.7, "mask_above": 0.9}])
def test_what_is_left_out_for_a_query_is_no_candidate_for_it_alone(settings):
    generator = torch.Generator().manual_seed(0)
    query, documents = torch.randn(2, 4, generator=generator), torch.randn(5, 4, generator=generator)
    query.requires_grad_()
    teacher = torch.randn(2, 5, generator=generator)

    def loss(asked, chosen, left_out=()):
        targets, positives = rows(0, 4)[asked], [[rows(0, 3), rows(4)][each] for each in asked]
        given = (query[asked], documents[chosen], chosen, targets, positives, 0.5, teacher[asked][:, chosen])
        return candidate_loss(*given, **settings, left_out_rows=left_out)

    every = rows(*range(5))
    found = loss([0, 1], every, [rows(2), rows(0, 1)])
    assert found.item() == pytest.approx(
        (loss([0], rows(0, 1, 3, 4)) + loss([1], rows(2, 3, 4))).item() / 2, rel=1e-5
    )
    (gradient,) = torch.autograd.grad(found, query)
    assert torch.isfinite(gradient).all()
    assert loss([0, 1], every, [rows(), rows()]).item() == loss([0, 1], every).item()


def test_targets_are_drawn_by_grade():
    random = np.random.default_rng(0)
    drawn = [draw_targets([rows(3, 8)], [rows(1, 3)], random)[0] for _ in range(400)]
    assert 0.68 < np.mean(np.array(drawn) == 8) < 0.82


def test_schedule_and_length():
    from routerretriever.training.domains import resolve_objective

    settings = TrainingSettings(max_steps=100, warmup_fraction=0.1)
    factors = [learning_rate_factor(settings, step, 100) for step in range(101)]
    assert factors[9] == 1.0 == max(factors)
    assert factors[100] == 0.0
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert run_length(TrainingSettings(max_steps=100, max_epochs=3), 10) == 30
    assert resolve_objective(TrainingSettings(corpus_objective_limit=10), 11) == "sampled"
    assert resolve_objective(TrainingSettings(objective="in_batch"), 5) == "in_batch"


def test_every_domain_of_a_joint_model_has_its_turn_and_no_step_of_it_is_skipped():
    schedule = DomainSchedule(3, seed=0)
    plan = [schedule.at(step) for step in range(10)]
    for domain in range(3):
        steps = [step for chosen, step in plan if chosen == domain]
        assert steps == list(range(len(steps)))
        assert len(steps) in (3, 4)
    assert [schedule.at(step) for step in range(10)] == plan
    # As before there were schedules without an end, so that a joint model is trained as it was.
    assert [domain for domain, _ in plan] == np.random.default_rng([0, 3]).permuted(
        np.tile(np.arange(3), (4, 1)), axis=1
    ).reshape(-1)[:10].tolist()
    alone = DomainSchedule(1, seed=0)
    assert [alone.at(step) for step in range(4)] == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_a_number_of_steps_that_patience_is_to_cut_short_takes_no_memory(tiny_data, monkeypatch):
    work_here(monkeypatch, "corpus.build")
    training = {
        **TINY_TRAINING,
        "max_steps": 10**12,
        "max_epochs": None,
        "patience": 1,
        "learning_rate": 1e-30,
    }
    pipeline = Pipeline(tiny_recipe(tiny_data, training=training))
    step = expert_step(pipeline.workspace.source("fruit"), pipeline.recipe.encoder, pipeline.recipe.training)
    pipeline.workspace.build(step.inputs)
    assert [each.progress.step for each in evaluations(step.job, pipeline.store)][-1] == 2


def test_distillation_adds_the_divergence_from_the_base():
    generator = torch.Generator().manual_seed(0)
    query, base, documents = (torch.randn(n, 4, generator=generator) for n in (2, 2, 6))
    given = (query, documents, rows(*range(6)), rows(1, 5), [rows(1), rows(5)], 0.5)
    alone = candidate_loss(*given)
    ours, theirs = (torch.softmax(q @ documents.T / 0.5, dim=1) for q in (query, base))
    divergence = (theirs * (theirs / ours).log()).sum(dim=1).mean()
    teacher = base @ documents.T
    assert candidate_loss(*given, teacher, 2.0).item() == pytest.approx(
        (alone + 2 * divergence).item(), rel=1e-5
    )
    assert candidate_loss(*given, query @ documents.T, 2.0).item() == pytest.approx(alone.item(), rel=1e-5)
    assert candidate_loss(*given, teacher, 0.0).item() == alone.item()


SCORES = arrays(np.float32, (3, 6), elements=st.floats(-1, 1, width=32))


@given(SCORES, st.floats(0.25, 2), st.lists(st.integers(0, 5), min_size=3, max_size=3))
def test_the_mask_takes_what_the_teacher_puts_above_the_positive_and_never_the_positive(
    scores, share, targets
):
    scores, targets = torch.from_numpy(scores), torch.tensor(targets)
    mask = above_target(scores, targets, share)
    for row, target in enumerate(targets.tolist()):
        assert not mask[row, target]
        for column in set(range(6)) - {target}:
            assert mask[row, column] == (scores[row, column] > share * scores[row, target])


def test_masked_candidates_do_not_compete():
    generator = torch.Generator().manual_seed(0)
    query, documents = torch.randn(1, 4, generator=generator), torch.randn(4, 4, generator=generator)
    teacher = torch.tensor([[0.9, 0.5, 0.6, 0.1]])
    every = rows(*range(4))
    loss = candidate_loss(query, documents, every, rows(1), [rows(1)], 1.0, teacher, mask_above=1.0)
    logits = (query @ documents.T)[:, [1, 3]]
    assert loss.item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits, torch.tensor([0])).item(), rel=1e-5
    )
    alone = candidate_loss(query, documents, every, rows(1), [rows(1)], 1.0)
    nothing = candidate_loss(query, documents, every, rows(1), [rows(1)], 1.0, teacher, mask_above=2.0)
    assert nothing.item() == alone.item()


@given(
    arrays(np.float32, 6, elements=st.floats(-1, 1, width=32)),
    arrays(np.float32, 9, elements=st.floats(0, 30, width=32)),
    st.floats(0, 0.99),
)
def test_a_hybrid_teacher_is_the_base_at_weight_zero_and_keeps_its_scale(base, bm25, weight):
    candidates = rows(0, 2, 3, 5, 7, 8)
    np.testing.assert_allclose(hybrid_scores(base, bm25, candidates, 0.0), base, atol=1e-5)
    made = hybrid_scores(base, bm25, candidates, weight)
    assert made.max() <= base.max() + 1e-5
    assert made.min() >= -1 - 1e-5


@given(
    arrays(np.float32, 6, elements=st.floats(-200, 200, width=32)),
    arrays(np.float32, 9, elements=st.floats(0, 30, width=32)),
    st.floats(0, 0.99),
)
def test_a_hybrid_teacher_of_dot_products_keeps_between_the_least_and_the_greatest(base, bm25, weight):
    candidates, least = rows(0, 2, 3, 5, 7, 8), float(base.min())
    np.testing.assert_allclose(hybrid_scores(base, bm25, candidates, 0.0, least), base, atol=1e-3)
    made = hybrid_scores(base, bm25, candidates, weight, least)
    assert base.min() - 1e-3 <= made.min()
    assert made.max() <= base.max() + 1e-3


def test_a_hybrid_teacher_keeps_the_order_of_cosines_below_the_floor():
    base, bm25 = np.array([0.3, 0.1, 0.2], dtype=np.float32), np.zeros(3, dtype=np.float32)
    np.testing.assert_allclose(hybrid_scores(base, bm25, rows(0, 1, 2), 0.0, 0.52), base, atol=1e-6)
    assert hybrid_scores(base, bm25, rows(0, 1, 2), 0.3, 0.52).argsort().tolist() == [1, 2, 0]


def test_a_teacher_that_reads_words_puts_a_document_with_the_query_s_words_first():
    settings = LexicalSettings()
    analyze = Analyzer(settings)
    texts = ["copper wire", "a dog sleeps", "zinc plate"]
    words = LexicalIndex(Postings.build(analyze(text) for text in texts), settings)
    same = torch.full((1, 3), 0.5)
    batch = Batch([[0]], rows(2), [rows(2)], None, texts=["where is zinc"])
    scores = WordsTeacher(words, 0.3).scores(same, batch, rows(0, 1, 2))
    assert scores.argmax().item() == 2
    far = torch.tensor([[104.0, 98.0, 95.0]])  # dot products, which words at a tenth do not turn round
    assert WordsTeacher(words, 0.1, floor=None).scores(far, batch, rows(0, 1, 2)).argmax().item() == 0
    assert torch.equal(Teacher().scores(same, batch, rows(0, 1, 2)), same)


@given(
    arrays(np.float32, 5, elements=st.floats(-30, 30, width=32)),
    st.floats(-1, 1, width=32),
    st.floats(0, 1, width=32),
)
def test_a_reranker_s_scores_keep_their_order_and_take_the_base_s_range(scores, low, spread):
    made = on_base_scale(ScoredCandidates("q", rows(*range(5)), scores, low, low + spread))
    assert made.min() >= low - 1e-5
    assert made.max() == pytest.approx(low + spread, abs=1e-5)
    assert (np.diff(made[np.argsort(scores)]) >= -1e-6).all()
    other_unit = on_base_scale(ScoredCandidates("q", rows(*range(5)), 3 * scores + 1, low, low + spread))
    if np.ptp(scores) > 0.1:
        np.testing.assert_allclose(other_unit, made, atol=1e-3)


def test_a_reranker_teaches_what_it_has_scored_and_the_base_the_rest():
    base = torch.tensor([[0.9, 0.5, 0.6, 0.1], [0.2, 0.3, 0.4, 0.5]])
    listed = {"a": (rows(3, 7, 8), np.float32([0.7, 0.8, 0.9])), "b": (rows(4), np.float32([0.3]))}
    batch = Batch([[0]] * 2, rows(3, 5), [rows(3), rows(5)], None, query_ids=["a", "b"])
    scores = RerankingTeacher(listed).scores(base, batch, rows(2, 3, 5, 8))
    assert torch.equal(scores, torch.tensor([[0.9, 0.7, 0.6, 0.9], [0.2, 0.3, 0.4, 0.5]]))
    assert base[0, 1] == 0.5  # what was given is left alone


def test_settings_without_effect_leave_an_expert_as_it_is():
    plain = TrainingSettings()
    assert plain.identity() == TrainingSettings(teacher_bm25=0.0, mask_above=None).identity()
    assert "mask_above" not in plain.identity()
    assert "teacher_bm25" not in plain.identity()
    assert TrainingSettings(mask_above=1.0).identity() != plain.identity()
    assert TrainingSettings(teacher_bm25=0.1).identity() != plain.identity()
    silent = TrainingSettings(distillation=0)
    assert TrainingSettings(distillation=0, teacher_bm25=0.1).identity() == silent.identity()
    assert TrainingSettings(mask_above=1.0).plain().identity() == plain.plain().identity()
    assert "soup" not in plain.identity()
    assert TrainingSettings(soup=2).identity() == plain.identity() | {"soup": 2}
    assert "teacher" not in plain.identity()
    taught = TrainingSettings(teacher=TEACHER, soup=3)
    assert taught.identity()["teacher"] == TEACHER.identity()
    assert taught.plain().identity() == plain.plain().identity()
    # Where a reranker runs, and how often it is asked at a time, changes no score.
    moved = TEACHER.model_copy(update={"url": "http://elsewhere", "concurrency": 1, "shard_size": 7})
    assert TrainingSettings(teacher=moved, soup=3).identity() == taught.identity()


def test_the_more_is_judged_the_less_the_teacher_has_to_say():
    settings = TrainingSettings(distillation=0.5, distillation_queries=100, max_epochs=None)
    weights = [settings.for_queries(queries).distillation for queries in (1, 100, 200, 1000)]
    assert weights == [0.5, 0.5, 0.25, 0.05]
    assert settings.for_queries(100).identity() == settings.identity()
    assert settings.for_queries(101).identity() != settings.identity()


def test_few_queries_make_a_run_shorter_and_leave_it_its_evaluations():
    settings = TrainingSettings(batch_size=32, max_steps=400, evaluate_every=20, max_epochs=20)
    cut = [settings.for_queries(queries) for queries in (1, 32, 150, 320, 10_000)]
    assert [one.max_steps for one in cut] == [20, 20, 100, 200, 400]
    assert [one.evaluate_every for one in cut] == [1, 1, 5, 10, 20]
    assert {one.max_epochs for one in cut} == {None}  # a fold has fewer queries, and is as long
    unlimited = settings.model_copy(update={"max_epochs": None})
    assert settings.for_queries(10_000).identity() == unlimited.for_queries(10_000).identity()
    assert unlimited.for_queries(1) == unlimited
    by_epochs = settings.model_copy(update={"max_steps": None})
    assert by_epochs.for_queries(1) == by_epochs
    patient = settings.model_copy(update={"max_steps": 10**9})
    assert patient.for_queries(150) == settings.for_queries(150)


def test_an_expert_is_trained_and_named_by_the_weight_that_its_queries_leave(tiny_data):
    def step(**training):
        workspace = Pipeline(tiny_recipe(tiny_data, training=training)).workspace
        return expert_step(workspace.source("fruit"), workspace.encoder, workspace.training)

    queries, few = step(distillation=1.0), step(distillation=1.0, distillation_queries=7)
    assert queries.job.training.distillation == 1.0
    assert few.job.training.distillation == 0.5  # of 14 train queries
    assert few.key != queries.key
    assert few.key == step(distillation=0.5).key


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"teacher": TEACHER, "teacher_bm25": 0.1}, "teacher_bm25: 0.1, and there is another teacher"),
        ({"teacher": TEACHER, "distillation": 0}, "without distillation and mask_above it has no use"),
        ({"teacher": TEACHER, "objective": "in_batch"}, "'in_batch' compares none of the documents"),
        ({"soup": 2, "adapter": PrefixSettings()}, "soup: 2, but adapters of kind 'prefix' are not averaged"),
    ],
)
def test_a_teacher_without_use_and_a_soup_without_a_mean_are_refused(settings, told):
    with pytest.raises(ValidationError, match=told):
        TrainingSettings(**settings)


class Line(torch.nn.Module):
    """The least that can be trained, with a LoRA's names."""

    def __init__(self):
        super().__init__()
        self.lora_A = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        self.lora_B = torch.nn.Parameter(torch.zeros(2))

    def loss(self, copy, step):
        return ((self.lora_A * self.lora_B).sum() - copy - step) ** 2


def soup_of(copies, numbers=None):
    """A fresh soup, and a function that takes one step of it; copies may be given other numbers."""
    line = Line()
    parameters = dict(line.named_parameters())
    soup = Soup(parameters, TrainingSettings(soup=copies, learning_rate=0.1), lambda step: 1.0)
    return (
        soup,
        parameters,
        lambda step: soup.step(lambda copy: line.loss(numbers[copy] if numbers else copy, step)),
    )


def test_a_soup_is_the_mean_of_copies_that_are_trained_as_one_is():
    _, mean, step_all = soup_of(3)
    alone = [soup_of(1, numbers=[number]) for number in range(3)]
    for step in range(4):
        losses = [step_one(step) for _, _, step_one in alone]
        assert step_all(step) == pytest.approx(np.mean(losses))
    for name in mean:
        expected = torch.stack([parameters[name] for _, parameters, _ in alone]).mean(dim=0)
        torch.testing.assert_close(mean[name], expected)


def test_a_soup_goes_on_from_its_state_to_the_last_bit():
    soup, parameters, step_all = soup_of(2)
    step_all(0)
    state = copy.deepcopy(soup.state())
    step_all(1)
    again, resumed, step_again = soup_of(2)
    again.restore(state)
    step_again(1)
    for name in parameters:
        assert torch.equal(resumed[name], parameters[name])
