"""Training on Ray: several workers, workers that die, domains that fail."""

from __future__ import annotations

import gzip
import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.datasets.judgements import judgements_step
from routerretriever.errors import TrainingFailed
from routerretriever.methods.experts import Experts
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.runtime.metrics import TRAINING_STEPS, WORKERS_REPLACED
from safetensors.numpy import load_file
from support.recipes import with_changes
from support.runs import finished_recipe

pytestmark = pytest.mark.integration

_JUDGEMENTS = "judgements.json.gz"


def test_one_domains_failure_leaves_the_others_finished(cluster, artifacts):
    recipe = with_changes(finished_recipe(artifacts), training__seed=9, training__max_failures=0)
    pipeline = Pipeline(recipe)
    # Reading would refuse such judgements, so they are put where the trainer finds them.
    key, store = judgements_step(pipeline.collections["metal"], "train").key, pipeline.store
    _replace_judgements(
        store, key, {"queries": {"q0": "where is tin"}, "qrels": {"q0": {"missing-document": 1}}}
    )
    with pytest.raises(TrainingFailed, match=r"metal: .*missing-document"):
        _ = pipeline.method(Experts).experts
    assert pipeline.untrained() == ["metal"]


def test_data_parallel_workers_and_the_other_objectives_train(cluster, artifacts):
    recipe = finished_recipe(artifacts)
    pipeline = Pipeline(recipe)
    # One worker has a long query among short ones, which it runs in a pass of its own, and the other has not.
    key = judgements_step(pipeline.collections["metal"], "train").key
    content = json.loads(gzip.decompress((pipeline.store.fetch(key) / _JUDGEMENTS).read_bytes()))
    first = next(iter(content["queries"]))
    content["queries"][first] += " again" * 100
    _replace_judgements(pipeline.store, key, content)
    changes = {
        "objective": "sampled",
        "workers": 2,
        "hard_negatives": 2,
        "random_negatives": 4,
        "max_steps": 2,
    }
    training = recipe.training.model_copy(update=changes)
    # The cluster has room for one group of two workers: it trains one expert after the other.
    experts = Pipeline(recipe.model_copy(update={"training": training})).method(Experts).experts
    assert {name: expert.card["steps"] for name, expert in experts.items()} == {"fruit": 2, "metal": 2}


def test_a_killed_worker_is_replaced_and_ends_where_an_undisturbed_one_does(cluster, artifacts):
    recipe = finished_recipe(artifacts)
    store, undisturbed = ArtifactStore.open(recipe.storage), Pipeline(recipe).method(Experts).experts["fruit"]
    theirs = load_file(undisturbed.folder(store) / "adapter_model.safetensors")
    shutil.rmtree(undisturbed.folder(store))
    disturbed = Pipeline(recipe)
    training, killed = artifacts / "storage" / "training", []
    killer = threading.Thread(target=kill_trainer_after_a_checkpoint, args=(training, killed))
    killer.start()
    counted = disturbed.clock.counts
    try:
        expert = disturbed.method(Experts).experts["fruit"]
    finally:
        killer.join()
    assert len(killed) == 1
    assert counted[WORKERS_REPLACED] == 1
    assert counted[TRAINING_STEPS] >= expert.card["steps"]  # some were taken twice
    assert undisturbed.card["resumed_at"] == []
    (resumed_at,) = expert.card["resumed_at"]
    assert 2 <= resumed_at < 30
    assert expert.card["history"] == undisturbed.card["history"]
    ours = load_file(expert.folder(store) / "adapter_model.safetensors")
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


def kill_trainer_after_a_checkpoint(folder: Path, killed: list[int]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        # Steps 2 and later, so that something is lost that had been learned.
        if any(int(whole.parent.name) >= 2 for whole in folder.glob("*/*/artifact.json")):
            for process in psutil.Process().children(recursive=True):
                if process.name().startswith("ray::RayTrainWo"):
                    process.kill()
                    killed.append(process.pid)
                    return
        time.sleep(0.02)


def _replace_judgements(store: ArtifactStore, key: str, content: dict[str, Any]) -> None:
    store.delete(key)
    store.put(key, _JUDGEMENTS, lambda path: path.write_bytes(gzip.compress(json.dumps(content).encode())))
    store.commit(key, {"kind": "judgements"})
