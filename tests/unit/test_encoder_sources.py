"""Encoders of another kind: static embeddings, two towers, code of their own, and what is none."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from routerretriever.adapters.check import check_encoder
from routerretriever.adapters.files import tower_fingerprint
from routerretriever.adapters.lora import LoraSettings
from routerretriever.adapters.prefix import PrefixSettings
from routerretriever.adapters.tower import load_tower
from routerretriever.encoder.card import read_card
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.errors import EncoderError, RecipeError
from support.encoders import TinyEncoder, write_encoder, write_transformer

TEXTS = ["the quick brown fox", "a", "copper and zinc over the lazy dog"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def settings_of(folder, **others) -> EncoderSettings:
    return EncoderSettings(name=str(folder), device="cpu", **others)


# --- Static embeddings


@pytest.fixture(params=["sentence-transformers", "model2vec"])
def static(request, tmp_path):
    """A folder with static embeddings, and the encoder that another library makes of it."""
    from safetensors.torch import save_file
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(
        str(write_transformer(TinyEncoder("bert"), tmp_path / "t") / "tokenizer.json")
    )
    table = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
    peer = SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, embedding_weights=table), Normalize()], device="cpu"
    )
    folder = tmp_path / request.param
    if request.param == "sentence-transformers":
        peer.save(str(folder))
    else:
        folder.mkdir()
        save_file({"embeddings": table}, folder / "model.safetensors")
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "config.json").write_text(json.dumps({"model_type": "model2vec", "normalize": True}))
    return folder, peer


def test_static_embeddings_encode_and_give_what_a_router_reads(static):
    folder, peer = static
    ours = load_tower(settings_of(folder))
    texts = [*TEXTS, "", "a b " * 300]
    expected = peer.encode(texts)
    np.testing.assert_allclose(ours.encode_documents(texts), expected, atol=1e-5)
    np.testing.assert_allclose(ours.encode_queries(texts), expected, atol=1e-5)
    for features in (0, "embedding"):
        assert ours.routing_features(TEXTS, features).shape == (3, 12)
    assert ours.dimension == 12
    with pytest.raises(EncoderError, match="layer 1 of 0"):
        ours.routing_features(TEXTS, 1)
    assert read_card(settings_of(folder)).settings.similarity == "cosine"
    assert len(tower_fingerprint(settings_of(folder))) == 16


def test_static_embeddings_are_no_base_for_experts(static):
    with pytest.raises(
        EncoderError, match="a table of static embeddings, without a layer that an expert could"
    ):
        check_encoder(settings_of(static[0]), (LoraSettings(),))


# --- Two towers


@pytest.fixture
def towers(tmp_path):
    """A small encoder for queries, and one of another architecture for documents."""
    student = write_encoder("bert-cls-prompt", tmp_path / "student")
    teacher = write_encoder("roberta", tmp_path / "teacher")
    (teacher / "config_sentence_transformers.json").write_text('{"prompts": {"document": "passage : "}}')
    return student, teacher


def test_another_encoder_reads_the_documents(towers, tmp_path):
    student, teacher = towers
    both = settings_of(student, documents={"name": str(teacher)})
    ours = load_tower(both)
    by_teacher = load_tower(settings_of(teacher)).encode_documents(TEXTS)
    by_student = load_tower(settings_of(student)).encode_queries(TEXTS)
    np.testing.assert_allclose(ours.encode_documents(TEXTS), by_teacher, atol=1e-6)
    np.testing.assert_allclose(ours.encode_queries(TEXTS), by_student, atol=1e-6)
    # A service tokenises first, and puts documents and queries into one batch.
    rows = [*ours.tokenize_documents(TEXTS), *ours.tokenize_queries(TEXTS)]
    np.testing.assert_allclose(ours.embed_tokens(rows), np.concatenate([by_teacher, by_student]), atol=1e-6)
    longest = ["a b " * 30]
    assert ours.are_cut(longest, ours.tokenize_documents(longest), True) == [True]
    ours.add_adapter("one", LoraSettings(target_modules=("all-linear",), rank=2))
    np.testing.assert_allclose(ours.encode_documents(TEXTS), by_teacher, atol=1e-6)
    with pytest.raises(EncoderError, match=r"encoder\.documents: another encoder reads the documents"):
        ours.encode_documents(TEXTS, "one")


def test_the_encoder_of_documents_says_what_is_said_of_documents(towers):
    student, teacher = towers
    card = check_encoder(settings_of(student, documents={"name": str(teacher)}), (LoraSettings(),))
    assert card.settings.query_prompt == "search for the query : "
    assert card.settings.document_prompt == "passage : "
    shorter = settings_of(student, documents={"name": str(teacher)}, document_prompt="search for ")
    told = ("encoder.document_prompt: 'search for ' by the recipe; the files say 'passage : '",)
    assert read_card(shorter).warnings == told  # once: what the other's files say of documents is not read
    # What a bundle keeps has no open setting, and means the same.
    again = read_card(EncoderSettings(**card.settings.model_dump()))
    assert again.settings == card.settings


def test_the_documents_encoder_is_part_of_the_fingerprint(towers, tmp_path):
    student, teacher = towers
    alone = tower_fingerprint(settings_of(student))
    both = tower_fingerprint(settings_of(student, documents={"name": str(teacher)}))
    copy = shutil.copytree(teacher, tmp_path / "copy")
    assert alone != both
    assert tower_fingerprint(settings_of(student, documents={"name": str(copy)})) == both
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(config.replace('"gelu"', '"relu"'))
    assert tower_fingerprint(settings_of(student, documents={"name": str(copy)})) != both


def test_towers_of_two_spaces_and_adapters_on_both_are_refused(towers, tmp_path):
    student, _ = towers
    other = write_encoder("t5-dense", tmp_path / "other")
    with pytest.raises(EncoderError, match="makes vectors 12 wide"):
        check_encoder(settings_of(student, documents={"name": str(other)}))
    with pytest.raises(ValidationError, match="one encoder for both"):
        settings_of(student, documents={"name": str(other)}, adapter="x")


def test_training_both_towers_needs_one_encoder(towers, tmp_path):
    from routerretriever.training.expert import train_step
    from routerretriever.training.settings import TrainingSettings

    student, teacher = towers
    encoder = settings_of(student, documents={"name": str(teacher)})
    with pytest.raises(RecipeError, match="needs one encoder for both"):
        train_step("both", "experts/both", [], encoder, TrainingSettings(), both_towers=10)


# --- Code of its own


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of a model with its own code; where its copies go is the test's."""
    from support.own_model import OwnConfig, OwnModel

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = write_transformer(TinyEncoder("bert"), tmp_path / "own")
    OwnConfig.register_for_auto_class()
    OwnModel.register_for_auto_class("AutoModel")
    torch.manual_seed(3)
    OwnModel(OwnConfig(pad_token_id=1)).save_pretrained(folder)
    assert (folder / "own_model.py").is_file()
    return folder


def test_code_of_its_own_runs_only_where_the_recipe_says_so(own, monkeypatch):
    from sentence_transformers import SentenceTransformer

    monkeypatch.setattr(sys, "stdin", None)  # nothing is ever asked
    with pytest.raises(EncoderError, match=r"needs Python code of its own; set encoder\.trust_remote_code"):
        check_encoder(settings_of(own))
    trusted = settings_of(own, trust_remote_code=True)
    check_encoder(trusted, (LoraSettings(),))
    tower = load_tower(trusted)
    peer = SentenceTransformer(str(own), trust_remote_code=True, device="cpu")
    expected = peer.encode_query(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(tower.encode_queries(TEXTS), expected, atol=1e-5)
    assert tower.layers == 2
    assert tower.linear_names() == ["dense", "query"]


def test_code_of_another_repository_is_refused(own):
    config = json.loads((own / "config.json").read_text())
    config["auto_map"]["AutoModel"] = "someone/else--own_model.OwnModel"
    (own / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        EncoderError, match="takes its code from someone/else, which the revision does not pin"
    ):
        check_encoder(settings_of(own, trust_remote_code=True))


@pytest.mark.parametrize("revision", [None, "main", "v1.0"])
def test_trusted_code_of_a_hub_needs_a_commit(revision):
    for where in ({"name": "a/b"}, {"name": "./x", "documents": {"name": "a/b"}}):
        inner = where.get("documents", where)
        inner |= {"trust_remote_code": True, "revision": revision}
        with pytest.raises(ValidationError, match="pinned revision, a commit of 40 hex digits"):
            EncoderSettings(**where)
    EncoderSettings(name="a/b", trust_remote_code=True, revision=COMMIT)


# --- Grouped keys, and what is no text encoder


@pytest.mark.parametrize("name", ["qwen3", "mistral"])
def test_prefixes_on_grouped_keys_are_refused_at_once(name, tmp_path):
    folder = write_encoder(name, tmp_path)
    with pytest.raises(EncoderError) as caught:
        check_encoder(settings_of(folder), (PrefixSettings(),))
    assert "has grouped keys (1 for 2 heads), which take no prefix; use a LoRA" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["image", "both", "decoder", "nothing", "module"])
def test_what_is_no_text_encoder_is_told_in_one_line(kind, tmp_path):
    from transformers import BartConfig, CLIPConfig, ViTConfig

    folder = write_transformer(TinyEncoder("bert"), tmp_path)
    if kind == "module":
        modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.CLIPModel"}]
        (folder / "modules.json").write_text(json.dumps(modules))
    elif kind == "nothing":
        (folder / "config.json").write_text("{}")
    else:
        config = {"image": ViTConfig, "both": CLIPConfig, "decoder": BartConfig}[kind]
        config().save_pretrained(folder)
    message = {"image": "reads images", "both": "reads images", "decoder": "a bart model with a decoder"}
    with pytest.raises(EncoderError, match=message.get(kind, "cannot be")) as caught:
        check_encoder(settings_of(folder))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("Transformer Pooling Normalize Dense", "has Dense after Normalize"),
        ("Transformer Pooling Normalize Dropout Dense Normalize", "has Dense after Normalize"),
        ("Transformer Dense Pooling", "has Pooling after Dense"),
        ("StaticEmbedding Normalize Dense", "has Dense after Normalize"),
    ],
)
def test_modules_in_an_order_that_is_not_run_are_refused(listed, message, tmp_path):
    folder = write_encoder("t5-dense", tmp_path)
    written = json.loads((folder / "modules.json").read_text())
    usual = {module["type"].rpartition(".")[2]: module for module in written}
    others = "sentence_transformers.models."
    modules = [usual.get(kind, {"type": others + kind, "path": ""}) for kind in listed.split()]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(EncoderError, match=message) as caught:
        read_card(settings_of(folder))
    assert len(str(caught.value).splitlines()) == 1


# --- Files of any content

keys = st.sampled_from(
    ["type", "path", "prompts", "query", "pooling_mode", "max_seq_length", "similarity_fn_name",
     "default_prompt_name", "model_max_length", "max_position_embeddings", "text_config", "model_type"]
)  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 10**6) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=5,
)


@given(
    st.sampled_from(
        ["modules.json", "1_Pooling/config.json", "config_sentence_transformers.json", "config.json",
         "sentence_bert_config.json", "tokenizer_config.json"]
    ),
    values.map(json.dumps) | st.text(max_size=10),
)  # fmt: skip
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_file_makes_a_card_fail_but_by_an_error_of_ours(tmp_path_factory, name, text):
    folder = tmp_path_factory.mktemp("card")
    (folder / "1_Pooling").mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "1_Pooling" / "config.json").write_text("{}")
    modules = [
        {"type": f"sentence_transformers.models.{kind}", "path": path}
        for kind, path in (("Transformer", ""), ("Pooling", "1_Pooling"))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / name).write_text(text, encoding="utf-8")
    try:
        read_card(settings_of(folder))
    except EncoderError as error:
        assert str(folder) in str(error)
        assert len(str(error).splitlines()) == 1


def test_the_layout_of_old_is_read(tmp_path):
    new = write_encoder("bert-mean", tmp_path)
    old = tmp_path / "old"
    (old / "0_Transformer").mkdir(parents=True)
    for path in new.iterdir():
        beside = path.is_dir() or path.name in ("modules.json", "config_sentence_transformers.json")
        target = old / path.name if beside else old / "0_Transformer" / path.name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, target)
    modules = json.loads((old / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (old / "modules.json").write_text(json.dumps(modules))
    ours, expected = load_tower(settings_of(old)), load_tower(settings_of(new))
    np.testing.assert_array_equal(ours.encode_queries(TEXTS), expected.encode_queries(TEXTS))
    assert tower_fingerprint(settings_of(old)) == tower_fingerprint(settings_of(new))
