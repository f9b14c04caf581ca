"""Domains that are added, removed, or have no test set."""

from __future__ import annotations

from pathlib import Path

import pytest
from routerretriever import RouterRetriever
from routerretriever.config.loading import load_recipe
from routerretriever.errors import RecipeError
from routerretriever.pipeline.domains import add_domain, remove_domain
from routerretriever.registry.registry import Registry
from support.paths import files_below
from support.recipes import save_recipe, with_changes
from support.runs import finished_recipe, run_recipe

pytestmark = pytest.mark.integration


def test_adding_and_removing_an_expert_touches_nobody_else(cluster, artifacts):
    # A joint model would be trained anew whenever a domain comes or goes, and is not what this is about.
    pipeline, registered, root = run_recipe(finished_recipe(artifacts, methods={}), artifacts)
    path = save_recipe(pipeline.recipe, root / "recipe.yaml")
    weights = files_below(Path(pipeline.store.uri) / "experts")
    added = add_domain(path, "sport", str(root / "data" / "sport"))
    after = files_below(Path(pipeline.store.uri) / "experts")
    assert {name: after[name] for name in weights} == weights
    assert {n: added.expert_versions[n] for n in ("fruit", "metal")} == registered.expert_versions
    assert added.version > registered.version
    assert load_recipe(path).expert_domains == ["fruit", "metal", "sport"]
    with pytest.raises(RecipeError, match="has an expert already"):
        add_domain(path, "sport", "anywhere")

    removed = remove_domain(path, "metal")
    assert sorted(removed.expert_versions) == ["fruit", "sport"]
    assert removed.expert_versions["fruit"] == registered.expert_versions["fruit"]
    assert RouterRetriever.load(removed.uri, removed.tracking_uri).experts == ["fruit", "sport"]
    with pytest.raises(RecipeError, match="no such expert"):
        remove_domain(path, "metal")


def test_a_change_that_would_retrain_others_is_refused_and_leaves_the_recipe(artifacts):
    recipe = with_changes(finished_recipe(artifacts), training__learning_rate=0.02)
    path = save_recipe(recipe, artifacts / "recipe.yaml")
    before = path.read_text()
    with pytest.raises(RecipeError, match="fruit, metal are not trained"):
        add_domain(path, "sport", str(artifacts / "data" / "sport"))
    assert path.read_text() == before


def test_experts_without_a_test_set_are_registered_and_shown_on_the_others(cluster, artifacts):
    for name in ("fruit", "metal"):
        (artifacts / "data" / name / "qrels" / "test.tsv").unlink()
    pipeline, registered, _ = run_recipe(finished_recipe(artifacts, methods={}), artifacts)
    assert pipeline.evaluation.datasets == ["sport"]
    (bundle,) = Registry(pipeline.recipe.registry, pipeline.store).bundles()
    assert (bundle.version, list(bundle.ndcg_at_10)) == (registered.version, ["sport"])
    page = (pipeline.report_folder / "evaluation.html").read_text()
    assert "sport" in page
    assert ">nan" not in page
