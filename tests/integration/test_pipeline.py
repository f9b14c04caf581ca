"""The whole main job on the fake encoder: real Ray, real MLflow, real FAISS, real HTTP."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest
from beir.retrieval.evaluation import EvaluateRetrieval
from beir.retrieval.search.dense import DenseRetrievalExactSearch
from routerretriever import RouterRetriever
from routerretriever.bundle.manifest import read_manifest
from routerretriever.cli.main import main
from routerretriever.config.loading import load_recipe, parse_recipe
from routerretriever.errors import BundleError, RecipeError, TrainingFailed
from routerretriever.evaluation.evaluate import DATASET_ORACLE, INSTANCE_ORACLE, PAPER, ROUTED
from routerretriever.index.dense import open_index
from routerretriever.measures import measure
from routerretriever.pipeline.domains import add_domain, remove_domain
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.registry.loading import fetch_bundle
from routerretriever.registry.registry import Registry
from routerretriever.runtime.metrics import TRAINING_STEPS, WORKERS_REPLACED
from routerretriever.studies.reproduction import reproduce
from routerretriever.types import BASE
from ruamel.yaml import YAML
from safetensors.numpy import load_file

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]


def files_below(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_every_step_left_its_artifact_and_a_second_run_makes_nothing(done):
    pipeline, _, _ = done
    storage = Path(pipeline.store.uri)
    kinds = ("corpora", "experts", "scores", "judgements", "mixtures")
    before = {kind: files_below(storage / kind) for kind in kinds}
    assert all(before.values())
    again = Pipeline(pipeline.recipe)
    assert again.evaluation.ndcg_at_10 == pipeline.evaluation.ndcg_at_10
    assert {kind: files_below(storage / kind) for kind in kinds} == before
    assert not list((storage / "training").glob("*"))


def test_mlflow_keeps_what_the_run_took_and_counted(done):
    pipeline, registered, _ = done
    client = mlflow.MlflowClient(registered.tracking_uri)
    version = client.get_model_version("tiny", str(registered.version))
    kept = client.get_run(version.run_id).data.metrics
    documents = sum(len(corpus) for corpus in pipeline.corpora.values())
    assert kept["counts/documents_encoded"] == documents
    assert kept["throughput/documents_per_second"] == pytest.approx(documents / kept["seconds/encode"])
    trained = (*pipeline.experts.values(), pipeline.single_models["joint"])
    assert kept["counts/training_steps"] == sum(expert.card["steps"] for expert in trained)
    assert kept["throughput/training_steps_per_second"] > 0
    assert kept["counts/queries_scored"] > 0
    assert (kept["counts/storage_retries"], kept["counts/workers_replaced"]) == (0, 0)


def test_the_evaluation_is_consistent(done):
    pipeline, _, _ = done
    figures = pipeline.evaluation.ndcg_at_10
    assert list(figures)[:7] == [BASE, "fruit", "metal", "joint", "average", ROUTED, PAPER]
    assert list(figures)[-2:] == [DATASET_ORACLE, INSTANCE_ORACLE]
    for dataset in ("fruit", "metal", "sport"):
        assert figures[DATASET_ORACLE][dataset] == max(figures[e][dataset] for e in ("fruit", "metal"))
        assert figures[INSTANCE_ORACLE][dataset] >= figures[DATASET_ORACLE][dataset]
        # A hard router is one expert per query; a soft mixture may beat every single expert.
        assert figures[PAPER][dataset] <= figures[INSTANCE_ORACLE][dataset] + 1e-9
    assert pipeline.evaluation.with_expert == ["fruit", "metal"]
    assert (pipeline.report_folder / "evaluation.json").is_file()
    assert "RouterRetriever" in (pipeline.report_folder / "evaluation.md").read_text()


def test_queries_are_evaluated_with_the_vectors_that_the_bundle_gives(done):
    pipeline, registered, _ = done
    model = RouterRetriever.load(registered.uri, registered.tracking_uri)
    evaluation, collection = pipeline.evaluation, pipeline.collections["sport"]
    texts, ids = list(collection.queries("test").values()), evaluation.query_ids["sport"]
    index = open_index(pipeline.corpora["sport"], pipeline.recipe.corpus.index, pipeline.store)
    run = index.run(ids, model.encode_queries(texts), pipeline.recipe.scoring.depth)
    ndcg = measure(collection.qrels("test"), run, ids).ndcg_at_10
    np.testing.assert_allclose(ndcg, evaluation.measured[ROUTED]["sport"].ndcg_at_10)
    assert set(evaluation.encodings[ROUTED].values()) == {1.0}


def test_a_bundle_of_before_there_was_a_choice_mixes_vectors(done):
    _, registered, _ = done
    model = RouterRetriever.load(registered.uri, registered.tracking_uri)
    rows, experts = model.tokenize(["where is grape with lead", "x"]), ["fruit", BASE, "metal"]
    weights = np.array([[0.5, 0.2, 0.3], [0, 0, 1]], dtype=np.float32)
    of_adapters = model.embed(rows, weights, experts)
    alone = [model.embed(rows, np.ones((2, 1), dtype=np.float32), [name]) for name in experts]
    del model.manifest["merge"]
    of_vectors = model.embed(rows, weights, experts)
    np.testing.assert_allclose(of_vectors, np.einsum("bt,tbd->bd", weights, alone), atol=1e-5)
    np.testing.assert_allclose(of_adapters[1], of_vectors[1], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(of_adapters, axis=1), 1, atol=1e-5)  # an encoding, not a sum


def test_the_averaged_model_is_the_mean_of_the_experts(done):
    pipeline, _, _ = done
    folders = [
        e.folder(pipeline.store) for e in (*pipeline.experts.values(), pipeline.single_models["average"])
    ]
    fruit, metal, mean = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    for name in mean:
        np.testing.assert_allclose(mean[name], (fruit[name] + metal[name]) / 2, atol=1e-7)


def test_the_report_is_one_file_and_names_everything(done):
    pipeline, _, _ = done
    page = (pipeline.report_folder / "evaluation.html").read_text()
    for word in ("fruit", "sport", ROUTED, INSTANCE_ORACLE, "joint"):
        assert word in page
    assert not re.search(r"""(src|href)=["']""", page)


def test_routers_are_tuned_on_dev_and_every_trial_is_written(done):
    pipeline, _, _ = done
    trials = pipeline.tune_router(unseen_share=0.5)
    assert [t.score for t in trials] == sorted((t.score for t in trials), reverse=True)
    assert {"posterior", "neighbours", "pilots", "uniform"} <= {t.settings.router for t in trials}
    assert any(t.settings.gate for t in trials)
    for trial in trials:
        means = [np.mean(list(values.values())) for values in (trial.in_domain, trial.unseen)]
        assert trial.score == pytest.approx(np.mean(means))
    written = json.loads((pipeline.report_folder / "router-tuning.json").read_text())
    assert len(written) == len(trials)


def test_the_analyses_agree_with_the_evaluation_where_they_meet(done):
    pipeline, _, _ = done
    analyses = pipeline.analyse(["metal", "fruit"], [1, 2])
    # They mix vectors, whatever the deployed router mixes.
    routing = pipeline.recipe.routing.model_copy(update={"merge": "embeddings"})
    changed = pipeline.recipe.model_copy(update={"name": "embeddings", "routing": routing})
    evaluation = Pipeline(changed).evaluation
    assert [growth.experts for growth in analyses.growing] == [["metal"], ["metal", "fruit"]]
    everything = analyses.growing[-1]
    assert everything.router == pytest.approx(evaluation.mean(ROUTED), abs=1e-6)
    assert everything.dataset_oracle == pytest.approx(evaluation.mean(DATASET_ORACLE))
    assert everything.instance_oracle == pytest.approx(evaluation.mean(INSTANCE_ORACLE))
    assert everything.router_elsewhere == pytest.approx(evaluation.mean(ROUTED, zero_shot=True), abs=1e-6)
    # One expert alone: nobody has a choice.
    alone = evaluation.ndcg_at_10["metal"]["metal"]
    first = analyses.growing[0]
    assert first.router == first.instance_oracle == first.dataset_oracle == pytest.approx(alone)
    for presence in analyses.with_and_without:
        assert presence.with_it == pytest.approx(evaluation.ndcg_at_10[ROUTED][presence.dataset], abs=1e-6)
    assert analyses.centroids[0].in_domain == pytest.approx(evaluation.mean(PAPER), abs=1e-6)
    kept = files_below(Path(pipeline.store.uri) / "analyses")
    assert pipeline.analyse(["metal", "fruit"], [2]).growing == analyses.growing
    assert files_below(Path(pipeline.store.uri) / "analyses") == kept
    with pytest.raises(RecipeError, match="order"):
        pipeline.analyse(["metal"], [1])
    with pytest.raises(RecipeError, match="clusters"):
        pipeline.analyse(None, [0])


def test_copies_of_an_expert_show_how_much_of_an_oracle_is_luck(done):
    pipeline, _, _ = done
    floor = pipeline.noise_floor("fruit", 2)
    assert floor.single <= floor.best_copy <= floor.copies_oracle
    assert floor.experts_oracle == pytest.approx(pipeline.evaluation.ndcg_at_10[INSTANCE_ORACLE]["fruit"])
    with pytest.raises(RecipeError, match="no expert 'sport'"):
        pipeline.noise_floor("sport", 2)


def test_a_learning_curve_ends_at_the_recipes_own_expert_and_is_not_trained_twice(done):
    pipeline, _, _ = done
    curve = pipeline.learning_curve("fruit", [8])
    figures = pipeline.evaluation.ndcg_at_10
    assert curve.sizes == [8, len(pipeline.collections["fruit"].qrels("train"))]
    assert curve.base == pytest.approx(figures[BASE]["fruit"])
    assert curve.experts[-1] == pytest.approx(figures["fruit"]["fruit"])
    experts = Path(pipeline.store.uri) / "experts"
    before = files_below(experts)
    assert Pipeline(pipeline.recipe).learning_curve("fruit", [8]) == curve
    assert files_below(experts) == before
    assert "<polyline" in (pipeline.report_folder / "learning-curve-fruit.html").read_text()


def test_expected_figures_are_judged_and_a_failure_is_an_exit_code(done, tmp_path, capsys, monkeypatch):
    pipeline, _, _ = done
    figures = pipeline.evaluation.ndcg_at_10
    case = {"recipe": "recipe.yaml", "tolerance": 0.01, "wide_tolerance": 1.0}
    base, routed = 100 * figures[BASE]["sport"], 100 * figures[ROUTED]["fruit"]
    cases = {
        "base": {**case, "expected": {BASE: {"sport": round(base, 2)}}},
        "all": {
            **case,
            "expected": {ROUTED: {"fruit": round(routed + 0.5, 2)}, "own expert": {"metal": -1.0}},
        },
    }
    for name, content in (("recipe", pipeline.recipe.model_dump(mode="json")), ("figures", {"cases": cases})):
        with (tmp_path / f"{name}.yaml").open("w") as file:
            YAML().dump(content, file)
    outcomes = reproduce(tmp_path / "figures.yaml", [], [])
    assert [one.verdict for one in outcomes] == ["OK", "OKish", "FAIL"]
    assert outcomes[1].found == pytest.approx(routed)
    command = ["routerretriever", "reproduce", str(tmp_path / "figures.yaml"), "--only"]
    for name, code in (("base", 0), ("all", 1)):
        monkeypatch.setattr(sys, "argv", [*command, name])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == code
    assert "OKish" in capsys.readouterr().out


def test_score_table_agrees_with_a_plain_search(done):
    pipeline, _, _ = done
    for dataset, scores in pipeline.scores.items():
        index = open_index(pipeline.corpora[dataset], pipeline.recipe.corpus.index, pipeline.store)
        run = index.run(scores.query_ids, scores.base_vectors, 100)
        expected = measure(pipeline.collections[dataset].qrels("train"), run, scores.query_ids)
        np.testing.assert_allclose(scores.utilities([BASE])[:, 0], expected.ndcg_at_10)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_approximate_indexes_find_what_the_exact_one_finds(done, kind):
    pipeline, _, _ = done
    corpus = pipeline.corpora["fruit"]
    settings = pipeline.recipe.corpus.index
    exact = open_index(corpus, settings, pipeline.store)
    other = open_index(corpus, settings.model_copy(update={"kind": kind}), pipeline.store)
    queries = corpus.matrix()
    np.testing.assert_array_equal(exact.search(queries, 1)[1], other.search(queries, 1)[1])


def test_beirs_own_evaluator_gives_the_same_figures(done):
    pipeline, registered, _ = done
    model = RouterRetriever.load(registered.uri, registered.tracking_uri)
    for dataset in ("fruit", "sport"):
        collection = pipeline.collections[dataset]
        corpus = {d.id: {"title": d.title, "text": d.text} for d in collection.documents()}
        similarity = "cos_sim" if pipeline.recipe.encoder.similarity == "cosine" else "dot"
        searcher = EvaluateRetrieval(
            DenseRetrievalExactSearch(model, batch_size=16), score_function=similarity
        )
        results = searcher.retrieve(corpus, collection.queries("test"))
        ndcg, _, _, _ = searcher.evaluate(collection.qrels("test"), results, [10])
        ours = pipeline.evaluation.ndcg_at_10[ROUTED][dataset]
        assert ndcg["NDCG@10"] == pytest.approx(ours, abs=1e-4)


def test_mteb_gives_the_same_figures(done):
    mteb = pytest.importorskip("mteb", reason="the extra 'mteb' is not installed")
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    pipeline, registered, _ = done
    collection = pipeline.collections["fruit"]

    class Fruit(AbsTaskRetrieval):
        metadata = mteb.TaskMetadata(
            name="Fruit", description="A tiny collection.", type="Retrieval", eval_splits=["test"],
            eval_langs=["eng-Latn"], main_score="ndcg_at_10", dataset={"path": "none", "revision": "none"},
        )  # fmt: skip

        def load_data(self, **_):
            self.corpus = {"test": {d.id: {"title": d.title, "text": d.text} for d in collection.documents()}}
            self.queries = {"test": collection.queries("test")}
            self.relevant_docs = {"test": collection.qrels("test")}
            self.data_loaded = True

    model = RouterRetriever.load(registered.uri, registered.tracking_uri)
    (result,) = mteb.evaluate(model, Fruit(), cache=None, show_progress_bar=False).task_results
    ours = pipeline.evaluation.ndcg_at_10[ROUTED]["fruit"]
    assert result.scores["test"][0]["ndcg_at_10"] == pytest.approx(ours, abs=1e-4)


def test_batches_are_embedded_as_queries_or_as_documents(done):
    _, registered, _ = done
    model = RouterRetriever.load(registered.uri, registered.tracking_uri)
    batches = [{"text": ["iron with tin", "fig"]}, {"text": ["gold"]}]
    texts = ["iron with tin", "fig", "gold"]
    queries, documents = (
        model.encode(batches, prompt_type="query"),
        model.encode(batches, prompt_type="document"),
    )
    np.testing.assert_array_equal(queries, model.encode_queries(texts))
    np.testing.assert_array_equal(documents, model.encode_corpus([{"text": text} for text in texts]))
    scores = model.similarity(queries, documents)
    assert scores.shape == (3, 3)
    np.testing.assert_allclose(np.diag(scores), model.similarity_pairwise(queries, documents), rtol=1e-5)


def test_the_bundle_is_an_mlflow_model_too(done):
    _, registered, _ = done
    mlflow.set_tracking_uri(registered.tracking_uri)
    predicted = mlflow.pyfunc.load_model(registered.uri).predict(["where is tin with lead"])
    direct = RouterRetriever.load(registered.uri).encode_queries(["where is tin with lead"])
    np.testing.assert_allclose(predicted, direct, atol=1e-6)


def test_a_damaged_bundle_and_one_of_another_base_are_refused(done, tmp_path):
    pipeline, registered, _ = done
    folder = fetch_bundle(registered.uri, tmp_path / "one", registered.tracking_uri)
    with (folder / "experts" / "fruit" / "adapter_model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match="altered"):
        read_manifest(folder)
    folder = fetch_bundle(registered.uri, tmp_path / "two", registered.tracking_uri)
    manifest = (
        (folder / "bundle.json")
        .read_text()
        .replace(pipeline.experts["fruit"].card["encoder_fingerprint"], "0123456789abcdef")
    )
    (folder / "bundle.json").write_text(manifest)
    with pytest.raises(BundleError, match="fingerprint"):
        RouterRetriever(folder)


def test_one_domains_failure_leaves_the_others_finished(done, tmp_path):
    pipeline, _, root = done
    recipe = pipeline.recipe.model_copy(
        update={"training": pipeline.recipe.training.model_copy(update={"seed": 9, "max_failures": 0})}
    )
    changed = Pipeline(recipe)
    _ = changed.corpora
    queries = root / "data" / "metal" / "qrels" / "train.tsv"
    good = queries.read_text()
    try:
        queries.write_text(good + "q0\tmissing-document\t1\n")
        with pytest.raises(TrainingFailed, match=r"metal: .*missing-document"):
            _ = changed.experts
        assert changed.untrained() == ["metal"]
    finally:
        queries.write_text(good)


def test_adding_and_removing_an_expert_touches_nobody_else(done, tmp_path):
    pipeline, registered, root = done
    path = tmp_path / "recipe.yaml"
    with path.open("w") as file:
        YAML().dump(pipeline.recipe.model_dump(mode="json"), file)
    weights = files_below(Path(pipeline.store.uri) / "experts")
    added = add_domain(path, "sport", str(root / "data" / "sport"))
    after = files_below(Path(pipeline.store.uri) / "experts")
    assert {name: after[name] for name in weights} == weights
    assert {n: added.expert_versions[n] for n in ("fruit", "metal")} == registered.expert_versions
    assert added.version > registered.version
    assert load_recipe(path).expert_domains == ["fruit", "metal", "sport"]
    with pytest.raises(RecipeError, match="has an expert already"):
        add_domain(path, "sport", "anywhere")

    removed = remove_domain(path, "metal")
    assert sorted(removed.expert_versions) == ["fruit", "sport"]
    assert removed.expert_versions["fruit"] == registered.expert_versions["fruit"]
    assert RouterRetriever.load(removed.uri, removed.tracking_uri).experts == ["fruit", "sport"]
    with pytest.raises(RecipeError, match="no such expert"):
        remove_domain(path, "metal")


def test_experts_without_a_test_set_are_registered_and_shown_on_the_others(done, tmp_path):
    pipeline, _, root = done
    shutil.copytree(root / "data", tmp_path / "data")
    for name in ("fruit", "metal"):
        (tmp_path / "data" / name / "qrels" / "test.tsv").unlink()
    changes = {
        "name": "zero-shot",  # its reports are its own
        "data_root": str(tmp_path / "data"),
        "single_models": {},
        "registry": {"name": "zero-shot"},
    }
    zero_shot = Pipeline(parse_recipe(pipeline.recipe.model_dump(mode="json") | changes))
    registered = zero_shot.register()
    assert zero_shot.evaluation.datasets == ["sport"]
    (bundle,) = Registry(zero_shot.recipe.registry, zero_shot.store).bundles()
    assert (bundle.version, bundle.ndcg_at_10) == (registered.version, "")
    page = (zero_shot.report_folder / "evaluation.html").read_text()
    assert "sport" in page
    assert ">nan" not in page


def test_a_change_that_would_retrain_others_is_refused_and_leaves_the_recipe(done, tmp_path):
    pipeline, _, root = done
    path = tmp_path / "recipe.yaml"
    values = pipeline.recipe.model_dump(mode="json")
    values["training"]["learning_rate"] = 0.02
    with path.open("w") as file:
        YAML().dump(values, file)
    before = path.read_text()
    with pytest.raises(RecipeError, match="fruit, metal are not trained"):
        add_domain(path, "sport", str(root / "data" / "sport"))
    assert path.read_text() == before


def test_data_parallel_workers_and_the_other_objectives_train(done):
    pipeline, _, _ = done
    changes = {
        "objective": "sampled",
        "workers": 2,
        "hard_negatives": 2,
        "random_negatives": 4,
        "max_steps": 2,
    }
    training = pipeline.recipe.training.model_copy(update=changes)
    recipe = pipeline.recipe.model_copy(
        update={"training": training, "domains": {"fruit": pipeline.recipe.domains["fruit"]}}
    )
    assert Pipeline(recipe).experts["fruit"].card["steps"] == 2


def test_a_killed_worker_is_replaced_and_ends_where_an_undisturbed_one_does(done, tmp_path):
    pipeline, _, _ = done
    changes = {"max_steps": 30, "evaluate_every": 2, "patience": 1000}
    recipe = pipeline.recipe.model_copy(
        update={
            "training": pipeline.recipe.training.model_copy(update=changes),
            "domains": {"fruit": pipeline.recipe.domains["fruit"]},
        }
    )
    undisturbed = Pipeline(recipe).experts["fruit"]
    disturbed = Pipeline(recipe.model_copy(update={"storage": str(tmp_path)}))
    killed: list[int] = []
    killer = threading.Thread(target=kill_trainer_after_a_checkpoint, args=(tmp_path / "training", killed))
    killer.start()
    counted = disturbed.clock.counts
    try:
        expert = disturbed.experts["fruit"]
    finally:
        killer.join()
    assert len(killed) == 1
    assert counted[WORKERS_REPLACED] == 1
    assert counted[TRAINING_STEPS] >= expert.card["steps"]  # some were taken twice
    assert undisturbed.card["resumed_at"] == []
    (resumed_at,) = expert.card["resumed_at"]
    assert 2 <= resumed_at < 30
    assert expert.card["history"] == undisturbed.card["history"]
    ours, theirs = (
        load_file(e.folder(p.store) / "adapter_model.safetensors")
        for e, p in ((expert, disturbed), (undisturbed, pipeline))
    )
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


def kill_trainer_after_a_checkpoint(folder: Path, killed: list[int]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        # A checkpoint counts once Ray Train has noted it.
        if any(
            "checkpoint_2" in noted.read_text() for noted in folder.glob("*/checkpoint_manager_snapshot.json")
        ):
            for process in psutil.Process().children(recursive=True):
                if process.name().startswith("ray::RayTrainWo"):
                    process.kill()
                    killed.append(process.pid)
                    return
        time.sleep(0.02)


def test_cli_reports_a_users_mistake_without_a_traceback(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"name: r\ndata_root: {tmp_path}\ndomains:\n  a: {{path: scifact}}\n")
    command = [sys.executable, "-m", "jobs.train", str(recipe)]
    failed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert failed.returncode == 1
    assert "domains.a.path: no folder" in failed.stderr
    assert "Traceback" not in failed.stderr
