"""An expert that is trained beside its folds ends as one that has waited for them."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from routerretriever.errors import TrainingFailed
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.training import expert as experts
from routerretriever.training import loop, worker
from routerretriever.training.expert import TrainAdapter, expert_step
from routerretriever.training.job import BEST_FOLDER
from routerretriever.training.loop import evaluations
from routerretriever.training.queue import Course
from routerretriever.training.selection import Choice, Selected, Verdict
from routerretriever.training.speculation import Speculation
from safetensors.torch import load_file
from support.recipes import TINY_TRAINING, tiny_recipe
from support.workers import work_here

STEPS = 12
VERDICT = Verdict(queries=20, gain=0.1, low=0.05, high=0.15, deployed=True)


@pytest.fixture
def made(tiny_data, monkeypatch):
    """The step of an expert that a cross-validation chooses, with all but its folds built."""
    work_here(monkeypatch, "corpus.build")
    training = {**TINY_TRAINING, "max_steps": STEPS, "evaluate_every": 4, "selection": "cross_validation"}
    run = Pipeline(tiny_recipe(tiny_data, training=training))
    workspace = run.workspace
    step = expert_step(workspace.source("fruit"), workspace.encoder, workspace.training)
    workspace.build(part for part in step.inputs if part not in step.folds)
    return step, run.store


def selected(step):
    return Selected(Choice(step, 0.75), VERDICT)


def after(looks, step):
    """What folds have chosen, which is known from a number of looks on."""
    found = iter([None] * looks)
    return Speculation(lambda: next(found, selected(step)))


def ended(job, store, speculation=None):
    """The adapter and what is known of its training, at the end."""
    for each in evaluations(job, store, speculation=speculation):
        if each.done:
            progress = each.progress
            weights = load_file(each.save() / BEST_FOLDER / "adapter_model.safetensors")
            facts = progress.step, progress.best_step, progress.best_dev, progress.history, each.selected
            return {name: weight.tolist() for name, weight in weights.items()}, facts
    raise AssertionError


@pytest.mark.parametrize("step", [4, 8, STEPS])
def test_it_ends_as_if_it_had_waited(made, monkeypatch, step):
    monkeypatch.setattr("routerretriever.training.speculation._POLL_SECONDS", 0)
    job = replace(made[0].job, selection="chosen")
    waited = ended(replace(job, chosen=selected(step)), made[1])
    assert waited[1][:2] == (step, step)
    for looks in range(6):
        assert ended(job, made[1], after(looks, step)) == waited


@pytest.mark.parametrize("chosen", [4, STEPS])
def test_a_loss_that_is_no_number_matters_up_to_the_chosen_step_only(made, monkeypatch, chosen):
    true, calls = loop.candidate_loss, []

    def diverges(*given):
        calls.append(1)
        return true(*given) * (float("nan") if len(calls) > 6 else 1)

    job = replace(made[0].job, selection="chosen")
    waited = ended(replace(job, chosen=selected(4)), made[1])
    monkeypatch.setattr(loop, "candidate_loss", diverges)
    if chosen == 4:
        assert ended(job, made[1], after(2, chosen)) == waited
    else:
        with pytest.raises(TrainingFailed, match="the loss is nan at step 6"):
            ended(job, made[1], after(2, chosen))


@pytest.mark.parametrize("chosen", [4, STEPS])
def test_weights_that_are_no_numbers_after_the_last_step_are_no_expert(made, monkeypatch, chosen):
    calls = []

    class Overflowing(loop.Soup):
        def __init__(self, parameters, *given):
            super().__init__(parameters, *given)
            self.first = next(iter(parameters.values()))

        def step(self, loss_of):
            calls.append(1)
            loss = super().step(loss_of)
            if len(calls) == chosen:
                self.first.data.fill_(float("inf"))
            return loss

    monkeypatch.setattr(loop, "Soup", Overflowing)
    job = replace(made[0].job, selection="chosen")
    told = f"fruit: a weight is no finite number after step {chosen - 1}; lower training.learning_rate"
    with pytest.raises(TrainingFailed, match=told):
        ended(replace(job, chosen=selected(chosen)), made[1])
    calls.clear()
    with pytest.raises(TrainingFailed, match=told):
        ended(job, made[1], after(0, chosen))


def test_a_fold_that_fails_is_the_reason(made, monkeypatch):
    job = made[0].ready_job(made[1])
    assert job.folds == tuple(fold.key for fold in made[0].folds)
    jobs = {fold.name: fold.job for fold in made[0].folds} | {job.name: job}
    courses = {name: Course() for name in jobs}
    queue = SimpleNamespace(courses=SimpleNamespace(remote=lambda: courses))
    monkeypatch.setattr(worker.ray, "get", lambda value: value)
    assert worker.chosen_step(job, jobs, made[1], queue) is None
    courses["fruit fold 2 of 3"].failed = "its worker was lost"
    with pytest.raises(TrainingFailed, match="fruit: its step is chosen by fruit fold 2 of 3, which failed"):
        worker.chosen_step(job, jobs, made[1], queue)


def built(steps, store, monkeypatch):
    """The names of what is trained at once, one list after the other."""
    runs = []
    monkeypatch.setattr(
        "routerretriever.training.trainers.run_jobs", lambda jobs, _: runs.append([job.name for job in jobs])
    )
    monkeypatch.setattr(experts, "chosen_by_folds", lambda *_: None)
    TrainAdapter.build_all(steps, store)
    return runs


def test_folds_come_first_and_what_others_train_is_waited_for(made, monkeypatch):
    step, store = made
    names = [fold.name for fold in step.folds]
    assert built([step, *step.folds], store, monkeypatch) == [[*names, "fruit"]]
    assert built([step, *step.folds[:2]], store, monkeypatch) == [names[:2]]
    assert built([step], store, monkeypatch) == []


@pytest.mark.parametrize("settings", [{"workers": 2}, {"max_epochs": 3}])
def test_several_workers_and_runs_of_other_lengths_wait_for_their_folds(made, monkeypatch, settings):
    step, store = made
    job = replace(step.job, training=step.job.training.model_copy(update=settings))
    step = replace(step, job=job)
    names = [fold.name for fold in step.folds]
    assert built([step, *step.folds], store, monkeypatch) == [names, ["fruit"]]
