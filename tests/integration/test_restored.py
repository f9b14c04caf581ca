"""A back-up that is restored at another place is served from there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import routerretriever
from ray import serve
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.client import Client
from routerretriever.serving.deployments.run import deploy
from support.recipes import TINY_TRAINING, with_changes
from support.runs import copy_artifacts, finished_recipe, run_recipe

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("services")]


def test_a_minimal_back_up_that_is_restored_is_served(cluster, finished_folder, tmp_path):
    """Of IA3 experts, so that this kind too is trained, scored, evaluated, released and served once."""
    root = copy_artifacts(finished_folder, tmp_path / "run")
    training = {**TINY_TRAINING, "learning_rate": 0.05, "adapter": {"kind": "ia3"}}
    recipe = run_recipe(finished_recipe(root, training=training, methods={}), root).pipeline.recipe
    routerretriever.backup(recipe, tmp_path / "backup.tar", minimal=True)
    shutil.rmtree(root)
    routerretriever.restore(tmp_path / "backup.tar", tmp_path / "restored")
    recipe = with_changes(recipe, storage=str(tmp_path / "restored"))
    configs = list(Path(recipe.storage).rglob("adapter_config.json"))
    assert {json.loads(one.read_text())["peft_type"] for one in configs} == {"IA3"}
    try:
        with Client(deploy(recipe, ArtifactStore.open(recipe.storage))) as client:
            assert client.service().version == 1
            query = "where is grape with fig"
            assert client.search(query, "fruit", top_k=3).results
            (expert,) = (each for each in client.experts() if each.name == "fruit")
            assert len(client.embed([query], model=expert.name)) == 1
    finally:
        serve.shutdown()
