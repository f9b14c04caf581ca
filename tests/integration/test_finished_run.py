"""What a finished run has left: artifacts, figures, a report, metrics."""

from __future__ import annotations

import re
from pathlib import Path

import mlflow
import numpy as np
import pytest
from beir.retrieval.evaluation import EvaluateRetrieval
from beir.retrieval.search.dense import DenseRetrievalExactSearch
from routerretriever import RouterRetriever
from routerretriever.index.dense import open_index
from routerretriever.measures import measure
from routerretriever.methods.baselines import Baselines
from routerretriever.methods.experts import (
    DATASET_ORACLE,
    INSTANCE_ORACLE,
    OWN_EXPERT,
    PAPER,
    ROUTED,
    Experts,
)
from routerretriever.methods.hybrid import SYSTEMS as HYBRID_SYSTEMS
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.types import BASE
from safetensors.numpy import load_file
from support.paths import files_below

pytestmark = pytest.mark.integration


def test_every_step_left_its_artifact_and_a_second_run_makes_nothing(finished):
    pipeline, _, _ = finished
    storage = Path(pipeline.store.uri)
    kinds = ("corpora", "experts", "scores", "judgements", "mixtures", "fused")
    before = {kind: files_below(storage / kind) for kind in kinds}
    assert all(before.values())
    again = Pipeline(pipeline.recipe)
    assert again.evaluation.ndcg_at_10 == pipeline.evaluation.ndcg_at_10
    assert {kind: files_below(storage / kind) for kind in kinds} == before
    assert not list((storage / "training").glob("*"))


def test_mlflow_keeps_what_the_run_took_and_counted(finished):
    pipeline, registered, _ = finished
    client = mlflow.MlflowClient(registered.tracking_uri)
    version = client.get_model_version("tiny", str(registered.version))
    kept = client.get_run(version.run_id).data.metrics
    documents = sum(len(corpus) for corpus in pipeline.corpora.values())
    assert kept["counts/documents_encoded"] == documents
    assert kept["throughput/documents_per_second"] == pytest.approx(documents / kept["seconds/encode"])
    trained = (*pipeline.method(Experts).experts.values(), pipeline.method(Baselines).models["joint"])
    assert kept["counts/training_steps"] == sum(expert.card["steps"] for expert in trained)
    assert kept["throughput/training_steps_per_second"] > 0
    assert kept["counts/queries_scored"] > 0
    assert (kept["counts/storage_retries"], kept["counts/workers_replaced"]) == (0, 0)


def test_the_evaluation_is_consistent(finished):
    pipeline, _, _ = finished
    figures = pipeline.evaluation.ndcg_at_10
    assert list(figures)[:8] == [BASE, "fruit", "metal", OWN_EXPERT, "joint", "average", ROUTED, PAPER]
    assert set(HYBRID_SYSTEMS) <= set(figures)
    assert list(figures)[-2:] == [DATASET_ORACLE, INSTANCE_ORACLE]
    for dataset in ("fruit", "metal", "sport"):
        assert figures[DATASET_ORACLE][dataset] == max(figures[e][dataset] for e in ("fruit", "metal"))
        assert figures[INSTANCE_ORACLE][dataset] >= figures[DATASET_ORACLE][dataset]
        # A hard router is one expert per query; a soft mixture may beat every single expert.
        assert figures[PAPER][dataset] <= figures[INSTANCE_ORACLE][dataset] + 1e-9
    assert pipeline.evaluation.with_expert == ["fruit", "metal"]
    assert (pipeline.report_folder / "evaluation.json").is_file()
    assert "RouterRetriever" in (pipeline.report_folder / "evaluation.md").read_text()


def test_queries_are_evaluated_with_the_vectors_that_the_bundle_gives(finished):
    pipeline, registered, _ = finished
    model = RouterRetriever.load(registered.uri, registered.tracking_uri)
    evaluation, collection = pipeline.evaluation, pipeline.collections["sport"]
    texts, ids = list(collection.queries("test").values()), evaluation.query_ids["sport"]
    index = open_index(pipeline.corpora["sport"], pipeline.recipe.corpus.index, pipeline.store)
    run = index.run(ids, model.encode_queries(texts), pipeline.recipe.scoring.depth)
    ndcg = measure(collection.qrels("test"), run, ids).ndcg_at_10
    np.testing.assert_allclose(ndcg, evaluation.measured[ROUTED]["sport"].ndcg_at_10)
    assert set(evaluation.system(ROUTED).encodings.values()) == {1.0}


def test_without_bm25_a_hybrid_search_is_the_routers_own(finished):
    pipeline, _, _ = finished
    scores = pipeline.method(Experts).hybrid.routed_scores
    assert list(scores) == ["fruit", "metal", "sport"]
    for dataset, fused in scores.items():
        routed = pipeline.evaluation.measured[ROUTED][dataset]
        np.testing.assert_allclose(fused.at(0.0).ndcg_at_10, routed.ndcg_at_10)


def test_the_bundle_carries_the_weights_that_dev_queries_chose(finished):
    pipeline, registered, _ = finished
    learned = RouterRetriever.load(registered.uri, registered.tracking_uri).fusion
    assert learned.domains == ("fruit", "metal")
    assert pipeline.calibrate("fruit").weight == learned.for_domain("fruit")


def test_the_averaged_model_is_the_mean_of_the_experts(finished):
    pipeline, _, _ = finished
    folders = [
        e.folder(pipeline.store)
        for e in (*pipeline.method(Experts).experts.values(), pipeline.method(Baselines).models["average"])
    ]
    fruit, metal, mean = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    for name in mean:
        np.testing.assert_allclose(mean[name], (fruit[name] + metal[name]) / 2, atol=1e-7)


def test_the_report_is_one_file_and_names_everything(finished):
    pipeline, _, _ = finished
    page = (pipeline.report_folder / "evaluation.html").read_text()
    for word in ("fruit", "sport", ROUTED, INSTANCE_ORACLE, "joint"):
        assert word in page
    assert not re.search(r"""(src|href)=["'](?!#)""", page), "but for what lies in the page"


def test_score_table_agrees_with_a_plain_search(finished):
    pipeline, _, _ = finished
    for dataset, scores in pipeline.method(Experts).scores.items():
        index = open_index(pipeline.corpora[dataset], pipeline.recipe.corpus.index, pipeline.store)
        run = index.run(scores.query_ids, scores.base_vectors, 100)
        expected = measure(pipeline.collections[dataset].qrels("train"), run, scores.query_ids)
        np.testing.assert_allclose(scores.utilities([BASE])[:, 0], expected.ndcg_at_10)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_approximate_indexes_find_what_the_exact_one_finds(finished, kind):
    pipeline, _, _ = finished
    corpus = pipeline.corpora["fruit"]
    settings = pipeline.recipe.corpus.index
    exact = open_index(corpus, settings, pipeline.store)
    other = open_index(corpus, settings.model_copy(update={"kind": kind}), pipeline.store)
    queries = corpus.matrix()
    np.testing.assert_array_equal(exact.search(queries, 1)[1], other.search(queries, 1)[1])


def test_beirs_own_evaluator_gives_the_same_figures(finished):
    pipeline, registered, _ = finished
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


def test_mteb_gives_the_same_figures(finished):
    mteb = pytest.importorskip("mteb", reason="the extra 'mteb' is not installed")
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    pipeline, registered, _ = finished
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
