"""A back-up that is restored at another place is served from there."""

from __future__ import annotations

import shutil

import pytest
import routerretriever
from ray import serve
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.client import Client
from routerretriever.serving.deployments.run import deploy
from support.recipes import with_changes
from support.runs import copy_artifacts, finished_recipe, run_recipe

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("services")]


def test_a_minimal_back_up_that_is_restored_is_served(finished_folder, tmp_path):
    root = copy_artifacts(finished_folder, tmp_path / "run")
    recipe = run_recipe(finished_recipe(root), root).pipeline.recipe
    routerretriever.backup(recipe, tmp_path / "backup.tar", minimal=True)
    shutil.rmtree(root)
    routerretriever.restore(tmp_path / "backup.tar", tmp_path / "restored")
    recipe = with_changes(recipe, storage=str(tmp_path / "restored"))
    try:
        with Client(deploy(recipe, ArtifactStore.open(recipe.storage))) as client:
            assert client.service().version == 1
            assert client.search("where is grape with fig", "fruit", top_k=3).results
    finally:
        serve.shutdown()
