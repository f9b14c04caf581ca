"""Studies of a finished run agree with its evaluation where they meet."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from routerretriever.cli.main import main
from routerretriever.config.tuning import describe
from routerretriever.errors import RecipeError
from routerretriever.methods.experts import DATASET_ORACLE, INSTANCE_ORACLE, PAPER, ROUTED, Experts
from routerretriever.methods.hybrid import WEIGHT_ORACLE
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.studies.reproduction import reproduce
from routerretriever.studies.runs import (
    analyse_run,
    draw_learning_curve,
    measure_noise_floor,
    tune_router,
    tune_training,
)
from routerretriever.types import BASE
from ruamel.yaml import YAML
from support.paths import files_below
from support.recipes import with_changes

pytestmark = pytest.mark.integration


def test_routers_are_tuned_on_dev_and_every_trial_is_written(run):
    pipeline, _, _ = run
    trials = tune_router(pipeline, unseen_share=0.5)
    assert [t.score for t in trials] == sorted((t.score for t in trials), reverse=True)
    assert {"posterior", "neighbours", "pilots", "uniform"} <= {t.settings.router for t in trials}
    assert any(t.settings.fallback for t in trials)
    for trial in trials:
        means = [np.mean(list(values.values())) for values in (trial.in_domain, trial.unseen)]
        assert trial.score == pytest.approx(np.mean(means))
    written = json.loads((pipeline.report_folder / "router-tuning.json").read_text())
    assert len(written) == len(trials)


def test_training_settings_are_tried_on_dev_and_a_trial_that_has_ended_is_not_run_again(run, monkeypatch):
    pipeline, _, _ = run
    changes = {"training__max_steps": 2, "tuning__space": {"learning_rate": [0.02]}}
    tuned = Pipeline(with_changes(pipeline.recipe, **changes))
    ranking = tune_training(tuned)
    assert {describe(trial.values) for trial in ranking.trials} == {"as the recipe", "learning_rate 0.02"}
    for trial in ranking.trials:
        assert [run.steps for run in trial.runs] == [2, 2]
        assert trial.ended == "to its end"
    assert not files_below(Path(pipeline.store.uri) / "tuning")
    monkeypatch.setattr(
        "routerretriever.studies.trials.run_trials", lambda *_: pytest.fail("nothing is left to run")
    )
    assert tune_training(tuned) == ranking


def test_the_analyses_agree_with_the_evaluation_where_they_meet(run):
    pipeline, _, _ = run
    analyses = analyse_run(pipeline, ["metal", "fruit"], [1, 2])
    # They mix vectors, whatever the deployed router mixes.
    routing = pipeline.recipe.routing.model_copy(update={"merge": "embeddings"})
    changed = pipeline.recipe.model_copy(update={"name": "embeddings", "routing": routing})
    merging = Pipeline(changed)
    evaluation = merging.evaluation
    for dataset, fused in merging.method(Experts).hybrid.routed_scores.items():
        routed = evaluation.measured[ROUTED][dataset]
        np.testing.assert_allclose(fused.at(0.0).ndcg_at_10, routed.ndcg_at_10)
    assert [growth.experts for growth in analyses.growing] == [["metal"], ["metal", "fruit"]]
    everything = analyses.growing[-1]
    assert everything.router == pytest.approx(evaluation.mean(ROUTED), abs=1e-6)
    assert everything.dataset_oracle == pytest.approx(evaluation.mean(DATASET_ORACLE))
    assert everything.instance_oracle == pytest.approx(evaluation.mean(INSTANCE_ORACLE))
    assert everything.router_elsewhere == pytest.approx(evaluation.mean(ROUTED, zero_shot=True), abs=1e-6)
    # One expert alone: no oracle has a choice.
    alone = evaluation.ndcg_at_10["metal"]["metal"]
    first = analyses.growing[0]
    assert first.instance_oracle == first.dataset_oracle == pytest.approx(alone)
    for presence in analyses.with_and_without:
        assert presence.with_it == pytest.approx(evaluation.ndcg_at_10[ROUTED][presence.dataset], abs=1e-6)
    assert analyses.centroids[0].in_domain == pytest.approx(evaluation.mean(PAPER), abs=1e-6)
    kept = files_below(Path(pipeline.store.uri) / "analyses")
    assert analyse_run(pipeline, ["metal", "fruit"], [2]).growing == analyses.growing
    assert files_below(Path(pipeline.store.uri) / "analyses") == kept
    with pytest.raises(RecipeError, match="order"):
        analyse_run(pipeline, ["metal"], [1])
    with pytest.raises(RecipeError, match="clusters"):
        analyse_run(pipeline, None, [0])


def test_copies_of_an_expert_show_how_much_of_an_oracle_is_luck(run):
    pipeline, _, _ = run
    floor = measure_noise_floor(pipeline, "fruit", 2)
    assert floor.single <= floor.best_copy <= floor.copies_oracle
    figures = pipeline.evaluation.ndcg_at_10
    assert floor.experts_oracle == pytest.approx(figures[INSTANCE_ORACLE]["fruit"])
    assert floor.weights.oracle == pytest.approx(figures[WEIGHT_ORACLE]["fruit"])
    assert floor.weights.routed <= floor.weights.oracle_of_others_words
    with pytest.raises(RecipeError, match="no expert 'sport'"):
        measure_noise_floor(pipeline, "sport", 2)


def test_a_learning_curve_ends_at_the_recipes_own_expert_and_is_not_trained_twice(run):
    pipeline, _, _ = run
    curve = draw_learning_curve(pipeline, "fruit", [8])
    figures = pipeline.evaluation.ndcg_at_10
    every = len(pipeline.collections["fruit"].qrels("train"))
    assert [point.queries for point in curve.points] == [8, every]
    assert curve.base == pytest.approx(figures[BASE]["fruit"])
    assert curve.points[-1].experts == [pytest.approx(figures["fruit"]["fruit"])]
    experts = Path(pipeline.store.uri) / "experts"
    before = files_below(experts)
    assert draw_learning_curve(Pipeline(pipeline.recipe), "fruit", [8]) == curve
    assert files_below(experts) == before
    assert "<svg" in (pipeline.report_folder / "learning-curve-fruit.html").read_text()


def test_expected_figures_are_judged_and_a_failure_is_an_exit_code(run, tmp_path, capsys, monkeypatch):
    pipeline, _, _ = run
    figures = pipeline.evaluation.ndcg_at_10
    case = {"recipe": "recipe.yaml", "tolerance": 0.01, "wide_tolerance": 1.0}
    base, routed = 100 * figures[BASE]["sport"], 100 * figures[ROUTED]["fruit"]
    cases = {
        "base": {**case, "expected": {BASE: {"sport": round(base, 2)}}},
        "all": {
            **case,
            "expected": {ROUTED: {"fruit": round(routed + 0.5, 2)}, "own expert": {"metal": -1.0}},
        },
    }
    for name, content in (("recipe", pipeline.recipe.model_dump(mode="json")), ("figures", {"cases": cases})):
        with (tmp_path / f"{name}.yaml").open("w") as file:
            YAML().dump(content, file)
    outcomes = reproduce(tmp_path / "figures.yaml", [], [])
    assert [one.verdict for one in outcomes] == ["OK", "OKish", "FAIL"]
    assert outcomes[1].found == pytest.approx(routed)
    command = ["routerretriever", "reproduce", str(tmp_path / "figures.yaml"), "--only"]
    for name, code in (("base", 0), ("all", 1)):
        monkeypatch.setattr(sys, "argv", [*command, name])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == code
    assert "OKish" in capsys.readouterr().out
