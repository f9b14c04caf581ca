import pytest
import routerretriever
from routerretriever.adapters.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from routerretriever.cli.main import main
from routerretriever.corpus.artifact import corpus_key
from routerretriever.errors import RecipeError
from routerretriever.methods.ddr import Ddr
from routerretriever.pipeline.documents import add_from_documents, generated_folder
from routerretriever.pipeline.domains import add_domain
from routerretriever.pipeline.learning import learn
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
    # The base and two experts; on test the two baselines as well. BM25's weight is learned from dev, and the
    # fallback chosen on it.
    scores = steps["score (experts)"].to_do.splitlines()
    assert [line.split(":")[0] for line in scores[:-1]] == ["fruit", "metal", "sport"]
    assert all(part in scores[1] for part in ("train 14 x 3", "dev 7 x 3", "test 7 x 3"))
    assert scores[2] == "sport: test 7 x 3"
    assert "189 query encodings" in steps["score (experts)"].to_do
    assert "sport: 7 test queries at 13 weights of BM25" in steps["fuse (experts)"].to_do
    assert "sport: test 7 x 2" in steps["score (baselines)"].to_do
    assert steps["score (experts)"].there == "0 of 21 partitions"
    assert plan_table(list(steps.values())).row_count == len(steps)
    assert not list((tiny_data / "storage").iterdir())


def test_the_folds_of_an_expert_share_its_line(tiny_data):
    recipe = tiny_recipe(tiny_data, training={"selection": "cross_validation"})
    pipeline = Pipeline(recipe)
    step = planned(pipeline)["train (experts)"]
    assert step.to_do.splitlines() == [
        f"{name}: 14 queries, and 3 folds of a cross-validation" for name in ("fruit", "metal")
    ]
    expert = next(each for each in pipeline.steps() if getattr(each, "folds", ()))
    pipeline.store.commit(expert.folds[0].key, {})
    step = planned(pipeline)["train (experts)"]
    assert "14 queries, and 2 folds" in step.to_do
    assert step.there == ""


def test_a_run_that_could_not_end_is_refused_before_it_begins(tiny_data, monkeypatch, capsys):
    def told(recipe):
        path = save_recipe(recipe, tiny_data / "recipe.yaml")
        monkeypatch.setattr("sys.argv", ["routerretriever", "run", str(path), "--quiet"])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 1
        return capsys.readouterr().err

    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("this needs no Ray"))
    missing = tiny_data / "missing"
    registry = {"tracking_uri": f"sqlite:///{missing}/mlflow.db"}
    assert f"no folder {missing}" in told(tiny_recipe(tiny_data, registry=registry))
    assert "no server answers" in told(
        tiny_recipe(tiny_data, registry={"tracking_uri": "http://127.0.0.1:1"})
    )
    domains = {"fruit": {"path": "fruit", "test_split": "tset"}}
    assert "domains.fruit.test_split" in told(tiny_recipe(tiny_data, domains=domains))


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
    folds = "and 3 folds of a cross-validation"
    assert f"metal: 14 queries, {folds}, goes on where" in steps["train (experts)"].to_do
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


@pytest.fixture
def rays_copy(tiny_data, monkeypatch):
    """Ray's copy of a job's working directory, in which the job runs."""
    copy = tiny_data / "working_dir_files" / "_ray_pkg_0123"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    return copy


def test_a_submitted_job_refuses_a_storage_that_goes_with_it(tiny_data, rays_copy):
    recipe = tiny_recipe(tiny_data, storage="runs/mine")
    for opened in (Pipeline, routerretriever.serve, routerretriever.versions):
        with pytest.raises(
            RecipeError, match=r"storage: runs/mine is relative.*--set storage=\$PWD/runs/mine"
        ):
            opened(recipe)
    Pipeline(tiny_recipe(tiny_data))
    assert list(rays_copy.iterdir()) == []


def test_a_submitted_job_refuses_to_write_collections_that_go_with_it(tiny_data, rays_copy):
    recipe = tiny_recipe(tiny_data, data_root="data")
    path = save_recipe(recipe, tiny_data / "recipe.yaml")
    notes = tiny_data / "notes.txt"
    notes.write_text("words")
    for write in (
        lambda: learn(path),
        lambda: add_from_documents(path, "new", notes),
        lambda: generated_folder(recipe, "fruit"),
    ):
        with pytest.raises(RecipeError, match=r"data_root: data is relative.*full path into the recipe"):
            write()
    assert list(rays_copy.iterdir()) == []


def test_a_submitted_job_refuses_to_change_a_recipe_that_goes_with_it(tiny_data, rays_copy):
    path = save_recipe(tiny_recipe(tiny_data), rays_copy / "recipe.yaml").relative_to(rays_copy)
    for change in (
        lambda: learn(path),
        lambda: add_domain(path, "sport", "sport"),
        lambda: add_from_documents(path, "new", path),
    ):
        with pytest.raises(RecipeError, match=r"recipe: recipe\.yaml is relative.*\$PWD/recipe\.yaml"):
            change()
    assert [file.name for file in rays_copy.iterdir()] == ["recipe.yaml"]
