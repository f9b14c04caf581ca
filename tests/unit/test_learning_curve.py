"""Learning curves: means, ranges and what is drawn of them."""

import dataclasses

import numpy as np
import pytest
from routerretriever.measures import Measured
from routerretriever.reports.plots import write_sections
from routerretriever.scoring.table import SplitScores
from routerretriever.studies.learning_curve import learning_curve, learning_curve_section
from routerretriever.types import BASE

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
