"""Experts leave the house: folders that sentence-transformers and PEFT open, with the same vectors."""

import json
from pathlib import Path

import numpy as np
import pytest
from routerretriever.adapters.files import tower_fingerprint
from routerretriever.adapters.ia3 import Ia3Settings
from routerretriever.adapters.lora import LoraSettings
from routerretriever.adapters.prefix import PrefixSettings
from routerretriever.adapters.tower import load_tower
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.bundle import card, export
from routerretriever.bundle.build import BundleParts, ServiceFacts, write_bundle
from routerretriever.bundle.export import export_expert
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.encoder.source import hub_id
from routerretriever.errors import NotFound, Refused
from routerretriever.routing.constant import ConstantRouter
from routerretriever.routing.settings import RoutingSettings
from routerretriever.training.expert import open_expert
from support.encoders import write_encoder

QUERIES = ["the quick brown fox", "copper and zinc", "a long text over the lazy dog"]
FACTS = ServiceFacts({}, {}, {"fox": 1.0})


def shaken(tower, name):
    """Change an adapter that changes nothing yet; returns its vectors."""
    import torch

    torch.manual_seed(3)
    for parameter in tower.tower.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return tower.encode_queries(QUERIES, name)


def make_bundle(folder, settings, adapter):
    """A bundle with one expert, and the expert's vectors."""
    store = ArtifactStore.open(str(folder / "storage"))
    tower = load_tower(settings)
    tower.add_adapter("fox", adapter)
    vectors = shaken(tower, "fox")
    tower.save_adapter("fox", folder / "adapter")
    store.put_folder("experts/fox-1", folder / "adapter")
    store.commit("experts/fox-1", {
        "domain": "fox", "encoder": settings.model_dump(), "encoder_fingerprint": tower_fingerprint(settings),
        "dev_ndcg_at_10": 0.5, "base_dev_ndcg_at_10": 0.4, "steps": 4, "best_step": 2,
    })  # fmt: skip
    router = ConstantRouter(["fox"], np.ones(1, dtype=np.float32))
    experts = {"fox": open_expert(store, "experts/fox-1")}
    parts = BundleParts({"name": "tiny"}, settings, RoutingSettings(), router, experts, {}, FACTS)
    (folder / "bundle").mkdir()
    write_bundle(folder / "bundle", parts, {"fox": 1}, store)
    return folder / "bundle", vectors


@pytest.fixture(params=[LoraSettings(), Ia3Settings()], ids=["lora", "ia3"])
def bundle(request, tmp_path):
    encoder = write_encoder("bert-cls-prompt", tmp_path / "base")
    return make_bundle(tmp_path, EncoderSettings(name=str(encoder)), request.param)


def opened(folder):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode_query(QUERIES)


def named_in(folder, text):
    return [path.name for path in folder.rglob("*") if path.is_file() and text in path.read_bytes()]


def test_a_merged_expert_opens_without_its_base(bundle, tmp_path):
    folder, vectors = bundle
    made = export_expert(folder, "fox", tmp_path / "out", merged=True)
    np.testing.assert_allclose(opened(made), vectors, atol=1e-5)
    assert named_in(made, str(tmp_path).encode()) == []
    told = (made / "README.md").read_text()
    assert "encode_query" in told
    assert "0.5000" in told
    assert not list(tmp_path.glob(".out*"))


def test_an_adapter_is_written_for_peft_with_the_bases_public_name(bundle, tmp_path, monkeypatch):
    folder, vectors = bundle
    with pytest.raises(Refused, match=r"local folder.*--merged"):
        export_expert(folder, "fox", tmp_path / "out")
    base = str(tmp_path / "base" / "encoder")
    for module in (export, card):
        monkeypatch.setattr(module, "hub_id", lambda _: base)  # as if this were the name of a published model
    made = export_expert(folder, "fox", tmp_path / "out")
    assert json.loads((made / "adapter_config.json").read_text())["base_model_name_or_path"] == base
    assert not list(made.glob("model*.safetensors"))
    assert sorted(named_in(made, str(tmp_path).encode())) == ["README.md", "adapter_config.json"]
    np.testing.assert_allclose(opened(made), vectors, atol=1e-5)

    from peft import PeftModel
    from transformers import AutoModel

    plain = PeftModel.from_pretrained(AutoModel.from_pretrained(base), str(made))
    assert list(plain.peft_config) == ["default"]


def test_what_cannot_be_exported_is_refused_with_the_reason(bundle, tmp_path):
    folder, _ = bundle
    with pytest.raises(NotFound, match="there are fox"):
        export_expert(folder, "cat", tmp_path / "out")
    with pytest.raises(Refused, match="is there already"):
        export_expert(folder, "fox", tmp_path)
    (tmp_path / "p").mkdir()
    prefix, _ = make_bundle(
        tmp_path / "p", EncoderSettings(name=str(tmp_path / "base/encoder")), PrefixSettings()
    )
    with pytest.raises(Refused, match="'prefix', which only RouterRetriever runs"):
        export_expert(prefix, "fox", tmp_path / "out", merged=True)
    fake = Path(tmp_path / "f")
    fake.mkdir()
    with pytest.raises(Refused, match="fake"):
        export_expert(
            make_bundle(fake, EncoderSettings(name="fake"), LoraSettings())[0], "fox", fake / "o", True
        )
    assert not (tmp_path / "out").exists()


def test_public_names_of_encoders(tmp_path):
    assert hub_id(EncoderSettings()) == "sentence-transformers/all-MiniLM-L6-v2"
    assert hub_id(EncoderSettings(name="intfloat/e5-base")) == "intfloat/e5-base"
    (tmp_path / "config.json").touch()
    assert hub_id(EncoderSettings(name=str(tmp_path))) is None
