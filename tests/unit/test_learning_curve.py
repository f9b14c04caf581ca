"""Learning curves: means, ranges and what is drawn of them."""

import dataclasses

import numpy as np
import pytest
from routerretriever.adapters.tower import load_tower
from routerretriever.errors import RecipeError
from routerretriever.measures import Measured
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.reports.plots import write_sections
from routerretriever.scoring.table import SplitScores
from routerretriever.studies.learning_curve import learning_curve, learning_curve_section
from routerretriever.studies.runs import draw_learning_curve
from routerretriever.types import BASE
from support.recipes import tiny_recipe
from support.workers import work_here

EXPERTS = {200: ["all", "all-seed-1"], 50: ["small", "small-seed-1"]}
MEANS = {BASE: 0.4, "all": 0.6, "all-seed-1": 0.7, "small": 0.3, "small-seed-1": 0.5}


def scores():
    values = np.tile(list(MEANS.values()), (4, 1)) + np.array([[-0.1], [0.1], [-0.1], [0.1]])
    measured = Measured(*(values for _ in dataclasses.fields(Measured)))
    return SplitScores("fruit", "test", list("abcd"), list(MEANS), measured, np.zeros((4, 5, 2), np.float32))


def curve(**changes):
    deployed = dict.fromkeys(MEANS, True) | {"small": False}
    return learning_curve(scores(), {**EXPERTS, **changes}, deployed)


def test_sizes_come_in_order_with_the_mean_over_seeds_and_how_many_are_deployed():
    made = curve()
    assert made.base == pytest.approx(0.4)
    assert [point.queries for point in made.points] == [50, 200]
    assert [point.mean for point in made.points] == pytest.approx([0.4, 0.65])
    assert [point.deployed for point in made.points] == [1, 2]


def test_the_page_has_a_band_where_there_are_seeds(tmp_path):
    section = learning_curve_section(curve())
    assert section.rows[0] == ["50", "40.0", "30.0", "50.0", "40.0", "1 of 2"]
    (band,) = section.plots[0].bands.values()
    assert (band.low, band.high) == (pytest.approx([30, 60]), pytest.approx([50, 70]))
    page = write_sections("curve", [section], tmp_path / "many.html").read_text()
    alone = learning_curve_section(learning_curve(scores(), {50: ["small"]}, {"small": True}))
    assert alone.plots[0].bands == {}
    # matplotlib draws a band as one more path, half transparent.
    single = write_sections("curve", [alone], tmp_path / "one.html").read_text()
    assert "fill-opacity: 0.15" in page
    assert "fill-opacity: 0.15" not in single


@pytest.fixture
def untrained(tiny_data, monkeypatch):
    """A run whose adapters are committed as they start, in this process; notes the name and seed of each."""
    made = []

    def build_all(cls, steps, store):
        for step in steps:
            settings = step.job.training
            made.append((step.name, settings.seed))
            tower = load_tower(step.job.encoder)
            tower.add_adapter("expert", settings.adapter)
            folder = tiny_data / "adapters" / step.name
            tower.save_adapter("expert", folder)
            store.put_folder(step.key, folder)
            store.commit(step.key, {"kind": "expert", "domain": step.name, "deployed": settings.seed == 0})

    work_here(monkeypatch, "corpus.build", "runtime.shards")
    monkeypatch.setattr("routerretriever.training.expert.TrainAdapter.build_all", classmethod(build_all))
    return Pipeline(tiny_recipe(tiny_data)), made


def test_each_size_is_trained_with_each_seed_once_and_written(untrained):
    pipeline, made = untrained
    curve = draw_learning_curve(pipeline, "fruit", [4, 8], seeds=2)
    every = len(pipeline.collections["fruit"].qrels("train"))
    assert [point.queries for point in curve.points] == [4, 8, every]
    assert [point.deployed for point in curve.points] == [1, 1, 1]
    assert sorted(made) == [
        ("fruit", 0), ("fruit-4-queries", 0), ("fruit-4-queries-seed-1", 1),
        ("fruit-8-queries", 0), ("fruit-8-queries-seed-1", 1), ("fruit-seed-1", 1),
    ]  # fmt: skip
    assert draw_learning_curve(pipeline, "fruit", [4, 8], seeds=2) == curve
    assert len(made) == 6
    assert (pipeline.report_folder / "learning-curve-fruit.html").exists()
    with pytest.raises(RecipeError, match="seeds: 0 is too few"):
        draw_learning_curve(pipeline, "fruit", [4], seeds=0)
