"""Figures of collections that are not shipped: the bare base, which needs no training.

ROUTERRETRIEVER_DATA=/path/to/collections pytest tests/end_to_end/test_known_scores.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import ray
from routerretriever.studies.reproduction import reproduce

DATA = os.environ.get("ROUTERRETRIEVER_DATA")
FIGURES = Path(__file__).parents[2] / "jobs" / "reproduction.yaml"
pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(not DATA, reason="ROUTERRETRIEVER_DATA names no folder of collections"),
    pytest.mark.timeout(7200),
]


@pytest.fixture(autouse=True)
def ray_ends():
    yield
    ray.shutdown()


def test_the_base_is_correct_to_the_digit(tmp_path):
    # Storage that holds the embeddings already saves most of an hour on a core.
    storage = os.environ.get("ROUTERRETRIEVER_STORAGE", str(tmp_path))
    outcomes = reproduce(FIGURES, ["collections-base"], [f"data_root={DATA}", f"storage={storage}"])
    assert "scifact" in [one.dataset for one in outcomes]
    assert [one for one in outcomes if one.verdict != "OK"] == []
