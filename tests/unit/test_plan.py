import pytest
from routerretriever.corpus.artifact import corpus_key
from routerretriever.encoder.source import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from routerretriever.errors import RecipeError
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.pipeline.plan import plan_run, plan_table
from routerretriever.training.experts import checkpoints_key, expert_key, general_prefix_key
from support.recipes import tiny_recipe


def planned(pipeline):
    return {step.step: step for step in plan_run(pipeline)}


def test_a_plan_counts_what_is_to_be_done_and_does_nothing(tiny_data, monkeypatch):
    monkeypatch.setattr(
        "routerretriever.pipeline.pipeline.connect", lambda: pytest.fail("a plan needs no Ray")
    )
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


def test_a_plan_names_what_only_a_general_prefix_will_show(tiny_data):
    recipe = tiny_recipe(
        tiny_data, ddr={"general": {"domains": ["metal"]}, "labels": {"fruit": ["food"], "sport": ["play"]}}
    )
    pipeline = Pipeline(recipe)
    step = planned(pipeline)["train general prefix"]
    assert "at most 200 steps on metal\nall documents again" in step.to_do
    key = general_prefix_key(
        [pipeline.collections["metal"]],
        recipe.encoder,
        recipe.training,
        recipe.ddr.general,
        recipe.ddr.prefix,
    )
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        pipeline.store.put(key, name, lambda path: path.write_text("{}"))
    pipeline.store.commit(key, {"domain": "general-prefix"})
    with pytest.raises(
        RecipeError, match=r"ddr\.labels\.sport: no domain that is trained on has the label 'play'"
    ):
        planned(pipeline)
    labelled = recipe.model_copy(
        update={"ddr": recipe.ddr.model_copy(update={"labels": {"fruit": ("food",)}})}
    )
    steps = planned(Pipeline(labelled))
    assert steps["train general prefix"].there == "general-prefix"
    assert "84 documents in all" in steps["encode documents with it"].to_do
    assert "ddr-prior: 2 modules, 2 domains" in steps["train domain prefixes"].to_do
    without = planned(Pipeline(tiny_recipe(tiny_data, ddr={})))
    assert "train general prefix" not in without
    assert without["train domain prefixes"].to_do == steps["train domain prefixes"].to_do


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
