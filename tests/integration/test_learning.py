"""Feedback becomes a challenger: one expert is trained again, nothing is encoded again."""

from __future__ import annotations

from pathlib import Path

import pytest
import routerretriever
from routerretriever.artifacts.filesystem import FileSystem
from routerretriever.config.loading import load_recipe
from routerretriever.datasets.collection import open_collection
from routerretriever.datasets.feedback import Feedback, FeedbackLog
from routerretriever.pipeline.learning import learn
from routerretriever.registry.registry import Registry
from support.paths import files_below
from support.recipes import save_recipe
from support.runs import finished_recipe, run_recipe

pytestmark = pytest.mark.integration


def test_feedback_trains_one_expert_again_and_challenges_the_release(cluster, artifacts):
    pipeline, registered, root = run_recipe(finished_recipe(artifacts, methods={}), artifacts)
    path = save_recipe(pipeline.recipe, root / "recipe.yaml")
    log = FeedbackLog(FileSystem.open(pipeline.store.uri))
    for number in range(10):
        document = f"d{number}"
        log.append(Feedback(f"r{number}", float(number), "", "ann", "fruit", f"some fruit text {number}",
                            (document,), relevant=(document,)))  # fmt: skip
    corpora = files_below(Path(pipeline.store.uri) / "corpora")
    (found,), challenger = learn(path)
    assert (found.domain, found.train, found.dev) == ("fruit", 8, 2)
    assert challenger is not None
    assert challenger.expert_versions["metal"] == registered.expert_versions["metal"]
    assert challenger.expert_versions["fruit"] != registered.expert_versions["fruit"]
    assert files_below(Path(pipeline.store.uri) / "corpora") == corpora
    known = Registry(pipeline.recipe.registry, pipeline.store)
    assert known.released() == registered.version
    assert known.challenger() == challenger.version
    assert load_recipe(path) == pipeline.recipe
    (found,), nothing = learn(path)
    assert (found.state, nothing) == ("challenger", None)
    routerretriever.release(path, challenger.version)
    changed = load_recipe(path)
    assert len(open_collection("fruit", changed.domain_path("fruit")).queries("train")) == 22
    assert learn(path)[0][0].state == "released"
    routerretriever.rollback(path)
    assert load_recipe(path) == pipeline.recipe
