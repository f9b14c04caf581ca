"""A bundle of every architecture: experts and a router are written, loaded and asked, without Ray."""

import numpy as np
import pytest
import torch
from routerretriever import RouterRetriever
from routerretriever.adapters.files import tower_fingerprint
from routerretriever.adapters.kinds import merge_adapter
from routerretriever.adapters.lora import LoraSettings
from routerretriever.adapters.tower import load_tower
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.bundle.build import BundleParts, ServiceFacts, write_bundle
from routerretriever.config.registry import RegistrySettings
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.registry.registry import Registry, RunRecord
from routerretriever.routing.constant import ConstantRouter
from routerretriever.routing.settings import RoutingSettings
from routerretriever.training.expert import open_expert
from routerretriever.training.settings import TrainingSettings
from support.encoders import ENCODERS, write_encoder

QUERIES = ["the quick fox", "a", "copper and zinc over the lazy dog"]
SHARES = np.array([0.75, 0.25], dtype=np.float32)


def make(encoder, root, merge):
    """A storage with two experts, the parts of a bundle that mixes them, and the adapters' folders."""
    store = ArtifactStore.open(str(root / "storage"))
    tower, folders = load_tower(encoder), {}
    for number, name in enumerate(("one", "two")):
        tower.add_adapter(name, LoraSettings(target_modules=("all-linear",), rank=2))
        random = torch.Generator().manual_seed(number)
        for weight in tower.tower.parameters():
            if weight.requires_grad:
                weight.data.normal_(std=0.1, generator=random)
        folders[name] = root / name
        tower.save_adapter(name, folders[name])
        store.put_folder(f"experts/{name}-1", folders[name])
        card = {
            "domain": name, "encoder": encoder.model_dump(),
            "training": TrainingSettings().model_dump(mode="json"),
            "encoder_fingerprint": tower_fingerprint(encoder), "history": [(2, 0.5)], "seconds": 1.0,
            "dev_ndcg_at_10": 0.5, "base_dev_ndcg_at_10": 0.4, "steps": 4, "best_step": 2, "train": "t",
            "corpus": "c",
        }  # fmt: skip
        store.commit(f"experts/{name}-1", card)
    experts = {name: open_expert(store, f"experts/{name}-1") for name in folders}
    router, routing = ConstantRouter(list(folders), SHARES), RoutingSettings(merge=merge)
    facts = ServiceFacts({}, {}, {"one": 0.75, "two": 0.25})
    return store, BundleParts({"name": "tiny"}, encoder, routing, router, experts, {}, facts), folders


def mixed_by_hand(encoder, folders):
    """The experts' vectors, each merged into a base of its own, in the router's shares."""
    mixed = 0
    for share, (name, folder) in zip(SHARES, folders.items(), strict=True):
        tower = load_tower(encoder)
        merge_adapter(tower, name, folder)
        mixed = mixed + share * tower.encode_queries(QUERIES)
    return mixed


@pytest.mark.parametrize("name", ENCODERS)
def test_a_bundle_is_written_loaded_and_asked(name, tmp_path):
    encoder = EncoderSettings(name=str(write_encoder(name, tmp_path)), device="cpu")
    store, parts, folders = make(encoder, tmp_path, "embeddings")
    (tmp_path / "bundle").mkdir()
    write_bundle(tmp_path / "bundle", parts, {"one": 1, "two": 1}, store)
    bundle = RouterRetriever.load(str(tmp_path / "bundle"))
    expected = mixed_by_hand(encoder, folders)
    np.testing.assert_allclose(bundle.encode_queries(QUERIES), expected, atol=5e-5)
    documents = [{"title": "the fox", "text": "over the dog"}]
    alone = load_tower(encoder).encode_documents(["the fox over the dog"])
    np.testing.assert_allclose(bundle.encode_corpus(documents), alone, atol=1e-6)
    assert bundle.route(bundle.tokenize(QUERIES)).shape == (3, 2)


@pytest.mark.component
@pytest.mark.parametrize("name", ["deberta-v2", "qwen3", "gemma3-dense"])
def test_a_registered_bundle_answers_as_its_folder_does(name, tmp_path):
    encoder = EncoderSettings(name=str(write_encoder(name, tmp_path)), device="cpu")
    store, parts, _ = make(encoder, tmp_path, "weights")
    (tmp_path / "bundle").mkdir()
    write_bundle(tmp_path / "bundle", parts, {"one": 1, "two": 1}, store)
    registry = Registry(RegistrySettings(name="tiny"), store)
    registry.register_bundle(parts, RunRecord({}, 0.5))
    loaded = RouterRetriever.load(registry.bundle_uri, registry.tracking_uri)
    expected = RouterRetriever.load(str(tmp_path / "bundle")).encode_queries(QUERIES)
    np.testing.assert_array_equal(loaded.encode_queries(QUERIES), expected)


def test_a_bundle_keeps_the_encoder_of_documents(tmp_path):
    student = write_encoder("bert-cls-prompt", tmp_path / "student")
    teacher = write_encoder("roberta", tmp_path / "teacher")
    encoder = EncoderSettings(name=str(student), documents={"name": str(teacher)}, device="cpu")
    store, parts, folders = make(encoder, tmp_path, "embeddings")
    (tmp_path / "bundle").mkdir()
    write_bundle(tmp_path / "bundle", parts, {"one": 1, "two": 1}, store)
    bundle = RouterRetriever.load(str(tmp_path / "bundle"))
    by_teacher = load_tower(EncoderSettings(name=str(teacher), device="cpu")).encode_documents(["the fox"])
    np.testing.assert_allclose(bundle.encode_corpus([{"text": "the fox"}]), by_teacher, atol=1e-6)
    np.testing.assert_allclose(bundle.encode_queries(QUERIES), mixed_by_hand(encoder, folders), atol=1e-5)
