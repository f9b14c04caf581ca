"""What every adapter kind promises, IA3's own rules, and keys that do not change."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from routerretriever.adapters.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, tower_fingerprint
from routerretriever.adapters.ia3 import Ia3Settings, keys_and_values, last_of_feed_forward
from routerretriever.adapters.kinds import KINDS, batch_adapters, kind_named, merge_adapter
from routerretriever.adapters.lora import LoraSettings
from routerretriever.adapters.prefix import PrefixSettings
from routerretriever.adapters.tower import QueryTower, load_tower
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.errors import BadInput, EncoderError
from routerretriever.hashing import content_hash
from routerretriever.training.settings import TrainingSettings
from routerretriever.types import BASE

FAKE = EncoderSettings(name="fake", query_max_length=64, document_max_length=64)
TEXTS = [
    "a short one",
    "",
    "a much longer text about copper and zinc, with more words than the others",
    "tin",
]
NAMES = ("one", "two", "three")
SHARES = st.sampled_from([0.0, 0.0, 0.2, 1.0])
PEFT_KINDS = [kind for kind in KINDS if "weights" in kind.merges]


def randomise(encoder: QueryTower) -> None:
    """Make fresh adapters unlike the base and each other."""
    generator = torch.Generator().manual_seed(0)
    marks = ("lora_B", "ia3_l", "prefixes.adapters")
    for name, weight in encoder.tower.named_parameters():
        if any(mark in name for mark in marks):
            noise = torch.randn(weight.shape, generator=generator)
            weight.data = weight.data + 0.5 * noise


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def trained(request, tmp_path_factory):
    """A kind, the folders of three experts of it, and what each makes of the texts by itself."""
    kind, encoder, root = request.param, load_tower(FAKE), tmp_path_factory.mktemp("experts")
    vectors = {BASE: encoder.encode_queries(TEXTS)}
    for name in NAMES:
        encoder.add_adapter(name, kind.settings())
    randomise(encoder)
    for name in NAMES:
        vectors[name] = encoder.encode_queries(TEXTS, name)
        encoder.save_adapter(name, root / name)
    return kind, {name: root / name for name in NAMES}, vectors


def one_hot(names, experts):
    return np.eye(len(experts), dtype=np.float32)[[experts.index(name) for name in names]]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_fresh_adapter_is_trained_and_nothing_else_is(kind):
    encoder = load_tower(FAKE)
    base = encoder.encode_queries(TEXTS)
    encoder.add_adapter("new", kind.settings())
    same = np.allclose(encoder.encode_queries(TEXTS, "new"), base, atol=1e-6)
    assert same == kind.starts_as_base
    weights = {n: w for n, w in encoder.tower.named_parameters() if w.requires_grad}
    optimizer = torch.optim.SGD(weights.values(), lr=0.5)
    before = {name: weight.detach().clone() for name, weight in encoder.tower.named_parameters()}
    for _ in range(2):
        optimizer.zero_grad()
        encoder.tower(*encoder.pad(encoder.tokenize_queries(TEXTS)))[:, 0].sum().backward()
        optimizer.step()
    for name, weight in encoder.tower.named_parameters():
        if name not in weights:
            assert weight.grad is None
            assert torch.equal(weight, before[name])
    assert any(not torch.equal(weight, before[name]) for name, weight in weights.items())
    assert np.abs(encoder.encode_queries(TEXTS, "new") - base).max() > 1e-4
    np.testing.assert_allclose(encoder.encode_documents(TEXTS), base, atol=1e-6)


def test_saved_adapters_are_loaded_replaced_batched_and_merged_alike(trained):
    kind, folders, expected = trained
    encoder = load_tower(FAKE)
    for name in ("one", "two", "one", "three"):
        encoder.load_adapter(name, folders[name])
    assert sorted(encoder.adapters) == sorted(NAMES)
    for name in NAMES:
        assert {file.name for file in folders[name].iterdir()} == {ADAPTER_CONFIG, ADAPTER_WEIGHTS}
        np.testing.assert_allclose(encoder.encode_queries(TEXTS, name), expected[name], atol=1e-5)
        merged = load_tower(FAKE)
        merge_adapter(merged, name, folders[name])
        np.testing.assert_allclose(merged.encode_queries(TEXTS), expected[name], atol=1e-5)
    batched = batch_adapters(load_tower(FAKE), folders)
    assert batched.merges == kind.merges
    assert batched.megabytes > 0
    experts = [*NAMES, BASE]
    rows = encoder.tokenize_queries(TEXTS)
    for names in (["one", "two", BASE, "three"], ["two"] * 4, [BASE] * 4):
        found = batched.embed(rows, one_hot(names, experts), experts)
        for row, name in enumerate(names):
            np.testing.assert_allclose(found[row], expected[name][row], atol=1e-5)
            alone = batched.embed(rows[row : row + 1], one_hot([name], experts), experts)
            np.testing.assert_allclose(alone[0], expected[name][row], atol=1e-5)
    assert np.abs(expected["one"] - expected["two"]).max() > 0.01
    with pytest.raises(KeyError):
        batched.embed(rows[:1], np.ones((1, 1), dtype=np.float32), ["four"])


def test_an_adapter_of_any_kind_can_be_part_of_the_base(trained):
    """Documents and queries alike; it has another fingerprint, and takes adapters of its own."""
    kind, folders, expected = trained
    settings = FAKE.model_copy(update={"adapter": str(folders["one"])})
    based = load_tower(settings)
    np.testing.assert_allclose(based.encode_queries(TEXTS), expected["one"], atol=1e-5)
    np.testing.assert_allclose(based.encode_documents(TEXTS), expected["one"], atol=1e-5)
    assert tower_fingerprint(settings) != tower_fingerprint(FAKE)
    assert tower_fingerprint(settings) != tower_fingerprint(
        FAKE.model_copy(update={"adapter": str(folders["two"])})
    )
    based.add_adapter("new", kind.settings())
    np.testing.assert_allclose(based.encode_queries(TEXTS, "new"), expected["one"], atol=1e-5)


@pytest.mark.parametrize("trained", PEFT_KINDS, ids=lambda kind: kind.name, indirect=True)
@given(wanted=st.lists(st.lists(SHARES, min_size=4, max_size=4), min_size=1, max_size=5))
@settings(deadline=None, max_examples=15)
def test_a_mixture_is_the_base_with_the_weighted_sum_of_all_updates(trained, wanted):
    """Against weights that were added up beforehand, for each query anew."""
    _, folders, _ = trained
    experts = ["two", BASE, "one", "three"]
    weights = np.array(wanted, dtype=np.float32) + np.array([0, 1e-3, 0, 0], dtype=np.float32)
    weights /= weights.sum(axis=1, keepdims=True)
    base = load_tower(FAKE)
    rows = base.tokenize_queries([f"query {number}" for number in range(len(weights))])
    found = batch_adapters(base, folders).embed(rows, weights, experts)
    plain = {key: weight.clone() for key, weight in load_tower(FAKE).tower.named_parameters()}
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


@pytest.mark.parametrize("trained", [kind_named("prefix")], ids=["prefix"], indirect=True)
def test_mixed_weights_of_prefixes_are_refused(trained):
    _, folders, _ = trained
    encoder = load_tower(FAKE)
    batched = batch_adapters(encoder, folders)
    weights = np.array([[1, 0], [0.5, 0.5]], dtype=np.float32)
    with pytest.raises(BadInput, match=r"row 1 mixes .*one 0.5, two 0.5.* routing\.merge to 'embeddings'"):
        batched.embed(encoder.tokenize_queries(TEXTS[:2]), weights, ["one", "two"])


def test_ia3_scales_keys_values_and_the_end_of_feed_forward_blocks():
    encoder = load_tower(FAKE)
    assert {name.rpartition(".")[2] for name in keys_and_values(encoder)} == {"key", "value"}
    assert last_of_feed_forward(encoder) == [f"encoder.layer.{n}.output.dense" for n in range(2)]
    encoder.add_adapter("one", Ia3Settings())
    trained = sum(w.numel() for w in encoder.tower.parameters() if w.requires_grad)
    assert trained == 2 * (32 + 32 + 64)


def test_ia3_layers_are_named_or_refused():
    encoder = load_tower(FAKE)
    with pytest.raises(EncoderError, match=r"output_modules: .*no linear layer named 'nonsense'; .*query"):
        encoder.add_adapter("one", Ia3Settings(output_modules=("nonsense",)))
    with pytest.raises(EncoderError, match="name it once"):
        encoder.add_adapter("one", Ia3Settings(output_modules=("output.dense",)))
    with pytest.raises(ValidationError, match="nothing would be trained"):
        Ia3Settings(output_modules=(), input_modules=())
    encoder.add_adapter("one", Ia3Settings(output_modules=("query",), input_modules=()))
    assert sum(w.numel() for w in encoder.tower.parameters() if w.requires_grad) == 2 * 32


def test_kinds_that_cannot_be_put_together_are_refused(tmp_path):
    encoder = load_tower(FAKE)
    encoder.add_adapter("low", LoraSettings())
    with pytest.raises(EncoderError, match="kind 'ia3' cannot be put beside 'low'"):
        encoder.add_adapter("scale", Ia3Settings())
    with pytest.raises(EncoderError, match="cannot have modules"):
        encoder.add_adapter("parts", LoraSettings(), ["p"])
    with pytest.raises(EncoderError, match="no modules to choose from"):
        encoder.restrict("low", ["p"])
    encoder.save_adapter("low", tmp_path)
    config = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps({**config, "peft_type": "VERA"}))
    with pytest.raises(EncoderError, match="kind 'VERA'; there are lora, prefix, ia3"):
        encoder.load_adapter("low", tmp_path)


def test_a_recipe_chooses_a_kind_by_its_name():
    made = TrainingSettings.model_validate({"adapter": {"kind": "ia3", "input_modules": ["x"]}})
    assert made.adapter == Ia3Settings(input_modules=("x",))
    assert TrainingSettings.model_validate({"adapter": {"kind": "lora", "rank": 4}}).adapter == LoraSettings(
        rank=4
    )
    with pytest.raises(ValidationError, match="'lora', 'prefix', 'ia3'"):
        TrainingSettings.model_validate({"adapter": {"kind": "nonsense"}})


def test_what_peft_asks_of_transformers_is_no_warning_to_the_caller():
    code = (
        "from routerretriever.adapters.lora import LoraSettings\n"
        "from routerretriever.adapters.tower import load_tower\n"
        "from routerretriever.encoder.settings import EncoderSettings\n"
        "load_tower(EncoderSettings(name='fake')).add_adapter('law', LoraSettings())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "Warning" not in done.stderr


def test_settings_need_no_torch():
    code = (
        "import sys, routerretriever.training.settings; "
        "assert not {'torch', 'peft', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


FIRST_LIMITS = {"max_steps": 400, "max_epochs": None, "patience": 5}
"""Defaults of the first release that are others now."""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "547169ebec64ca1d"),
        (
            {"adapter": LoraSettings(rank=4, target_modules=("query",)), "max_steps": 20},
            "73b6f9443125802c",
        ),
        ({"adapter": PrefixSettings(length=5)}, "8ed239183a19d3df"),
    ],
)
def test_experts_keep_the_keys_of_the_first_release(changes, expected):
    """Hashes that the first release computed: with another one, what is stored would be trained again."""
    training = TrainingSettings(**{**FIRST_LIMITS, **changes})
    assert content_hash(training.plain().identity()) == expected


def test_an_old_general_prefix_is_an_adapter_of_the_base():
    old = EncoderSettings.model_validate({"name": "fake", "general_prefix": "somewhere"})
    assert old == EncoderSettings(name="fake", adapter="somewhere")
