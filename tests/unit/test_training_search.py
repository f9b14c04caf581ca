"""A search over how experts are trained: which trials there are, how they rank, and that none runs twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import ray
import torch
from hypothesis import given
from hypothesis import strategies as some
from routerretriever.adapters.lora import LoraSettings
from routerretriever.config.loading import parse_recipe
from routerretriever.config.tuning import TuningSettings, describe
from routerretriever.errors import EncoderError, RecipeError, TrainingFailed
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.studies import trials
from routerretriever.studies.runs import plan_training_search, tune_training
from routerretriever.studies.training_search import TrainingTrial, TrialRun, rank
from routerretriever.training.loop import evaluations
from routerretriever.training.settings import TrainingSettings
from ruamel.yaml import YAML
from support.recipes import TINY_TRAINING, tiny_recipe, with_changes
from support.workers import work_here

RATES = {"learning_rate": [0.001, 0.02]}


def choices(values):
    return some.lists(values, min_size=1, max_size=4)


spaces = some.fixed_dictionaries(
    {"learning_rate": choices(some.floats(1e-6, 1.0))},
    optional={
        "distillation": choices(some.sampled_from([0, 0.5, 1.0])),
        "adapter": some.fixed_dictionaries({"rank": choices(some.integers(1, 64))}),
    },
)


@given(spaces, some.integers(1, 8), some.integers(0, 3))
def test_trials_are_different_choices_from_the_space_after_the_recipes_own(space, count, seed):
    tuning, training = TuningSettings(space=space, trials=count, seed=seed), TrainingSettings()
    drawn = tuning.draw(training)
    assert drawn[0] == ({}, training)
    assert len(drawn) <= count + 1
    assert len({changed.model_dump_json() for _, changed in drawn}) == len(drawn)
    for values, changed in drawn[1:]:
        assert changed.learning_rate == values["learning_rate"]
        assert changed.learning_rate in space["learning_rate"]
        assert changed.model_copy(update={n: getattr(training, n) for n in space}) == training
    assert tuning.draw(training) == drawn


def test_the_default_space_lies_around_the_recipes_settings_whatever_the_adapter():
    for adapter in ({"kind": "lora", "rank": 1}, {"kind": "ia3"}, {"kind": "prefix"}):
        training = TrainingSettings.model_validate({"adapter": adapter, "learning_rate": 1e-4})
        drawn = TuningSettings().draw(training)
        assert len(drawn) == 10
        assert {changed.learning_rate for _, changed in drawn} == {3e-5, 1e-4, 3e-4}
        ranks = {changed.adapter.rank for _, changed in drawn if isinstance(changed.adapter, LoraSettings)}
        assert ranks == ({1, 2} if adapter["kind"] == "lora" else set())


def test_the_default_space_leaves_no_teacher_without_use():
    teacher = {"kind": "cross_encoder", "model": "some/reranker"}
    training = TrainingSettings.model_validate({"teacher": teacher})
    assert {changed.distillation for _, changed in TuningSettings().draw(training)} == {1.0}
    masked = training.model_copy(update={"mask_above": 0.95})
    assert {changed.distillation for _, changed in TuningSettings().draw(masked)} == {0.0, 1.0}


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({}, "tuning.space: empty"),
        ({"learning_rat": [1]}, "tuning.space.learning_rat: training has no such setting"),
        ({"adapter": {"rnk": [1]}}, "tuning.space.adapter.rnk: training has no such setting"),
        ({"learning_rate": {"x": [1]}}, "tuning.space.learning_rate.x: training has no such setting"),
        ({"learning_rate": []}, "tuning.space.learning_rate: an empty list"),
        ({"learning_rate": 0.1}, "tuning.space.learning_rate: found 0.1; give a list"),
        ({"learning_rate": ["much"]}, "tuning.space.learning_rate: Input should be a valid number"),
        ({"adapter": {"rank": [0]}}, "tuning.space.adapter.rank: Input should be greater than 0"),
        ({"seed": [1, 2]}, "tuning.space.seed: the same for all trials"),
    ],
)
def test_a_bad_space_is_refused_with_the_recipe_in_one_line(space, told, tmp_path):
    values = tiny_recipe(tmp_path).model_dump(mode="json") | {"tuning": {"space": space}}
    with pytest.raises(RecipeError) as refused:
        parse_recipe(values)
    _, line = str(refused.value).splitlines()
    assert line.strip().startswith(told)


def run(domain, *values, seed=0, base=0.4):
    history = [(2 * number, value) for number, value in enumerate((base, *values))]
    return TrialRun(domain, seed, base, history, 1.0)


def trial(*runs, values=None, **changes):
    return TrainingTrial(values or {}, TrainingSettings(), list(runs), **changes)


def test_a_trial_has_the_mean_over_domains_of_the_mean_over_seeds():
    made = trial(run("a", 0.5), run("a", 0.7, seed=1), run("b", 0.3))
    assert made.gains == {"a": pytest.approx(0.2), "b": pytest.approx(0.0)}
    assert made.mean_gain == pytest.approx(0.1)
    assert (made.worst, made.steps, made.seconds) == ("b", 6, 3.0)


def test_the_course_is_of_the_best_so_far_and_a_run_that_has_ended_keeps_its_own():
    made = trial(run("a", 0.6), run("b", 0.4, 0.8, 0.5))
    assert made.course() == pytest.approx([0.1, 0.3, 0.3])
    assert made.runs[1].best_step == 4


def test_the_best_mean_comes_first_then_the_better_worst_domain_and_failures_last():
    uneven = trial(run("a", 0.8), run("b", 0.4))
    even = trial(run("a", 0.6), run("b", 0.6))
    best = trial(run("a", 0.7), run("b", 0.8))
    failed = trial(run("a", 0.9), run("b", 0.9), failed="the loss is nan")
    assert rank([failed, uneven, even, best]).trials == [best, even, uneven, failed]


def test_the_advice_is_yaml_that_a_recipe_takes_as_it_is():
    (_, _), (values, changed) = TuningSettings(
        space={"learning_rate": [0.02], "adapter": {"target_modules": [["query", "value"]]}}
    ).draw(TrainingSettings.model_validate({"adapter": {"kind": "lora", "alpha": 8}}))
    ranking = rank([TrainingTrial(values, changed, [run("a", 0.6)])])
    read = YAML(typ="safe", pure=True).load(ranking.advice())
    adapter = {"kind": "lora", "alpha": 8, "target_modules": ["query", "value"]}
    assert read == {"training": {"learning_rate": 0.02, "adapter": adapter}}
    assert "chance" in ranking.advice()
    assert "own settings are the best" in rank([trial(run("a", 0.6))]).advice()


@pytest.fixture
def pipeline(tiny_data):
    training = {**TINY_TRAINING, "max_steps": 4}
    tuning = {"space": RATES, "grace_evaluations": 1}
    return Pipeline(tiny_recipe(tiny_data, training=training, tuning=tuning))


def changed(pipeline, **changes):
    return Pipeline(with_changes(pipeline.recipe, **changes))


def test_what_does_not_fit_is_refused_before_ray_starts(pipeline):
    with pytest.raises(RecipeError, match="domain: no expert 'sport'"):
        tune_training(pipeline, ["sport"])
    with pytest.raises(RecipeError, match="seeds: 0 is too few"):
        tune_training(pipeline, seeds=0)
    words = changed(pipeline, tuning__space={"teacher_bm25": [0.5]}, corpus__lexical=None)
    with pytest.raises(RecipeError, match=r"needs the words of fruit.*\(teacher_bm25 0.5\)"):
        tune_training(words)
    layers = changed(pipeline, tuning__space={"adapter": {"target_modules": [["nowhere"]]}})
    with pytest.raises(EncoderError, match="no linear layer named 'nowhere'"):
        tune_training(layers)
    assert not ray.is_initialized()


def test_a_plan_tells_steps_and_what_is_there(pipeline):
    search = plan_training_search(pipeline, ["metal"], seeds=2)
    assert describe(search.plans[0].values) == "as the recipe"
    assert [(len(plan.jobs), plan.steps, plan.evaluations) for plan in search.plans] == [(2, 8, 2)] * 3
    assert {job.training.seed for job in search.plans[0].jobs} == {0, 1}
    assert search.table(pipeline.store).row_count == 4


@pytest.fixture
def tuned(pipeline, monkeypatch, tmp_path):
    """Notes the reports of every trial that runs, one after the other in this process, as Tune would run it.

    Those whose numbers are in ``stop`` are ended after their first evaluation.
    """
    reported, stop = {}, set()

    class Stopped(Exception):
        pass

    def run_all(search, store):
        keep = trials.KeepResults(search, store)
        for number in range(len(search.plans)):
            own = reported.setdefault(number, [])

            def report(result, number=number, own=own):
                own.append(result["mean_gain"])
                done = number in stop
                config = type("Trial", (), {"config": {"number": number}})
                keep.on_trial_result(0, [], config, {**result, "done": done})
                if done:
                    raise Stopped

            monkeypatch.setattr(trials.tune, "report", report)
            try:
                trials.run_trial({"number": number}, search, store)
            except Stopped:
                continue
        return {}

    work_here(monkeypatch, "corpus.build")
    monkeypatch.setenv("TUNE_ORIG_WORKING_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trials, "run_trials", run_all)
    return reported, stop


def test_domains_take_turns_and_end_as_if_each_was_alone(pipeline, tuned):
    reported, _ = tuned
    ranking = tune_training(pipeline)
    gains = [each.mean_gain for each in ranking.trials]
    assert gains == sorted(gains, reverse=True)
    assert len(gains) == 3
    for job in plan_training_search(pipeline).plans[0].jobs:
        *_, alone = evaluations(job, pipeline.store)
        own = next(each for each in ranking.trials if not each.values)
        (ours,) = [each for each in own.runs if each.domain == job.name]
        assert ours.history == alone.progress.history
    assert all(len(each) == 2 for each in reported.values())
    assert reported[0] == own.course()
    page = (pipeline.report_folder / "training-tuning.html").read_text()
    assert "<svg" in page
    assert "<pre># " in page
    assert (pipeline.report_folder / "training-tuning.json").exists()


def test_a_search_goes_on_where_it_was_interrupted(pipeline, tuned, monkeypatch):
    reported, _ = tuned
    first = tune_training(pipeline, ["fruit"])
    search = plan_training_search(pipeline, ["fruit"])
    pipeline.store.delete(search.plans[2].key)
    trained = []

    def counted(job, store):
        trained.append(job.key)
        return evaluations(job, store)

    monkeypatch.setattr("routerretriever.training.loop.evaluations", counted)
    before = {number: list(gains) for number, gains in reported.items()}
    reported.clear()
    again = tune_training(pipeline, ["fruit"])
    assert trained == [job.key for job in search.plans[2].jobs]
    assert reported == before, "what is there is played back, for what is left to be judged beside it"
    assert [each.gains for each in again.trials] == [each.gains for each in first.trials]
    reported.clear()
    tune_training(pipeline, ["fruit"])
    assert not reported, "nothing is left to run"


def test_what_was_ended_early_is_a_result_of_its_own_search_only(pipeline, tuned):
    reported, stop = tuned
    stop.add(2)
    ranking = tune_training(pipeline, ["fruit"])
    assert sorted(each.ended for each in ranking.trials) == ["stopped early", "to its end", "to its end"]
    stop.clear()
    reported.clear()
    tune_training(pipeline, ["fruit"])
    assert not reported
    other = tune_training(changed(pipeline, tuning__reduction=2.0), ["fruit"])
    assert [len(reported[number]) for number in range(3)] == [2, 2, 2]
    assert {each.ended for each in other.trials} == {"to its end"}


def test_a_loss_that_is_no_number_ends_its_trial_and_is_told_if_no_trial_is_left(
    pipeline, tuned, monkeypatch
):
    nothing = torch.tensor(float("nan"))
    monkeypatch.setattr("routerretriever.training.loop.candidate_loss", lambda *_: nothing)
    with pytest.raises(TrainingFailed, match="all 3 trials failed, the first: fruit: the loss is nan"):
        tune_training(pipeline, ["fruit"])
    search = plan_training_search(pipeline, ["fruit"])
    for plan in search.plans:
        result = search.result(plan, pipeline.store)
        assert result.ended.startswith("failed: fruit: the loss is nan at step 0")
        assert result.mean_gain == 0


def test_an_interrupt_is_passed_on_and_keeps_what_has_ended(pipeline, tuned, monkeypatch):
    run_all = trials.run_trials
    search = plan_training_search(pipeline, ["fruit"])
    monkeypatch.setattr(
        trials, "run_trials", lambda search, store: run_all(replace(search, plans=search.plans[:1]), store)
    )
    with pytest.raises(KeyboardInterrupt):
        tune_training(pipeline, ["fruit"])
    there = [search.result(plan, pipeline.store) is not None for plan in search.plans]
    assert there == [True, False, False]
