import pytest
from conftest import tiny_recipe
from routerretriever.corpus import corpus_key
from routerretriever.pipeline import Pipeline
from routerretriever.plan import plan_run, plan_table
from routerretriever.training import expert_key
from routerretriever.training.experts import checkpoints_key


def planned(pipeline):
    return {step.step: step for step in plan_run(pipeline)}


def test_a_plan_counts_what_is_to_be_done_and_does_nothing(tiny_data, monkeypatch):
    monkeypatch.setattr("routerretriever.pipeline.connect", lambda: pytest.fail("a plan needs no Ray"))
    recipe = tiny_recipe(tiny_data, single_models={"joint": {}, "mean": {"kind": "average"}})
    pipeline = Pipeline(recipe)
    steps = planned(pipeline)
    assert "fruit: 28 documents in 3 shards" in steps["encode documents"].to_do
    assert "84 documents in all" in steps["encode documents"].to_do
    assert "fruit: 14 queries" in steps["train experts"].to_do
    assert "at most 6 steps of 8 queries" in steps["train experts"].to_do
    assert "mean: average of 2 domains" in steps["train baselines"].to_do
    # The base and two experts; on test the two baselines as well.
    assert "fruit: 14 queries x 3 models" in steps["score train"].to_do
    assert "84 query encodings" in steps["score train"].to_do
    assert "sport: 7 queries x 5 models" in steps["score test"].to_do
    assert steps["score test"].there == "0 of 15 partitions"
    assert plan_table(list(steps.values())).row_count == len(steps)
    assert not list((tiny_data / "storage").iterdir())


def test_a_plan_leaves_out_what_is_there_and_tells_what_goes_on(tiny_data):
    recipe = tiny_recipe(tiny_data, training={"gpus_per_worker": 0.25, "workers": 2})
    pipeline = Pipeline(recipe)
    store, collections = pipeline.store, pipeline.collections
    store.commit(corpus_key(collections["fruit"], recipe.encoder), {})
    metal = corpus_key(collections["metal"], recipe.encoder)
    store.put(metal, "embeddings/00000.npy", lambda path: path.touch())
    trained, begun = (
        expert_key(collections[name], recipe.encoder, recipe.training) for name in ("fruit", "metal")
    )
    store.commit(trained, {})
    (tiny_data / "storage" / checkpoints_key(begun)).mkdir(parents=True)
    steps = planned(pipeline)
    assert steps["encode documents"].there == "fruit"
    assert "metal: 28 documents in 3 shards, 1 there" in steps["encode documents"].to_do
    assert steps["train experts"].there == "fruit"
    assert "metal: 14 queries, from its last checkpoint" in steps["train experts"].to_do
    assert steps["train experts"].asks_for == "2 workers each, a worker 1 CPU, 0.25 GPU"
