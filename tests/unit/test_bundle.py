"""A bundle from its making to MLflow and back, without Ray: experts are adapters as they start."""

import json
import shutil
import threading
from dataclasses import replace

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from routerretriever import RouterRetriever
from routerretriever.adapters.files import tower_fingerprint
from routerretriever.adapters.lora import LoraSettings
from routerretriever.adapters.tower import load_tower
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.bundle.build import BundleParts, ServiceFacts, write_bundle
from routerretriever.bundle.manifest import ValidationQuery, read_validation_queries
from routerretriever.config.registry import RegistrySettings
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.errors import BadInput, BundleError
from routerretriever.index.fusion_weights import GRID, FusionWeights
from routerretriever.index.settings import FusionSettings
from routerretriever.registry.pyfunc import INPUT_EXAMPLE
from routerretriever.registry.recording import RunRecord
from routerretriever.registry.registry import Registry
from routerretriever.routing.constant import ConstantRouter
from routerretriever.routing.settings import RoutingSettings
from routerretriever.training.expert import open_expert
from routerretriever.training.settings import TrainingSettings
from support.recipes import tiny_recipe

ENCODER = EncoderSettings(name="fake", query_max_length=64, document_max_length=64)
FACTS = ServiceFacts(
    {"fruit": "corpora/fruit-1"}, {"fruit": [ValidationQuery("fig", {"d1": 1})]}, {"fruit": 1.0}
)
QUERIES = ["where is the fig", "an apple"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A storage with one expert, and the parts of a bundle."""
    store = ArtifactStore.open(str(tmp_path_factory.mktemp("made") / "storage"))
    encoder = load_tower(ENCODER)
    encoder.add_adapter("fruit", LoraSettings())
    folder = tmp_path_factory.mktemp("adapter")
    encoder.save_adapter("fruit", folder)
    store.put_folder("experts/fruit-1", folder)
    card = {
        "domain": "fruit", "encoder": ENCODER.model_dump(),
        "encoder_fingerprint": tower_fingerprint(ENCODER),
        "training": TrainingSettings().model_dump(mode="json"), "history": [(2, 0.5)], "dev_ndcg_at_10": 0.5,
        "base_dev_ndcg_at_10": 0.4, "seconds": 1.0, "steps": 4, "best_step": 2, "train": "t", "corpus": "c",
    }  # fmt: skip
    store.commit("experts/fruit-1", card)
    router = ConstantRouter(["fruit"], np.ones(1, dtype=np.float32))
    experts = {"fruit": open_expert(store, "experts/fruit-1")}
    return store, BundleParts({"name": "tiny"}, ENCODER, RoutingSettings(), router, experts, {}, FACTS)


def written(made, folder):
    store, parts = made
    folder.mkdir()
    write_bundle(folder, parts, {"fruit": 1}, store)
    return folder


def test_a_bundle_opens_from_its_folder_and_embeds(made, tmp_path):
    bundle = RouterRetriever.load(str(written(made, tmp_path / "bundle")))
    assert bundle.experts == ["fruit"]
    assert bundle.encode_queries(QUERIES).shape == (2, bundle.encoder.dimension)


def test_a_bundle_encodes_as_sentence_transformers_do(made, tmp_path):
    bundle = RouterRetriever.load(str(written(made, tmp_path / "bundle")))
    queries, d = bundle.encode_queries(QUERIES), bundle.encoder.dimension
    for given in (QUERIES, iter(QUERIES), [{"text": QUERIES[:1]}, {"text": QUERIES[1:]}]):
        np.testing.assert_array_equal(bundle.encode(given), queries)
    np.testing.assert_array_equal(bundle.encode_query(QUERIES, batch_size=1), queries)
    documents = bundle.encode_document(QUERIES, show_progress_bar=True)
    np.testing.assert_array_equal(documents, bundle.encode_corpus([{"text": text} for text in QUERIES]))
    np.testing.assert_array_equal(bundle.encode(QUERIES, prompt_type="document"), documents)
    np.testing.assert_array_equal(bundle.encode_queries(QUERIES[0]), bundle.encode_queries(QUERIES[:1]))
    assert bundle.encode("an apple").shape == bundle.encode_document("an apple").shape == (d,)
    assert bundle.encode([]).shape == bundle.encode_document([]).shape == (0, d)
    tensor = bundle.encode_query("an apple", convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor)
    scores = bundle.similarity(queries, documents)
    np.testing.assert_allclose(bundle.similarity(tensor, documents)[0], scores[1], atol=1e-5)


def test_vectors_are_given_unit_length_on_demand(made, tmp_path, monkeypatch):
    bundle = RouterRetriever.load(str(written(made, tmp_path / "bundle")))
    whole = bundle.encode_queries(QUERIES)
    monkeypatch.setattr(bundle, "encode_queries", lambda texts: whole / 2)  # as a mixture may be
    assert np.linalg.norm(bundle.encode_query(QUERIES), axis=1) == pytest.approx([0.5, 0.5])
    np.testing.assert_allclose(bundle.encode_query(QUERIES, normalize_embeddings=True), whole, atol=1e-6)


def test_a_bundle_tells_where_each_setting_of_its_encoder_came_from(made, tmp_path):
    manifest = RouterRetriever.load(str(written(made, tmp_path / "bundle"))).manifest
    assert manifest["encoder"]["query_max_length"] == 64
    assert manifest["encoder_sources"]["query_max_length"] == "recipe"
    assert manifest["encoder_sources"]["pooling"] == "default"


def test_validation_queries_are_read_under_their_old_name_too(made, tmp_path, caplog):
    folder = written(made, tmp_path / "bundle")
    assert read_validation_queries(folder) == FACTS.validation
    assert caplog.messages == []
    (folder / "validation.json").rename(folder / "canary.json")
    assert read_validation_queries(folder) == FACTS.validation
    assert "canary.json: the file is now validation.json; the next release reads" in caplog.text


def test_a_bundle_with_an_old_key_is_read_with_a_warning(made, tmp_path, caplog):
    folder = written(made, tmp_path / "bundle")
    manifest = json.loads((folder / "bundle.json").read_text())
    del manifest["merge"]
    (folder / "bundle.json").write_text(json.dumps(manifest | {"mix": "adapters"}))
    bundle = RouterRetriever.load(str(folder))
    assert (bundle.merge, bundle.merge) == ("weights", "weights")
    assert caplog.text.count("a bundle's mix is now merge; the next release reads the new key only") == 1


def test_a_bundle_tells_how_much_bm25_counts(made, tmp_path):
    weights = np.ones((2, 1), dtype=np.float32)
    plain = RouterRetriever.load(str(written(made, tmp_path / "plain")))
    assert plain.fusion is None
    assert plain.fusion_weights(weights, ["fruit"]).tolist() == [0.1, 0.1]
    store, parts = made
    harmful = FusionWeights.fit({"fruit": np.tile(-np.array(GRID), (200, 1))}, FusionSettings())
    learned = replace(parts, fusion=harmful)
    bundle = RouterRetriever.load(str(written((store, learned), tmp_path / "learned")))
    assert bundle.fusion.domains == ("fruit",)
    assert bundle.fusion_weights(weights, ["fruit"]).tolist() == [0.0, 0.0]
    assert bundle.manifest["fusion"] in bundle.manifest["files"]
    (tmp_path / "learned" / "fusion.json").write_text("{}")
    with pytest.raises(BundleError, match=r"fusion\.json: altered"):
        RouterRetriever.load(str(tmp_path / "learned"))


def test_an_altered_file_is_named(made, tmp_path):
    folder = written(made, tmp_path / "bundle")
    (folder / "validation.json").write_text("{}")
    with pytest.raises(BundleError, match=r"validation\.json: altered"):
        RouterRetriever.load(str(folder))


@pytest.mark.parametrize("content", ['{"format": 2, "fi', "[]", "\udcff"])
def test_a_damaged_manifest_is_named(content, tmp_path):
    (tmp_path / "bundle.json").write_text(content, errors="surrogateescape")
    with pytest.raises(BundleError, match=r"bundle\.json: no manifest of a bundle"):
        RouterRetriever.load(str(tmp_path))


@pytest.mark.component
def test_the_experts_aliases_follow_the_release(made, tmp_path):
    made_store, parts = made
    shutil.copytree(made_store.uri, tmp_path / "storage")
    store = ArtifactStore.open(str(tmp_path / "storage"))
    registry = Registry(RegistrySettings(name="tiny"), store)
    experts = tmp_path / "storage" / "experts"
    shutil.copytree(experts / "fruit-1", experts / "fruit-2")
    one, other = (open_expert(store, f"experts/fruit-{number}") for number in (1, 2))
    metal = replace(one, domain="metal")

    def register(release, **experts):
        return registry.register_bundle(replace(parts, experts=experts), RunRecord(), release)[0]

    def released():
        models = mlflow.MlflowClient(registry.tracking_uri).search_registered_models()
        return {model.name: dict(model.aliases).get("champion") for model in models}

    register(True, fruit=one, metal=metal)
    register(False, fruit=other)
    assert released() == {"tiny": 1, "tiny-expert-fruit": 1, "tiny-expert-metal": 1}
    registry.release(2)
    assert released() == {"tiny": 2, "tiny-expert-fruit": 2, "tiny-expert-metal": None}
    registry.roll_back()
    assert released() == {"tiny": 1, "tiny-expert-fruit": 1, "tiny-expert-metal": 1}
    # A bundle under a name that an expert could have is none.
    Registry(RegistrySettings(name="tiny-expert-x"), store).register_bundle(parts, RunRecord())
    registry.release(2)
    assert released()["tiny-expert-x"] == 1


@pytest.mark.component
def test_a_setting_that_changes_nothing_in_a_bundle_makes_no_new_version(made, tmp_path):
    made_store, parts = made
    shutil.copytree(made_store.uri, tmp_path / "storage")
    registry = Registry(RegistrySettings(name="tiny"), ArtifactStore.open(str(tmp_path / "storage")))

    def version_with(**changes):
        recipe = tiny_recipe(tmp_path, **changes).model_dump(mode="json")
        changed = replace(parts, recipe=recipe, evaluation={"deployed": "x", "settings": recipe})
        return registry.register_bundle(changed, RunRecord())[0]

    assert version_with() == 1
    assert version_with(routing={"temperature": 0.5}) == 2
    for same in (
        {"serving": {"port": 9000}},
        {"storage": str(tmp_path / "elsewhere")},
        {"question": "another?"},
        {"corpus": {"shard_size": 10, "workers": 2, "gpus_per_worker": 0.5}},
        {"registry": {"name": "tiny", "alias": "live"}},
    ):
        assert version_with(**same) == 1, same
    told = {"encoder": {"pooling": {"value": "mean", "source": "default"}}}
    recipe = tiny_recipe(tmp_path).model_dump(mode="json")
    spelled_out = replace(
        parts,
        recipe=recipe,
        encoder=ENCODER.model_copy(update={"pooling": "mean"}),  # as by default
        evaluation={"deployed": "x", "settings": recipe} | told,
    )
    assert registry.register_bundle(spelled_out, RunRecord())[0] == 1
    assert registry.bundles()[0].version == 2
    domains = {"labels": {"path": "fruit"}, "workers": {"path": "metal"}}
    assert [version_with(domains=domains), version_with(domains={"labels": {"path": "fruit"}})] == [3, 4]


@pytest.mark.component
def test_a_registered_bundle_comes_back_the_same_however_it_is_loaded(made, tmp_path, monkeypatch):
    made_store, parts = made
    shutil.copytree(made_store.uri, tmp_path / "storage")
    settings = RegistrySettings(name="tiny")
    store = ArtifactStore.open(str(tmp_path / "storage"))
    registry = Registry(settings, store)
    state = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    answers = []

    def register():
        figures = {"seconds/train": 1.0, "ndcg_at_10/fruit": 0.5, "mean_ndcg_at_10/a + b, c": 0.5}
        answers.append(registry.register_bundle(parts, RunRecord(figures, 0.5)))

    register()
    # Two more that register the same at once get the same versions.
    threads = [threading.Thread(target=register) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [(1, {"fruit": 1})] * 3
    (version,) = registry.bundles()
    assert (version.recipe, version.experts, version.ndcg_at_10) == ("tiny", "fruit", {"fruit": 0.5})
    loaded = RouterRetriever.load(registry.bundle_uri, registry.tracking_uri)
    expected = RouterRetriever.load(str(written(made, tmp_path / "bundle"))).encode_queries(QUERIES)
    np.testing.assert_array_equal(loaded.encode_queries(QUERIES), expected)
    assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == state
    assert mlflow.active_run() is None

    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.tracking_uri)
    model = mlflow.pyfunc.load_model("models:/tiny/1")
    np.testing.assert_array_equal(model.predict(QUERIES), expected)
    table = pd.DataFrame({"id": ["q1", "q2"], "text": QUERIES})
    np.testing.assert_array_equal(model.predict(table), expected)

    one = mlflow.pyfunc.load_model("models:/tiny-expert-fruit/1")
    np.testing.assert_allclose(one.predict(table), expected, atol=1e-6)
    with pytest.raises(BadInput, match="no column 'text'"):
        model.predict(table.rename(columns={"text": "query"}))
    shown = mlflow.MlflowClient()
    about = shown.get_model_version("tiny", "1")
    assert about.description.startswith("Recipe 'tiny': 1 experts (fruit) on fake")
    assert "# Bundle of recipe `tiny`" in about.description
    run = shown.get_run(about.run_id)
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("fruit", "1")
    assert {"model_card.md", "recipe.json"} <= {file.path for file in shown.list_artifacts(about.run_id)}
    assert model.input_example == INPUT_EXAMPLE

    # The storage moves: what is registered there is still served, and new versions are written there.
    (tmp_path / "storage").rename(tmp_path / "moved")
    moved = ArtifactStore.open(str(tmp_path / "moved"))
    registry = Registry(settings, moved)
    loaded = RouterRetriever.load(registry.bundle_uri, registry.tracking_uri)
    np.testing.assert_array_equal(loaded.encode_queries(QUERIES), expected)
    other = BundleParts(**{**vars(parts), "evaluation": {"again": 1}})
    assert registry.register_bundle(other, RunRecord())[0] == 2
    RouterRetriever.load("models:/tiny/2", registry.tracking_uri)
    assert not (tmp_path / "storage").exists()
    logged = json.dumps(str(list((tmp_path / "moved" / "mlflow-artifacts").rglob("bundle.json"))))
    assert logged.count("bundle.json") == 2
