import platform
import resource

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routerretriever.adapters.kinds import batch_adapters, merge_adapter
from routerretriever.adapters.lora import LoraSettings
from routerretriever.adapters.tower import QueryTower, load_tower
from routerretriever.encoder.fingerprint import encoder_fingerprint
from routerretriever.encoder.linear import FrozenLinear
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.errors import EncoderError
from routerretriever.types import BASE
from transformers import BertConfig, BertModel, BertTokenizerFast

FAKE = EncoderSettings(name="fake", query_max_length=64, document_max_length=64)
TEXTS = [
    "a short one",
    "",
    "a much longer text about copper and zinc, with more words than the others",
    "ünïcode 漢字",
]


@pytest.fixture
def encoder():
    return load_tower(FAKE)


def randomise(encoder):
    for name, weight in encoder.tower.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))


def test_padding_and_batching_do_not_change_a_vector(encoder):
    together = encoder.encode_documents(TEXTS)
    alone = np.concatenate([encoder.encode_documents([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 2, 5)])
def test_a_frozen_layer_gives_and_passes_back_what_pytorchs_own_does(shape, bias):
    linear = torch.nn.Linear(5, 7, bias=bias).requires_grad_(False)
    values, ours = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    expected = torch.nn.functional.linear(values.requires_grad_(), linear.weight, linear.bias)
    FrozenLinear(linear)
    found = linear(ours.requires_grad_())
    torch.testing.assert_close(found, expected)
    with torch.inference_mode():
        torch.testing.assert_close(linear(ours), expected)
    upstream = torch.randn(expected.shape)
    expected.backward(upstream)
    found.backward(upstream)
    torch.testing.assert_close(ours.grad, values.grad)


def test_a_frozen_layer_notices_that_its_weights_were_changed_and_calls_its_hooks():
    linear, values = torch.nn.Linear(5, 7).requires_grad_(False), torch.randn(3, 5)
    frozen = FrozenLinear(linear)
    before = linear(values)
    linear.weight.copy_(2 * linear.weight)
    torch.testing.assert_close(linear(values), 2 * before - linear.bias)
    frozen.hooks.output = lambda output, given: output.add_(given.sum())
    torch.testing.assert_close(linear(values), 2 * before - linear.bias + values.sum())
    frozen.hooks.output, frozen.hooks.input = None, lambda given: 0 * given
    torch.testing.assert_close(linear(values), linear.bias.expand(3, 7))


def test_a_frozen_layer_of_another_precision_is_pytorchs_own():
    linear, values = torch.nn.Linear(5, 7).bfloat16().requires_grad_(False), torch.randn(3, 5).bfloat16()
    expected = linear(values)
    FrozenLinear(linear)
    assert torch.equal(linear(values), expected)


def test_no_texts_give_no_vectors(encoder):
    assert encoder.encode_queries([]).shape == (0, 32)


def test_prompts_and_lengths_matter():
    plain, prompted = load_tower(FAKE), load_tower(FAKE.model_copy(update={"query_prompt": "query: "}))
    np.testing.assert_allclose(prompted.encode_queries(["x"]), plain.encode_queries(["query: x"]), atol=1e-6)
    with pytest.raises(EncoderError, match="document_max_length"):
        load_tower(FAKE.model_copy(update={"document_max_length": 4096}))


@pytest.mark.parametrize(("pooling", "similarity"), [("mean", "dot"), ("cls", "cosine"), ("mean", "cosine")])
def test_a_local_hugging_face_model_is_encoded_as_plain_transformers_would(tmp_path, pooling, similarity):
    """Contriever's way (mean pooling, dot product) among them, on a model of its architecture."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "zinc", "metal", "a"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=10, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path)
    settings = EncoderSettings(name=str(tmp_path), pooling=pooling, similarity=similarity)
    texts = ["what is zinc", "a metal"]
    with torch.no_grad():
        tokens = tokenizer(texts, padding=True, return_tensors="pt")
        hidden = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        expected = hidden[:, 0] if pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
        if similarity == "cosine":
            expected = torch.nn.functional.normalize(expected, dim=-1)
    np.testing.assert_allclose(load_tower(settings).encode_queries(texts), expected.numpy(), atol=1e-5)


def test_a_fresh_adapter_is_the_base_and_documents_never_see_it(encoder, tmp_path):
    before = encoder.encode_queries(TEXTS)
    documents = encoder.encode_documents(TEXTS)
    encoder.add_adapter("one", LoraSettings())
    np.testing.assert_allclose(encoder.encode_queries(TEXTS, adapter="one"), before, atol=1e-6)
    randomise(encoder)
    assert np.abs(encoder.encode_queries(TEXTS, adapter="one") - before).max() > 1e-3
    np.testing.assert_allclose(encoder.encode_queries(TEXTS), before, atol=1e-6)
    np.testing.assert_allclose(encoder.encode_documents(TEXTS), documents, atol=1e-6)


def test_adapters_survive_saving_loading_replacing_and_merging(encoder, tmp_path):
    encoder.add_adapter("one", LoraSettings())
    randomise(encoder)
    expected = encoder.encode_queries(TEXTS, adapter="one")
    encoder.save_adapter("one", tmp_path)
    other = load_tower(FAKE)
    for name in ("x", "y", "x"):
        other.load_adapter(name, tmp_path)
    assert sorted(other.adapters) == ["x", "y"]
    np.testing.assert_allclose(other.encode_queries(TEXTS, adapter="x"), expected, atol=1e-6)
    merged = load_tower(FAKE)
    merge_adapter(merged, "x", tmp_path)
    np.testing.assert_allclose(merged.encode_queries(TEXTS, adapter=BASE), expected, atol=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three experts of different ranks and layers: their folders, and their own vectors of the texts."""
    encoder, root = load_tower(FAKE), tmp_path_factory.mktemp("experts")
    vectors = {BASE: encoder.encode_queries(TEXTS)}
    loras = {
        "one": LoraSettings(),
        "two": LoraSettings(rank=3, target_modules=("query", "dense")),
        "three": LoraSettings(rank=2),
    }
    for name, lora in loras.items():
        encoder.add_adapter(name, lora)
    randomise(encoder)
    for name in loras:
        vectors[name] = encoder.encode_queries(TEXTS, adapter=name)
        encoder.save_adapter(name, root / name)
    return {name: root / name for name in loras}, vectors


def alone(names, experts):
    """All of each row's weight on one expert."""
    return np.eye(len(experts), dtype=np.float32)[[experts.index(name) for name in names]]


def test_packed_experts_answer_as_each_would_alone(trained):
    """Ranks and adapted layers may differ; a second pack on the same base changes nothing."""
    folders, expected = trained
    experts = [*folders, BASE]
    base = load_tower(FAKE)
    packed = batch_adapters(base, folders)
    older = batch_adapters(base, {"two": folders["two"]})
    rows = base.tokenize_queries(TEXTS)
    for names in (["one", "two", BASE, "three"], ["one"] * 4, [BASE] * 4, [BASE, BASE, BASE, "one"]):
        vectors = packed.embed(rows, alone(names, experts), experts)
        for position, name in enumerate(names):
            np.testing.assert_allclose(vectors[position], expected[name][position], atol=1e-5)
    assert np.abs(expected["one"] - expected["two"]).max() > 0.01
    twos = np.ones((4, 1), dtype=np.float32)
    np.testing.assert_allclose(older.embed(rows, twos, ["two"]), expected["two"], atol=1e-5)
    np.testing.assert_allclose(base.encode_documents(TEXTS), expected[BASE], atol=1e-6)
    with pytest.raises(KeyError):
        older.embed(rows, twos, ["one"])


@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.0, 0.2, 1.0]), min_size=4, max_size=4), min_size=1, max_size=6)
)
@settings(deadline=None, max_examples=25)
def test_a_mixture_is_the_base_with_the_weighted_sum_of_all_updates(trained, wanted):
    """Against weights that were added up beforehand, for each query anew."""
    folders, _ = trained
    experts = ["two", BASE, "one", "three"]
    weights = np.array(wanted, dtype=np.float32) + np.array([0, 1e-3, 0, 0], dtype=np.float32)
    weights /= weights.sum(axis=1, keepdims=True)
    base = load_tower(FAKE)
    rows = base.tokenize_queries([f"query {number}" for number in range(len(weights))])
    found = batch_adapters(base, folders).embed(rows, weights, experts)
    plain = dict(load_tower(FAKE).tower.named_parameters())
    updates = {}
    for name, folder in folders.items():
        merged = load_tower(FAKE)
        merge_adapter(merged, name, folder)
        updates[name] = {key: weight - plain[key] for key, weight in merged.tower.named_parameters()}
    for row, own, vector in zip(rows, weights, found, strict=True):
        naive = load_tower(FAKE)
        for key, weight in naive.tower.named_parameters():
            for name, share in zip(experts, own.tolist(), strict=True):
                if name != BASE:
                    weight += share * updates[name][key]
        np.testing.assert_allclose(vector, naive.embed_tokens([row])[0], atol=1e-5)


def test_an_expert_for_another_architecture_is_refused(encoder, tmp_path):
    import json

    encoder.add_adapter("one", LoraSettings())
    encoder.save_adapter("one", tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for change in ({"use_dora": True}, {"bias": "all"}):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(EncoderError, match=r"expert 'one': .* no plain LoRA"):
            batch_adapters(load_tower(FAKE), {"one": tmp_path})
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    wider = BertModel(BertConfig(hidden_size=48, num_attention_heads=2, num_hidden_layers=2))
    with pytest.raises(EncoderError, match=r"expert 'one': .*does not fit this base encoder"):
        batch_adapters(QueryTower(FAKE, encoder.parts[0], wider), {"one": tmp_path})


def test_only_the_adapter_gets_gradients(encoder):
    encoder.add_adapter("one", LoraSettings())
    encoder.tower(*encoder.pad(encoder.tokenize_queries(TEXTS))).sum().backward()
    with_gradient = [name for name, weight in encoder.tower.named_parameters() if weight.grad is not None]
    assert with_gradient
    assert all("lora" in name for name in with_gradient)


def test_gradients_of_texts_of_any_length_are_those_of_one_padded_batch(encoder):
    encoder.add_adapter("new", LoraSettings(dropout=0.0), ())
    randomise(encoder)
    rows = encoder.tokenize_queries(["tin", "zinc " * 60, "iron ore", "copper " * 40, "lead"])
    target = torch.randn(len(rows), encoder.dimension, generator=torch.Generator().manual_seed(0))
    weights = [weight for weight in encoder.tower.parameters() if weight.requires_grad]
    found = []
    for vectors in (encoder.embed_with_gradients(rows, encoder.tower), encoder.tower(*encoder.pad(rows))):
        gradients = torch.autograd.grad((vectors * target).sum(), weights)
        found.append((vectors.detach(), *gradients))
    for ours, padded in zip(*found, strict=True):
        torch.testing.assert_close(ours, padded, atol=1e-4, rtol=1e-4)


def test_routing_features_run_only_the_layers_they_need(encoder):
    calls = []
    for number, layer in enumerate(encoder.transformer_layers):
        layer.register_forward_hook(lambda *_, number=number: calls.append(number))
    assert encoder.routing_features(TEXTS, 0).shape == (4, 32)
    assert calls == []
    encoder.routing_features(TEXTS, 1)
    assert calls == [0]
    np.testing.assert_allclose(encoder.routing_features(TEXTS, "embedding"), encoder.encode_queries(TEXTS))
    with pytest.raises(EncoderError, match=r"routing\.features"):
        encoder.routing_features(TEXTS, 2)


def test_bad_adapters_are_refused_by_name(encoder, tmp_path):
    with pytest.raises(EncoderError, match="target_modules"):
        encoder.add_adapter("one", LoraSettings(target_modules=("nonsense",)))
    with pytest.raises(EncoderError, match=r"lacks adapter_config\.json"):
        encoder.load_adapter("one", tmp_path)
    with pytest.raises(EncoderError, match="no adapter 'two'"):
        encoder.encode_queries(["x"], adapter="two")


def test_fingerprint_follows_meaning_and_not_precision():
    assert encoder_fingerprint(FAKE) == encoder_fingerprint(FAKE.model_copy(update={"dtype": "bf16"}))
    assert encoder_fingerprint(FAKE) != encoder_fingerprint(FAKE.model_copy(update={"pooling": "cls"}))


def test_unknown_folders_are_refused(tmp_path):
    with pytest.raises(EncoderError, match=r"encoder\.name"):
        load_tower(EncoderSettings(name=str(tmp_path / "none")))


def test_the_default_encoder_knows_what_texts_mean():
    encoder = load_tower(EncoderSettings())
    queries = encoder.encode_queries(["how do I bake bread", "my laptop does not start"])
    documents = encoder.encode_documents(["Knead the dough and let it rise.", "The computer fails to boot."])
    assert (queries @ documents.T).argmax(axis=1).tolist() == [0, 1]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what freed memory becomes is glibc's to say")
def test_the_memory_of_a_pass_is_kept_for_the_next_one():
    """The activations of a few long texts are blocks of more than 32 MB."""

    def pages_fetched():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(1 << 24)  # 64 MB
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    pages_fetched()
    assert min(pages_fetched() for _ in range(5)) < (64 << 20) / resource.getpagesize() / 4
