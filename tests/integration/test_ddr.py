"""Prefix experts, and Dynamic Dense Retrieval beside them, on the fake encoder."""

from __future__ import annotations

import httpx
import numpy as np
import pytest
from routerretriever import RouterRetriever
from routerretriever.adapters.files import ADAPTER_WEIGHTS
from routerretriever.adapters.prefix_shape import PrefixShape
from routerretriever.adapters.tower import load_tower
from routerretriever.client import Client
from routerretriever.methods.ddr import DDR, DDR_PRIOR, DDR_TOP_K, DDR_UNROUTED, GENERAL_PREFIX, Ddr
from routerretriever.methods.experts import ROUTED, Experts
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.serving.deployments.run import served
from routerretriever.types import BASE
from safetensors.numpy import load_file
from support.collections import write_collections
from support.recipes import TINY_TRAINING, tiny_recipe

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("services")]
QUERIES = ["where is grape with fig", "where is tin with lead", "x"]
LABELS = {"fruit": ["food"], "metal": ["matter", "food"], "sport": ["matter"]}


@pytest.fixture(scope="module")
def trained(cluster, tmp_path_factory):
    """A run whose experts are prefixes, with DDR trained beside them and registered for the service."""
    root = write_collections(tmp_path_factory.mktemp("ddr"))
    recipe = tiny_recipe(
        root,
        # A temperature is scaled by the encoder's spread, of which the fake one has a tenth of a real one's.
        training={**TINY_TRAINING, "max_steps": 4, "temperature": 0.5,
                  "adapter": {"kind": "prefix", "length": 4}},
        methods={"ddr": {"prefix": {"length": 4}, "labels": LABELS, "deployed": "prior", "max_steps": 12,
             "learning_rate": 0.002,
             "general": {"domains": ["fruit", "metal"], "max_steps": 4, "evaluate_every": 2, "batch_size": 4,
                         "dev_documents": 12}}},
        routing={"merge": "embeddings"},
        deploy="ddr",
    )  # fmt: skip
    pipeline = Pipeline(recipe)
    return pipeline, pipeline.register()


@pytest.fixture(scope="module")
def model(trained):
    _, registered = trained
    return RouterRetriever.load(registered.uri, registered.tracking_uri)


def test_experts_are_prefixes_and_are_routed_to(trained):
    pipeline, _ = trained
    for expert in pipeline.method(Experts).experts.values():
        shape = PrefixShape.read(expert.domain, expert.folder(pipeline.store))
        assert shape is not None
        assert (shape.length, shape.modules, shape.routed) == (4, ("expert",), False)
        assert expert.card["parameters"] == 2 * 2 * 4 * 32  # layers, keys and values, tokens, width
    scores = pipeline.method(Experts).scores["fruit"]
    assert np.abs(scores.vectors_QEd[:, scores.of("fruit")] - scores.base_vectors).max() > 1e-4
    assert ROUTED in pipeline.evaluation.ndcg_at_10


def test_documents_are_encoded_with_the_general_prefix_once(trained):
    pipeline, _ = trained
    bare, prefixed = pipeline.corpora["fruit"], pipeline.method(Ddr).inner.open_corpus("fruit")
    assert bare.key != prefixed.key
    encoder = load_tower(pipeline.method(Ddr).inner.encoder)
    texts = [document.content for document in prefixed.documents(prefixed.ids[:5]).values()]
    np.testing.assert_allclose(prefixed.matrix()[:5], encoder.encode_documents(texts), atol=1e-5)
    weights = load_file(pipeline.method(Ddr).general.folder(pipeline.store) / ADAPTER_WEIGHTS)
    assert weights["keys_and_values"].shape == (2, 1, 2, 4, 32)


def test_there_is_a_module_for_every_label_and_each_was_trained(trained):
    pipeline, _ = trained
    assert pipeline.method(Ddr).modules == ("food", "matter")
    for expert in pipeline.method(Ddr).models.values():
        weights = load_file(expert.folder(pipeline.store) / ADAPTER_WEIGHTS)
        assert weights["keys_and_values"].shape == (2, 2, 2, 4, 32)
        assert np.abs(weights["keys_and_values"]).max(axis=(0, 2, 3, 4)).min() > 0  # where they began
        assert weights["router"].shape == (2, 2, 32)


def test_the_evaluation_shows_it_beside_the_experts(trained):
    pipeline, _ = trained
    figures = pipeline.evaluation.ndcg_at_10
    for way in (GENERAL_PREFIX, DDR, DDR_TOP_K, DDR_PRIOR, DDR_UNROUTED):
        assert figures[way].keys() == {"fruit", "metal", "sport"}
    # With one label there is nothing to weigh; with two of two modules the best two are all.
    assert figures[DDR_PRIOR]["fruit"] == figures[DDR_UNROUTED]["fruit"]
    assert figures[DDR_TOP_K] == figures[DDR]
    again = Pipeline(pipeline.recipe)
    assert {name: one.key for name, one in again.method(Ddr).models.items()} == {
        name: one.key for name, one in pipeline.method(Ddr).models.items()
    }


def test_without_a_general_prefix_the_base_is_the_experts_own(trained):
    pipeline, _ = trained
    methods = pipeline.recipe.methods
    ddr = methods.ddr.model_copy(update={"general": None})
    bare = Pipeline(pipeline.recipe.model_copy(update={"methods": methods.model_copy(update={"ddr": ddr})}))
    assert bare.method(Ddr).inner.open_corpus("fruit").key == pipeline.corpora["fruit"].key
    systems = bare.method(Ddr).systems()
    assert {system.name for system in systems} == {DDR, DDR_TOP_K, DDR_PRIOR, DDR_UNROUTED}
    for name, model in bare.method(Ddr).models.items():
        assert model.card["base_dev_ndcg_at_10"] == pytest.approx(
            np.mean([one.card["base_dev_ndcg_at_10"] for one in pipeline.method(Experts).experts.values()])
        )
        assert model.key != pipeline.method(Ddr).models[name].key
    # Both began with the same numbers, and went different ways in every module.
    soft, prior = (
        load_file(model.folder(pipeline.store) / ADAPTER_WEIGHTS)["keys_and_values"]
        for model in bare.method(Ddr).models.values()
    )
    assert np.abs(soft - prior).max(axis=(0, 2, 3, 4)).min() > 1e-4


def test_the_bundle_embeds_as_the_model_that_was_evaluated(trained, model):
    pipeline, _ = trained
    assert model.experts == ["ddr-prior", "fruit", "metal", "sport"]
    views = dict.fromkeys(model.experts, pipeline.method(Ddr).models["ddr-prior"])
    encoder = load_tower(pipeline.method(Ddr).inner.encoder)
    for name, expert in views.items():
        encoder.load_adapter(name, expert.folder(pipeline.store))
        rows = model.tokenize(QUERIES)
        np.testing.assert_allclose(
            model.embed(rows, np.ones((len(rows), 1), np.float32), [name]),
            encoder.encode_queries(QUERIES, name),
            atol=1e-5,
        )
    np.testing.assert_allclose(
        model.encode_queries(QUERIES), encoder.encode_queries(QUERIES, "ddr-prior"), atol=1e-5
    )


def test_it_is_served_as_any_bundle_is(trained, model):
    pipeline, registered = trained
    with served(pipeline) as url, Client(url) as client:
        offered = {one["id"] for one in httpx.get(f"{url}/v1/models").raise_for_status().json()["data"]}
        assert offered == {"router", BASE, "documents", "ddr-prior", "fruit", "metal", "sport"}
        np.testing.assert_allclose(client.embed(QUERIES), model.encode_queries(QUERIES), atol=1e-5)
        answer = client.search(QUERIES[0], "fruit", top_k=3, model="fruit", mode="dense")
        assert answer.expert == "fruit"
        assert len(answer.results) == 3
        assert client.search(QUERIES[0], "sport").expert == "ddr-prior"
        assert client.service().version == registered.version
