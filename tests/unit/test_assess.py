"""What an assessment says; how it is measured is an integration test."""

from __future__ import annotations

import numpy as np
from routerretriever.evaluation.significance import compare_all
from routerretriever.studies.assess import Assessment


def assessment(gain: float) -> Assessment:
    random = np.random.default_rng(0)
    base = random.uniform(0, 0.5, 80)
    own = base + gain + random.normal(0, 0.05, 80)
    means = {"base": float(base.mean()), "fruit": float(own.mean())}
    return Assessment("clubs", 80, means, compare_all({"fruit": (own, base)}))


def test_the_best_system_is_named_with_its_interval():
    found = assessment(0.1)
    assert found.ranked() == ["fruit", "base"]
    assert "fruit helps most: +" in found.verdict()
    assert "on 80 generated queries" in found.verdict()
    assert found.table().row_count == 2


def test_nothing_is_recommended_for_a_gain_by_chance():
    assert "no system is better than the base beyond chance" in assessment(-0.1).verdict()
    assert "no system is better" in assessment(0.0).verdict()
