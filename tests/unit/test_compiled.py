"""The compiled tower: the same vectors as PyTorch's, or PyTorch's own."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from routerretriever.adapters.ia3 import Ia3Settings
from routerretriever.adapters.kinds import batch_adapters, merge_adapter
from routerretriever.adapters.lora import LoraSettings
from routerretriever.adapters.prefix import PrefixSettings
from routerretriever.adapters.tower import load_tower
from routerretriever.encoder import compiled
from routerretriever.encoder.compiled import BoundTower, in_8_bits, rounded_length
from routerretriever.encoder.settings import DocumentEncoderSettings, EncoderSettings, EngineSettings
from routerretriever.errors import EncoderError
from routerretriever.runtime import machine
from routerretriever.types import BASE
from support.encoders import write_encoder

FAKE = EncoderSettings(name="fake", query_max_length=64, document_max_length=64)
OPENVINO, AUTO = EngineSettings(kind="openvino"), EngineSettings()
NAMES = ("one", "two", "three")
TEXTS = ["word " * count + str(count) for count in (0, 1, 2, 3, 5, 8, 13, 21, 34)]


def write_experts(encoder, folder, adapter=None, names=NAMES):
    """Folders of random experts for an encoder."""
    tower, generator = load_tower(encoder), torch.Generator().manual_seed(0)
    for name in names:
        tower.add_adapter(name, adapter or LoraSettings(rank=2))
        for weight in tower.tower.parameters():
            if weight.requires_grad:
                weight.data.add_(torch.randn(weight.shape, generator=generator) * 0.1)
        tower.save_adapter(name, folder / name)
    return {name: folder / name for name in names}


def mixtures(rows, experts, seed=0):
    """Weights [rows, experts] of none, one, or several of them."""
    random = np.random.default_rng(seed)
    weights = random.random((rows, experts)) * (random.random((rows, experts)) < 0.5)
    return (weights / np.maximum(weights.sum(axis=1, keepdims=True), 1)).astype(np.float32)


def towers(encoder, engine=OPENVINO):
    """One that PyTorch runs, and one that an engine does."""
    plain, fast = load_tower(encoder), load_tower(encoder)
    fast.use(engine)
    return plain, fast


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    """Three experts, run by PyTorch and compiled."""
    folders = write_experts(FAKE, tmp_path_factory.mktemp("experts"))
    plain, fast = towers(FAKE)
    return plain, batch_adapters(plain, folders), fast, batch_adapters(fast, folders)


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=40),
    weights=st.lists(st.tuples(*[st.sampled_from([0.0, 0.0, 0.3, 0.5])] * 3), min_size=40, max_size=40),
)
@settings(max_examples=25)
def test_a_batch_of_any_lengths_and_mixtures_has_the_vectors_that_pytorch_makes(loras, lengths, weights):
    plain, slowly, fast, quickly = loras
    rows = plain.tokenize_queries([f"{'word ' * length}{length}" for length in lengths])
    weights_BE = np.array(weights[: len(rows)], dtype=np.float32)
    wanted = slowly.embed(rows, weights_BE, NAMES)
    np.testing.assert_allclose(quickly.embed(rows, weights_BE, NAMES), wanted, atol=1e-5)
    np.testing.assert_allclose(fast.embed_tokens(rows), plain.embed_tokens(rows), atol=1e-5)
    np.testing.assert_allclose(fast.token_features(rows, 0), plain.token_features(rows, 0), atol=1e-5)


@pytest.mark.parametrize(
    "name", ["mpnet", "distilbert", "roberta", "albert", "modernbert", "t5-dense", "qwen3", "gemma3-dense"]
)
def test_other_architectures_compile_too(name, tmp_path):
    encoder = EncoderSettings(name=str(write_encoder(name, tmp_path)), device="cpu")
    folders = write_experts(encoder, tmp_path, names=NAMES[:2])
    plain, fast = towers(encoder)
    rows, weights = plain.tokenize_queries(TEXTS), mixtures(len(TEXTS), 2)
    found = batch_adapters(fast, folders).embed(rows, weights, NAMES[:2])
    np.testing.assert_allclose(
        found, batch_adapters(plain, folders).embed(rows, weights, NAMES[:2]), atol=2e-5
    )
    np.testing.assert_allclose(fast.encode_documents(TEXTS), plain.encode_documents(TEXTS), atol=2e-5)
    alone = np.concatenate([fast.encode_queries([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, plain.encode_queries(TEXTS), atol=2e-5)


def test_lone_documents_are_right_however_short_queries_are_cut(tmp_path):
    """OpenVINO makes wrong graphs of fixed shape of Qwen3, and no query is as long as these documents."""
    encoder = EncoderSettings(name=str(write_encoder("qwen3", tmp_path)), device="cpu", query_max_length=8)
    plain, fast = towers(encoder)
    for text in TEXTS:
        np.testing.assert_allclose(fast.encode_documents([text]), plain.encode_documents([text]), atol=2e-5)


def test_large_encoders_have_no_graphs_for_lone_queries(monkeypatch):
    assert towers(FAKE)[1].compiled().lone_lengths == [16, 32]
    monkeypatch.setattr(compiled, "_MOST_BYTES", 1000.0)
    assert towers(FAKE)[1].compiled().lone_lengths == []


@pytest.mark.parametrize("adapter", [Ia3Settings(), PrefixSettings()], ids=lambda adapter: adapter.kind)
def test_kinds_that_are_not_compiled_share_a_compiled_base(adapter, tmp_path):
    folders = write_experts(FAKE, tmp_path, adapter)
    plain, fast = towers(FAKE)
    assert fast.compiled() is not None
    rows = plain.tokenize_queries(TEXTS)
    alone = np.eye(4, dtype=np.float32)[np.arange(len(rows)) % 4]
    experts = (*NAMES, BASE)
    wanted = batch_adapters(plain, folders).embed(rows, alone, experts)
    np.testing.assert_allclose(batch_adapters(fast, folders).embed(rows, alone, experts), wanted, atol=1e-5)


def test_more_experts_than_fit_into_one_pass(tmp_path):
    names = [f"e{number}" for number in range(12)]
    folders = write_experts(FAKE, tmp_path, LoraSettings(rank=8, target_modules=("query", "value")), names)
    plain, fast = towers(FAKE)
    quickly, slowly = batch_adapters(fast, folders), batch_adapters(plain, folders)
    rows = plain.tokenize_queries(TEXTS)
    for used in (1, 3, 12):
        weights = np.zeros((len(rows), 12), dtype=np.float32)
        weights[:, :used] = mixtures(len(rows), used)
        wanted = slowly.embed(rows, weights, names)
        np.testing.assert_allclose(quickly.embed(rows, weights, names), wanted, atol=1e-5)


def test_a_release_with_other_layers_is_compiled_anew_and_the_old_one_goes_on(tmp_path):
    old = write_experts(FAKE, tmp_path / "old", LoraSettings(rank=2, target_modules=("query",)))
    new = write_experts(FAKE, tmp_path / "new")
    plain, fast = towers(FAKE)
    rows, weights = plain.tokenize_queries(TEXTS), mixtures(len(TEXTS), 3)
    before = batch_adapters(fast, old)
    after = batch_adapters(fast, new)
    for folders, found in ((old, before), (new, after), (old, before)):
        wanted = batch_adapters(plain, folders).embed(rows, weights, NAMES)
        np.testing.assert_allclose(found.embed(rows, weights, NAMES), wanted, atol=1e-5)


def test_compiling_for_a_release_leaves_the_passes_of_another_thread_alone(tmp_path):
    served = write_experts(FAKE, tmp_path / "served", Ia3Settings())  # PyTorch runs these, with hooks
    released = write_experts(FAKE, tmp_path / "released")
    plain, fast = towers(FAKE)
    rows, experts = plain.tokenize_queries(TEXTS), (*NAMES, BASE)
    alone = np.eye(4, dtype=np.float32)[np.arange(len(rows)) % 4]
    wanted = batch_adapters(plain, served).embed(rows, alone, experts)
    features = plain.token_features(rows, 1)
    running = batch_adapters(fast, served)
    made = []
    compiling = threading.Thread(target=lambda: made.append(batch_adapters(fast, released)))
    compiling.start()
    while compiling.is_alive():
        np.testing.assert_allclose(running.embed(rows, alone, experts), wanted, atol=1e-5)
        np.testing.assert_allclose(fast.token_features(rows, 1), features, atol=1e-5)
    (found,) = made
    wanted = batch_adapters(plain, released).embed(rows, alone, experts)
    np.testing.assert_allclose(found.embed(rows, alone, experts), wanted, atol=1e-5)


def test_conversions_leave_the_process_s_logging_as_it_was(monkeypatch):
    root = logging.getLogger()
    before = root.level, list(root.filters), list(root.handlers)
    plain, fast = towers(FAKE)
    fast.encode_queries(TEXTS)
    others = [threading.Thread(target=towers, args=(FAKE,)) for _ in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert (root.level, root.filters, root.handlers) == before

    def fail(*_, **__):
        root.setLevel(logging.ERROR)
        raise RuntimeError("cannot be converted")

    monkeypatch.setattr("openvino.convert_model", fail)
    plain.use(OPENVINO)
    assert (root.level, root.filters, root.handlers) == before


def test_an_expert_that_is_part_of_the_weights_is_compiled_with_them(tmp_path):
    folders = write_experts(FAKE, tmp_path)
    plain, fast = load_tower(FAKE), load_tower(FAKE)
    for tower in (plain, fast):
        merge_adapter(tower, "one", folders["one"])
    fast.use(OPENVINO)
    assert fast.compiled() is not None
    np.testing.assert_allclose(fast.encode_queries(TEXTS), plain.encode_queries(TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    ("precision", "name"), [("bf16", "fake"), ("int8", "fake"), ("int8", "t5-dense"), ("int8", "qwen3")]
)
def test_queries_of_lower_precision_are_near_and_documents_exact(precision, name, tmp_path):
    encoder = (
        FAKE if name == "fake" else EncoderSettings(name=str(write_encoder(name, tmp_path)), device="cpu")
    )
    folders = write_experts(encoder, tmp_path)
    plain, fast = towers(encoder, EngineSettings(kind="openvino", precision=precision))
    rows, weights = plain.tokenize_queries(TEXTS), mixtures(len(TEXTS), 3)
    wanted = batch_adapters(plain, folders).embed(rows, weights, NAMES)
    made = batch_adapters(fast, folders).embed(rows, weights, NAMES)
    assert (wanted * made).sum(axis=1).min() > 0.99
    assert (plain.encode_queries(TEXTS) * fast.encode_queries(TEXTS)).sum(axis=1).min() > 0.99
    if precision == "int8":
        assert np.abs(wanted - made).max() > 1e-4, "this is fp32"
    exact = plain.encode_documents(TEXTS)
    np.testing.assert_allclose(fast.encode_documents(TEXTS), exact, atol=2e-5)
    both = [*fast.tokenize_queries(TEXTS), *fast.tokenize_documents(TEXTS)]
    np.testing.assert_allclose(fast.embed_tokens(both)[len(TEXTS) :], exact, atol=2e-5)


def test_int8_says_once_that_it_may_be_slow_where_the_cpu_lacks_its_units(monkeypatch, caplog):
    monkeypatch.setattr(machine, "vector_units", lambda: ["AVX2"])
    _, fast = towers(FAKE, EngineSettings(kind="openvino", precision="int8"))
    for _ in range(2):
        fast.encode_queries(TEXTS[:2])
    told = "serving.engine.precision: int8 may be slower than fp32, since this CPU has no VNNI"
    assert [record.message for record in caplog.records if "precision" in record.message] == [told]


def test_a_precision_that_pytorch_would_not_heed_is_refused():
    with pytest.raises(ValueError, match=r"int8 is for compiled encoders.*encoder\.dtype"):
        EngineSettings(kind="torch", precision="int8")


def test_lower_precision_leaves_another_encoder_s_documents_exact(tmp_path):
    reader = DocumentEncoderSettings(name=str(write_encoder("mpnet", tmp_path)))
    encoder = EncoderSettings(name=reader.name, documents=reader, device="cpu")
    plain, fast = towers(encoder, EngineSettings(kind="openvino", precision="int8"))
    np.testing.assert_allclose(fast.encode_documents(TEXTS), plain.encode_documents(TEXTS), atol=2e-5)


@given(
    weight=arrays(np.float32, (3, 5), elements=st.floats(-4, 4, width=32)),
    axis=st.sampled_from([0, 1]),
)
def test_weights_in_8_bits_are_off_by_at_most_a_step(weight, axis):
    rounded, zero, scale = in_8_bits(weight, axis)
    restored = (rounded.astype(np.float32) - zero) * scale
    assert (np.abs(restored - weight) <= scale * 1.01 + 1e-6).all()


def without_openvino(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)


def with_wrong_vectors(monkeypatch):
    right = BoundTower.__call__
    monkeypatch.setattr(BoundTower, "__call__", lambda *inputs: right(*inputs).flip(1))


@pytest.mark.parametrize(
    ("breaks", "told"),
    [(without_openvino, "pip install openvino"), (with_wrong_vectors, "differ from PyTorch's")],
)
def test_what_cannot_be_compiled_runs_in_pytorch_or_is_refused_by_name(monkeypatch, caplog, breaks, told):
    breaks(monkeypatch)
    plain, fast = towers(FAKE, AUTO)
    with caplog.at_level(logging.INFO):
        np.testing.assert_array_equal(fast.encode_queries(TEXTS), plain.encode_queries(TEXTS))
    assert "runs in PyTorch" in caplog.text
    assert told in caplog.text
    named = load_tower(FAKE)
    named.use(OPENVINO)
    with pytest.raises(EncoderError, match=rf"^serving\.engine: .*{told}"):
        named.encode_queries(TEXTS)


def test_layers_that_mix_rows_are_left_to_pytorch(tmp_path):
    encoder = EncoderSettings(name=str(write_encoder("deberta-v2", tmp_path)), device="cpu")
    plain, fast = towers(encoder, AUTO)
    np.testing.assert_array_equal(fast.encode_queries(TEXTS), plain.encode_queries(TEXTS))
    with pytest.raises(EncoderError, match="more than the rows of a batch"):
        plain.use(OPENVINO)


def test_an_adapter_of_ones_own_is_refused_on_a_compiled_tower(tmp_path):
    folders = write_experts(FAKE, tmp_path)
    tower = load_tower(FAKE)
    tower.use(OPENVINO)
    with pytest.raises(EncoderError, match="compiled"):
        tower.add_adapter("new", LoraSettings())
    with pytest.raises(EncoderError, match="compiled"):
        tower.load_adapter("one", folders["one"])


@given(tokens=st.integers(1, 600), rows=st.integers(1, 16), limit=st.none() | st.integers(1, 600))
def test_lengths_are_rounded_up_and_never_above_what_the_encoder_takes(tokens, rows, limit):
    rounded = rounded_length(tokens, rows, limit)
    assert tokens <= rounded <= tokens + 31
    assert limit is None or rounded <= max(limit, tokens)


@pytest.mark.parametrize(("rows", "most"), [(1, 20), (3, 28), (16, 32)])
def test_there_are_few_lengths(rows, most):
    assert len({rounded_length(tokens, rows, 512) for tokens in range(1, 513)}) <= most


def test_openvino_tells_nobody_that_it_is_used():
    """It would report to its makers when it is imported."""
    script = (
        "import sys, socket\n"
        "from routerretriever.encoder.compiled import import_openvino\n"
        "import_openvino()\n"
        "print([name for name, module in sys.modules.items() if 'telemetry' in name and module])"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert all("openvino_telemetry" not in name for name in eval(shown))
    assert compiled.import_openvino() is sys.modules["openvino"]
