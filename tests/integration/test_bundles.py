"""The bundle of a run: what it embeds, in which forms it is loaded, what is refused."""

from __future__ import annotations

import mlflow
import numpy as np
import pytest
from routerretriever import RouterRetriever
from routerretriever.bundle.manifest import read_manifest
from routerretriever.errors import BundleError
from routerretriever.methods.experts import Experts
from routerretriever.registry.loading import fetch_bundle
from routerretriever.types import BASE

pytestmark = pytest.mark.integration


def test_a_bundle_of_before_there_was_a_choice_mixes_vectors(finished):
    _, registered, _ = finished
    model = RouterRetriever.load(registered.uri, registered.tracking_uri)
    rows, experts = model.tokenize(["where is grape with lead", "x"]), ["fruit", BASE, "metal"]
    weights = np.array([[0.5, 0.2, 0.3], [0, 0, 1]], dtype=np.float32)
    of_adapters = model.embed(rows, weights, experts)
    alone = [model.embed(rows, np.ones((2, 1), dtype=np.float32), [name]) for name in experts]
    del model.manifest["merge"], model.merge  # which was told when the bundle was loaded
    of_vectors = model.embed(rows, weights, experts)
    np.testing.assert_allclose(of_vectors, np.einsum("bt,tbd->bd", weights, alone), atol=1e-5)
    np.testing.assert_allclose(of_adapters[1], of_vectors[1], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(of_adapters, axis=1), 1, atol=1e-5)  # an encoding, not a sum


def test_batches_are_embedded_as_queries_or_as_documents(finished):
    _, registered, _ = finished
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


def test_the_bundle_is_an_mlflow_model_too(finished):
    _, registered, _ = finished
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(registered.tracking_uri)
    try:
        predicted = mlflow.pyfunc.load_model(registered.uri).predict(["where is tin with lead"])
    finally:
        mlflow.set_tracking_uri(before)
    model = RouterRetriever.load(registered.uri, registered.tracking_uri)
    np.testing.assert_allclose(predicted, model.encode_queries(["where is tin with lead"]), atol=1e-6)


def test_a_damaged_bundle_and_one_of_another_base_are_refused(finished, tmp_path):
    pipeline, registered, _ = finished
    folder = fetch_bundle(registered.uri, tmp_path / "one", registered.tracking_uri)
    with (folder / "experts" / "fruit" / "adapter_model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match="altered"):
        read_manifest(folder)
    folder = fetch_bundle(registered.uri, tmp_path / "two", registered.tracking_uri)
    manifest = (
        (folder / "bundle.json")
        .read_text()
        .replace(pipeline.method(Experts).experts["fruit"].card["encoder_fingerprint"], "0123456789abcdef")
    )
    (folder / "bundle.json").write_text(manifest)
    with pytest.raises(BundleError, match="fingerprint"):
        RouterRetriever(folder)
