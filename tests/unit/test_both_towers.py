"""Experts on both towers: its steps, and its systems from scores that are made up. No Ray."""

from dataclasses import fields

import numpy as np
import pytest
from routerretriever.adapters.lora import LoraSettings
from routerretriever.adapters.tower import load_tower
from routerretriever.measures import Measured
from routerretriever.methods.base import Workspace
from routerretriever.methods.both_towers import (
    DATASET_ORACLE,
    INSTANCE_ORACLE,
    OWN,
    ROUTED,
    BothTowers,
    BothTowersSettings,
)
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.scoring.table import ScoreSplit, SplitScores
from support.recipes import tiny_recipe


class ScoredWorkspace(Workspace):
    """A workspace whose experts are there, and whose scores are given by domain of the expert."""

    def train(self, steps):
        return {}

    def scores(self, steps):
        (expert,) = [name for name in self.expert_domains if f"both-towers-{name}" in self.encoder.adapter]
        return {each.name: self._made_up(expert, each) for each in self.tested}

    def _made_up(self, expert, collection):
        """Its own queries 0.75, others 0.25, but every third query of another domain 1."""
        ids = list(collection.queries("test"))
        figures = np.full(len(ids), 0.75 if expert == collection.name else 0.25)
        if expert != collection.name:
            figures[::3] = 1.0
        one = figures[:, None]
        vectors = np.zeros((len(ids), 1), dtype=np.float32)
        return SplitScores(collection.name, "test", ids, ["base"], Measured(one, one, one, 1 / one), vectors)


@pytest.fixture
def both(tiny_data):
    """A workspace with two experts to train, and an adapter as it starts, for the place of a trained one."""
    workspace = Pipeline(tiny_recipe(tiny_data)).workspace
    given = {field.name: getattr(workspace, field.name) for field in fields(workspace)}
    scored = ScoredWorkspace(**given)
    tower = load_tower(workspace.encoder)
    tower.add_adapter("one", LoraSettings())
    tower.save_adapter("one", tiny_data / "adapter")
    return scored, tiny_data / "adapter"


def method_on(workspace, **changes):
    return BothTowers(BothTowersSettings(max_steps=4, **changes), workspace)


def put(store, key, folder):
    store.put_folder(key, folder)
    store.commit(key, {})


def test_an_expert_that_is_trained_has_scores_of_its_own_tower(both):
    workspace, adapter = both
    method, store = method_on(workspace), workspace.store
    fruit, metal = method.train_steps.values()
    assert method.steps() == [fruit, metal]
    assert fruit.key.startswith("experts/both-towers-fruit-")
    put(store, fruit.key, adapter)
    scored = [step for step in method.steps() if isinstance(step, ScoreSplit)]
    assert {step.corpus.encoder.adapter for step in scored} == {store.location(fruit.key)}
    assert {step.corpus.collection.name for step in scored} == {"fruit", "metal", "sport"}


def test_other_settings_make_other_experts(both):
    workspace, _ = both
    keys = [{step.key for step in method_on(workspace, dev_documents=n).train_steps.values()} for n in (5, 9)]
    assert keys[0].isdisjoint(keys[1])


def test_its_systems_are_own_experts_the_routed_one_and_two_oracles(both):
    workspace, adapter = both
    method = method_on(workspace)
    for step in method.train_steps.values():
        put(workspace.store, step.key, adapter)
    systems = {system.name: system for system in method.systems()}
    assert list(systems) == BothTowers.system_names(BothTowersSettings(), ["fruit", "metal"])
    assert list(systems) == [OWN, ROUTED, DATASET_ORACLE, INSTANCE_ORACLE]
    assert systems[OWN].measured.keys() == {"fruit", "metal"}
    assert "encoded 2 times" in systems[OWN].note
    figures = {name: system.measured["fruit"].ndcg_at_10 for name, system in systems.items()}
    third = np.arange(len(figures[OWN])) % 3 == 0
    assert (figures[OWN] == 0.75).all()
    assert (figures[DATASET_ORACLE] == 0.75).all()
    np.testing.assert_array_equal(figures[INSTANCE_ORACLE], np.where(third, 1.0, 0.75))
    routed = systems[ROUTED].routing
    assert routed.experts == ["fruit", "metal"]
    chosen = routed.weights["fruit"]
    np.testing.assert_array_equal(chosen.sum(axis=1), 1)
    expected = np.where(chosen[:, 0] == 1, 0.75, np.where(third, 1.0, 0.25))
    np.testing.assert_array_equal(figures[ROUTED], expected)
    assert not method.deployable
