"""Encoders whose models are called, or call their own parts, in ways of their own."""

from __future__ import annotations

import json

import numpy as np
import pytest
from routerretriever.adapters.check import check_encoder
from routerretriever.adapters.ia3 import Ia3Settings
from routerretriever.adapters.lora import LoraSettings
from routerretriever.adapters.tower import load_tower
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.errors import EncoderError
from support.encoders import TinyEncoder, write_transformer

TEXTS = ["the quick brown fox", "a", "copper and zinc over the lazy dog and a long text", "lazy dog : b"]
PECULIAR = {
    "embeddings want more than token ids": TinyEncoder(
        "luke", config={"entity_vocab_size": 8, "entity_emb_size": 8}
    ),
    "states are padded to a window": TinyEncoder("longformer", config={"attention_window": [8, 8]}),
    "the pooler is called unasked": TinyEncoder("layoutlm"),
    "a layer's output is changed in place": TinyEncoder("falcon", config={"alibi": False}),
}
GPT2 = TinyEncoder("gpt2", config={"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 32})
CONVBERT = TinyEncoder("convbert", config={"embedding_size": 16, "head_ratio": 1})


def settings_of(folder, **others) -> EncoderSettings:
    return EncoderSettings(name=str(folder), device="cpu", **others)


@pytest.mark.parametrize("tiny", PECULIAR.values(), ids=PECULIAR)
def test_a_peculiar_model_encodes_is_routed_and_trained(tiny, tmp_path):
    from sentence_transformers import SentenceTransformer

    folder = write_transformer(tiny, tmp_path)
    tower = load_tower(settings_of(folder))
    expected = SentenceTransformer(str(folder), device="cpu").encode_document(
        TEXTS, normalize_embeddings=True
    )
    np.testing.assert_allclose(tower.encode_documents(TEXTS), expected, atol=1e-5)
    for layer in (0, 1):
        alone = np.concatenate([tower.routing_features([text], layer) for text in TEXTS])
        np.testing.assert_allclose(tower.routing_features(TEXTS, layer), alone, atol=1e-5)
    for adapter in (LoraSettings(), Ia3Settings()):
        tower = load_tower(settings_of(folder))
        tower.add_adapter("one", adapter)
        tower.tower.train()
        tower.embed_with_gradients(tower.tokenize_queries(TEXTS), tower.tower)[:, 0].sum().backward()
        assert any(weight.grad is not None and weight.grad.any() for weight in tower.tower.parameters())


@pytest.mark.parametrize("model_type", ["bert", "gpt_neox"])
def test_an_empty_text_has_a_vector_where_the_tokenizer_adds_nothing_to_it(model_type, tmp_path):
    folder = write_transformer(TinyEncoder(model_type), tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}))
    tower = load_tower(settings_of(folder))
    assert tower.tokenize_documents([""]) == [[]]
    alone = tower.encode_documents([""])
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(tower.encode_documents([*TEXTS, ""])[-1:], alone, atol=1e-5)
    assert np.isfinite(tower.routing_features([""], 0)).all()
    check_encoder(settings_of(folder), (LoraSettings(),))


@pytest.mark.parametrize(
    ("tiny", "message"),
    [
        (GPT2, "is a gpt2 model, whose layers are no nn.Linear; it encodes and routes"),
        (CONVBERT, "gives a text another vector beside longer ones: it reads the padding"),
        (TinyEncoder("canine"), "cannot be run here: "),
    ],
    ids=["no linear layers", "padding is read", "an error of its own"],
)
def test_a_model_that_cannot_be_run_is_told_in_one_line(tiny, message, tmp_path):
    folder = write_transformer(tiny, tmp_path)
    with pytest.raises(EncoderError, match=message) as caught:
        check_encoder(settings_of(folder), (LoraSettings(),))
    assert len(str(caught.value).splitlines()) == 1
    assert str(folder) in str(caught.value)


def test_features_that_a_base_does_not_have_are_told_before_a_run():
    fake = EncoderSettings(name="fake")
    with pytest.raises(EncoderError, match=r"routing\.features: layer 9 of 2; use 0 to 1, or 'embedding'"):
        check_encoder(fake, features=9)
    check_encoder(fake, features=1)


def test_a_model_that_runs_but_cannot_be_routed_is_told_before_a_run(tmp_path):
    folder = write_transformer(TinyEncoder("squeezebert", config={"embedding_size": 16}), tmp_path)
    check_encoder(settings_of(folder))
    with pytest.raises(EncoderError, match=r"routing\.features: this encoder does not run the layer"):
        check_encoder(settings_of(folder), features=0)
