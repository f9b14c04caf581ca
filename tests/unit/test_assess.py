"""What an assessment says; how it is measured is an integration test."""

from __future__ import annotations

import numpy as np
import pytest
from routerretriever.datasets.collection import open_collection
from routerretriever.errors import RecipeError
from routerretriever.evaluation.significance import compare_all
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.studies.assess import BM25, HYBRID, Assessment, assess, assess_documents
from support.collections import WORDS, write_collection
from support.recipes import tiny_recipe
from support.runs import put_fresh_experts
from support.workers import work_here


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


@pytest.fixture
def trained(tiny_data, monkeypatch):
    """The tiny recipe with fresh adapters in the place of trained ones, and shards without Ray."""
    work_here(monkeypatch, "corpus.build", "runtime.shards")
    pipeline = Pipeline(tiny_recipe(tiny_data))
    put_fresh_experts(pipeline, tiny_data)
    return pipeline


def test_every_expert_the_base_and_bm25_are_measured_on_the_same_queries(trained, tmp_path):
    collection = open_collection("clubs", write_collection(tmp_path / "clubs", WORDS["sport"]))
    found = assess(trained, collection)
    assert found.queries == 21  # test queries are left alone
    assert set(found.ndcg_at_10) == {"base", "fruit", "metal", BM25, HYBRID}
    # A fresh LoRA changes nothing, and the words of these queries are those of their documents.
    assert found.ndcg_at_10["fruit"] == found.ndcg_at_10["base"]
    assert found.differences["metal"].p_value == 1
    assert found.ranked()[0] in (BM25, HYBRID)
    with pytest.raises(RecipeError, match="in the recipe already"):
        assess(trained, trained.collections["sport"])


@pytest.mark.parametrize(
    ("name", "told"), [("clubs", "fruit, metal are not trained"), ("sport", "in the recipe already")]
)
def test_what_cannot_be_assessed_is_told_before_queries_are_generated(tiny_data, name, told):
    notes = tiny_data / "notes.txt"
    notes.write_text("words")
    with pytest.raises(RecipeError, match=told):
        assess_documents(tiny_recipe(tiny_data), name, notes)
    assert not (tiny_data / "data" / "generated").exists()
