"""The score table, built in this process."""

import numpy as np
from routerretriever.adapters.lora import LoraSettings
from routerretriever.adapters.tower import load_tower
from routerretriever.artifacts.step import Step
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.scoring.table import ScoredModel
from support.recipes import tiny_recipe
from support.workers import work_here


class TrainedStep(Step):
    """An expert that is there already."""

    stage = "train"

    @classmethod
    def build_all(cls, steps, store):
        raise AssertionError("it is there")


def test_two_experts_of_one_name_are_scored_each_with_its_own_adapter(tiny_data, monkeypatch):
    work_here(monkeypatch, "corpus.build", "runtime.shards")
    workspace = Pipeline(tiny_recipe(tiny_data)).workspace
    encoder, queries = load_tower(workspace.encoder), workspace.collections["fruit"].queries("test")
    steps, expected = [], []
    for number, key in enumerate(("experts/fruit-aaaa", "experts/fruit-bbbb")):
        name = f"fruit{number}"
        encoder.add_adapter(name, LoraSettings(rank=2))
        for parameter in encoder.tower.model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.3 + number
        encoder.save_adapter(name, tiny_data / name)
        workspace.store.put_folder(key, tiny_data / name)
        workspace.store.commit(key, {})
        expected.append(encoder.encode_queries(list(queries.values()), name))
        model = ScoredModel.expert("fruit", TrainedStep(name="fruit", key=key))
        steps += workspace.score_steps("test", [ScoredModel.base(workspace.encoder), model], ["fruit"])
    workspace.scores(steps)  # of both in one go, as a run with two methods does
    for pair, vectors in zip((steps[:2], steps[2:]), expected, strict=True):
        scores = workspace.scores(pair)["fruit"]
        np.testing.assert_allclose(scores.vectors_QEd[:, scores.of("fruit")], vectors, atol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
