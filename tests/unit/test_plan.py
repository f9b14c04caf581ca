import pytest
from routerretriever.adapters.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from routerretriever.cli.main import main
from routerretriever.corpus.artifact import corpus_key
from routerretriever.errors import RecipeError
from routerretriever.methods.ddr import Ddr
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.pipeline.plan import plan_run, plan_table
from routerretriever.training.checkpoints import checkpoints_key
from routerretriever.training.expert import expert_key
from support.recipes import save_recipe, tiny_recipe


def planned(pipeline):
    return {step.stage: step for step in plan_run(pipeline)}


def test_a_plan_counts_what_is_to_be_done_and_does_nothing(tiny_data, monkeypatch):
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("a plan needs no Ray"))
    recipe = tiny_recipe(tiny_data, methods={"baselines": {"joint": {}, "mean": {"kind": "average"}}})
    pipeline = Pipeline(recipe)
    steps = planned(pipeline)
    assert "fruit: 28 documents in 3 shards" in steps["encode (experts)"].to_do
    assert "84 documents in all" in steps["encode (experts)"].to_do
    assert "fruit: 14 queries" in steps["train (experts)"].to_do
    assert "mean: average of 2 domains" in steps["average (baselines)"].to_do
    # The base and two experts; on test the two baselines as well.
    assert "train of fruit: 14 queries x 3 models" in steps["score (experts)"].to_do
    assert "test of sport: 7 queries x 3 models" in steps["score (experts)"].to_do
    # What the weight of BM25 is learned from.
    assert "dev of metal: 7 queries x 1 model" in steps["score (experts)"].to_do
    assert "161 query encodings" in steps["score (experts)"].to_do
    assert "sport: 7 test queries at 13 weights of BM25" in steps["fuse (experts)"].to_do
    assert "test of sport: 7 queries x 2 models" in steps["score (baselines)"].to_do
    assert steps["score (experts)"].there == "0 of 17 partitions"
    assert plan_table(list(steps.values())).row_count == len(steps)
    assert not list((tiny_data / "storage").iterdir())


def test_a_plan_names_what_only_a_general_prefix_will_show(tiny_data):
    labels = {"fruit": ["food"]}
    recipe = tiny_recipe(tiny_data, methods={"ddr": {"general": {"domains": ["metal"]}, "labels": labels}})
    pipeline = Pipeline(recipe)
    step = planned(pipeline)["train (ddr)"]
    assert "at most 200 steps on metal; then all documents again" in step.to_do
    key = pipeline.method(Ddr).general_step.key
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        pipeline.store.put(key, name, lambda path: path.write_text("{}"))
    pipeline.store.commit(key, {"domain": "general-prefix"})
    steps = planned(Pipeline(recipe))
    assert steps["train (ddr)"].there == "general-prefix"
    assert "84 documents in all" in steps["encode (ddr)"].to_do
    assert "ddr-prior: 2 modules, 2 domains" in steps["train (ddr)"].to_do
    without = planned(Pipeline(tiny_recipe(tiny_data, methods={"ddr": {}})))
    assert "encode (ddr)" not in without
    assert without["train (ddr)"].there == ""


def test_a_label_of_no_domain_that_is_trained_on_is_refused_at_once(tiny_data):
    labels = {"fruit": ["food"], "sport": ["play"]}
    with pytest.raises(
        RecipeError, match=r"ddr\.labels\.sport: no domain that is trained on has the label 'play'"
    ):
        Pipeline(tiny_recipe(tiny_data, methods={"ddr": {"labels": labels}}))


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
    assert steps["encode (experts)"].there == "fruit"
    assert "metal: 28 documents in 3 shards, goes on where" in steps["encode (experts)"].to_do
    assert steps["train (experts)"].there == "fruit"
    assert "metal: 14 queries, goes on where" in steps["train (experts)"].to_do
    assert steps["train (experts)"].asks_for == "2 workers each, a worker 1 CPU, 0.25 GPU"


def test_a_dry_run_names_the_file_and_line_of_bad_data(tiny_data, monkeypatch, capsys):
    qrels = tiny_data / "data" / "sport" / "qrels" / "test.tsv"
    qrels.write_text(qrels.read_text() + "no tabs here\n")
    recipe = save_recipe(tiny_recipe(tiny_data), tiny_data / "recipe.yaml")
    monkeypatch.setattr("sys.argv", ["routerretriever", "run", str(recipe), "--dry-run", "--quiet"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    told = capsys.readouterr().err
    assert f"{qrels}:{len(qrels.read_text().splitlines())}" in told
    assert "Traceback" not in told


def test_a_submitted_job_refuses_a_storage_that_goes_with_it(tiny_data, monkeypatch):
    copy = tiny_data / "working_dir_files" / "_ray_pkg_0123"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises(RecipeError, match=r"storage: runs/mine is relative.*--set storage=\$PWD/runs/mine"):
        Pipeline(tiny_recipe(tiny_data, storage="runs/mine"))
    Pipeline(tiny_recipe(tiny_data))
