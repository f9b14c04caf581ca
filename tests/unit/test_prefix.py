"""Prefixes: shapes and masks, routing within layers, gradients, saving, packing, the general prefix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from routerretriever.adapters.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, tower_fingerprint
from routerretriever.adapters.kinds import batch_adapters, merge_adapter
from routerretriever.adapters.lora import LoraSettings
from routerretriever.adapters.prefix import PrefixSettings
from routerretriever.adapters.prefix_attention import Mixture, Prefixes
from routerretriever.adapters.prefix_shape import UNIFORM, PrefixShape, View
from routerretriever.adapters.tower import QueryTower, load_tower
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.errors import EncoderError
from routerretriever.types import BASE
from support.encoders import write_encoder
from torch import nn

FAKE = EncoderSettings(name="fake", query_max_length=64, document_max_length=64)
TEXTS = ["a short one", "", "a much longer text about copper and zinc, with more words than the others"]
SETTINGS = PrefixSettings(length=5)


@pytest.fixture
def encoder() -> QueryTower:
    return load_tower(FAKE)


def with_prefix(
    encoder: QueryTower, name: str, *modules: str, settings: PrefixSettings = SETTINGS
) -> Prefixes:
    """An encoder's new adapter, unlike the base and unlike those of other names."""
    encoder.add_adapter(name, settings, modules)
    assert encoder.tower.prefixes is not None
    prefixes = encoder.tower.prefixes.adapters[name]
    assert isinstance(prefixes, Prefixes)
    generator = torch.Generator().manual_seed(len(name) + sum(name.encode()))
    prefixes.keys_and_values.data.normal_(0, 1, generator=generator)
    if prefixes.router is not None:
        prefixes.router.data.normal_(0, 1, generator=generator)
    return prefixes


def saved(encoder: QueryTower, folder: Path, *names: str) -> dict[str, Path]:
    for name in names:
        encoder.save_adapter(name, folder / name)
    return {name: folder / name for name in names}


def routed(modules: int) -> Prefixes:
    torch.manual_seed(3)
    names = tuple(f"m{number}" for number in range(modules))
    prefixes = Prefixes(PrefixShape(4, (0,), 8, names, routed=True))
    prefixes.keys_and_values.data.normal_()
    assert prefixes.router is not None
    prefixes.router.data.normal_()
    return prefixes


def test_a_prefix_changes_queries_and_nothing_else(encoder):
    base, documents = encoder.encode_queries(TEXTS), encoder.encode_documents(TEXTS)
    with_prefix(encoder, "one")
    assert encoder.adapters == ["one"]
    assert np.abs(encoder.encode_queries(TEXTS, "one") - base).max() > 0.01
    np.testing.assert_array_equal(encoder.encode_queries(TEXTS), base)
    np.testing.assert_array_equal(encoder.encode_documents(TEXTS), documents)


def test_a_fresh_prefix_is_near_the_base_and_its_tokens_differ(encoder):
    torch.manual_seed(0)
    encoder.add_adapter("fresh", SETTINGS)
    long = TEXTS[2:]  # of a short one, even keys that nothing asks for take much attention
    assert (encoder.encode_queries(long, "fresh") @ encoder.encode_queries(long).T).item() > 0.95
    tokens = encoder.tower.prefixes.adapters["fresh"].keys_and_values[0, 0, 0]
    # Alike, they would get the same gradients and stay alike.
    assert len(torch.unique(tokens, dim=0)) == SETTINGS.length


def test_padding_does_not_change_a_prefixed_vector(encoder):
    with_prefix(encoder, "one")
    with_prefix(encoder, "many", "p", "q", "r")
    for name in ("one", "many"):
        together = encoder.encode_queries(TEXTS, name)
        alone = np.concatenate([encoder.encode_queries([text], name) for text in TEXTS])
        np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_causal_encoder_stays_causal_with_a_prefix_whatever_is_in_the_batch(tmp_path):
    encoder = load_tower(EncoderSettings(name=str(write_encoder("llama", tmp_path)), device="cpu"))
    with_prefix(encoder, "one")

    def states(*rows):
        ids, mask = encoder.pad(rows)
        with torch.no_grad():
            return encoder.transformer(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()

    (alone,), (other,) = states([2, 5, 6, 7, 8, 3]), states([2, 5, 6, 9, 10, 3])
    np.testing.assert_allclose(alone[:3], other[:3], atol=1e-5)
    beside = states([2, 5, 6, 7, 8, 3], [2, 5, 6, 7, 8, 3, 4, 4])[0]
    np.testing.assert_allclose(beside[:6], alone, atol=1e-5)
    folders = saved(encoder, tmp_path, "one")
    packed, rows = batch_adapters(encoder, folders), encoder.tokenize_queries(["a", "the quick brown fox"])
    together = packed.embed(rows, np.ones((2, 1), np.float32), ["one"])
    for row, vector in zip(rows, together, strict=True):
        (alone,) = packed.embed([row], np.ones((1, 1), np.float32), ["one"])
        np.testing.assert_allclose(alone, vector, atol=1e-5)


def test_a_prefix_is_attended_to_as_if_it_were_tokens_without_positions(encoder):
    """Against attention written out by hand, in the first layer."""
    prefixes = with_prefix(encoder, "one", settings=PrefixSettings(length=5, layers=(0,)))
    ids, mask = encoder.pad(encoder.tokenize_queries(["copper and zinc"]))
    model = encoder.tower.model
    attention = model.encoder.layer[0].attention.self
    hidden_BLd = model.embeddings(ids)
    found: list[torch.Tensor] = []
    attention.register_forward_hook(lambda _, __, output: found.append(output[0]))
    with torch.no_grad():
        encoder.tower(ids, mask)
        keys_PLd = torch.cat([prefixes.keys_and_values[0, 0, 0][None], attention.key(hidden_BLd)], dim=1)
        values_PLd = torch.cat([prefixes.keys_and_values[0, 0, 1][None], attention.value(hidden_BLd)], dim=1)
        heads = attention.num_attention_heads

        def split(states):
            return states.view(*states.shape[:2], heads, -1).transpose(1, 2)

        scores = split(attention.query(hidden_BLd)) @ split(keys_PLd).mT * attention.scaling
        expected = (scores.softmax(-1) @ split(values_PLd)).transpose(1, 2).flatten(2)
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_training_touches_the_prefix_that_is_trained_and_nothing_else(encoder):
    other = with_prefix(encoder, "other")
    with_prefix(encoder, "own", "p", "q")
    encoder.tower.train()
    encoder.tower(*encoder.pad(encoder.tokenize_queries(TEXTS))).sum().backward()
    assert other.keys_and_values.grad is None
    weights = dict(encoder.tower.named_parameters())
    trained = {name for name, weight in weights.items() if weight.grad is not None and weight.grad.any()}
    assert trained == {"prefixes.adapters.own.keys_and_values", "prefixes.adapters.own.router"}


def test_a_module_that_may_not_be_used_gets_no_gradient(encoder):
    prefixes = with_prefix(encoder, "ddr", "p", "q", "r")
    encoder.restrict("ddr", ["p", "r"])
    encoder.tower(*encoder.pad(encoder.tokenize_queries(TEXTS))).sum().backward()
    assert prefixes.keys_and_values.grad is not None
    by_module = prefixes.keys_and_values.grad.abs().sum(dim=(0, 2, 3, 4))
    assert (by_module > 0).tolist() == [True, False, True]


def test_prefixes_survive_saving_and_loading(encoder, tmp_path):
    with_prefix(encoder, "one")
    with_prefix(encoder, "many", "p", "q")
    folders = saved(encoder, tmp_path, "one", "many")
    fresh = load_tower(FAKE)
    for name, folder in folders.items():
        assert {file.name for file in folder.iterdir()} == {ADAPTER_CONFIG, ADAPTER_WEIGHTS}
        assert len({file.stat().st_mode for file in folder.iterdir()}) == 1  # others may read both
        fresh.load_adapter(name, folder)
        np.testing.assert_array_equal(fresh.encode_queries(TEXTS, name), encoder.encode_queries(TEXTS, name))


def test_packed_prefixes_give_each_row_its_own(encoder, tmp_path):
    for name in ("one", "two", "three"):
        with_prefix(encoder, name)
    packed = batch_adapters(load_tower(FAKE), saved(encoder, tmp_path, "one", "two", "three"))
    experts = ["two", BASE, "three"]
    mixed = packed.embed(encoder.tokenize_queries(TEXTS), np.eye(3, dtype=np.float32), experts)
    alone = [encoder.encode_queries([text], name)[0] for text, name in zip(TEXTS, experts, strict=True)]
    np.testing.assert_allclose(mixed, np.stack(alone), atol=1e-5)
    assert packed.megabytes > 0


def test_views_of_one_prefix_are_run_together(encoder, tmp_path):
    prefixes = with_prefix(encoder, "ddr", "p", "q", "r")
    views = {"all": View(("p", "q", "r"), 3), "best": View(("p", "q", "r"), 1),
             "some": View(("p", "r"), 3), "even": View(("p", "r"), UNIFORM)}  # fmt: skip
    prefixes.shape = PrefixShape(5, (0, 1), 32, ("p", "q", "r"), True, views)
    folder = saved(encoder, tmp_path, "ddr")["ddr"]
    single = load_tower(FAKE)
    for name in views:
        single.load_adapter(name, folder)
    packed = batch_adapters(load_tower(FAKE), dict.fromkeys(views, folder))
    for text in TEXTS:
        names = [*views, BASE]
        together = packed.embed(
            encoder.tokenize_queries([text] * len(names)), np.eye(len(names), dtype=np.float32), names
        )
        alone = np.concatenate([single.encode_queries([text], name) for name in names])
        np.testing.assert_allclose(together, alone, atol=1e-5)
        assert len({vector.tobytes() for vector in together.round(4)}) == len(names)


def test_an_expert_can_be_made_part_of_the_base(encoder, tmp_path):
    with_prefix(encoder, "one")
    folder = saved(encoder, tmp_path, "one")["one"]
    merged = load_tower(FAKE)
    merge_adapter(merged, "one", folder)
    np.testing.assert_allclose(
        merged.embed_tokens(merged.tokenize_queries(TEXTS)), encoder.encode_queries(TEXTS, "one"), atol=1e-6
    )


def test_a_general_prefix_belongs_to_the_base(encoder, tmp_path):
    with_prefix(encoder, "general")
    folder = saved(encoder, tmp_path, "general")["general"]
    settings = FAKE.model_copy(update={"adapter": str(folder)})
    assert tower_fingerprint(settings) != tower_fingerprint(FAKE)
    based = load_tower(settings)
    expected = encoder.encode_queries(TEXTS, "general")
    np.testing.assert_allclose(based.encode_queries(TEXTS), expected, atol=1e-6)
    np.testing.assert_allclose(based.encode_documents(TEXTS), expected, atol=1e-6)
    # What is added to it starts as nothing.
    based.add_adapter("ddr", SETTINGS, ("p", "q"))
    np.testing.assert_allclose(based.encode_queries(TEXTS, "ddr"), expected, atol=1e-6)
    with pytest.raises(EncoderError, match="both need the same"):
        based.add_adapter("long", PrefixSettings(length=6))


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 100))
def test_the_best_of_all_modules_are_all_modules(modules, length, seed):
    prefixes = routed(modules)
    hidden = torch.randn(3, length, 8, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(3, length)
    names = prefixes.shape.modules
    soft, weights = prefixes.at(0, hidden, mask, prefixes.mixture(View(names, 100)))
    same, _ = prefixes.at(0, hidden, mask, prefixes.mixture(View(names, modules)))
    np.testing.assert_array_equal(soft.detach(), same.detach())
    np.testing.assert_allclose(weights.detach().sum(dim=1), 1.0, atol=1e-5)
    _, best = prefixes.at(0, hidden, mask, prefixes.mixture(View(names, 1)))
    assert ((best > 0).sum(dim=1) == 1).all()
    np.testing.assert_allclose(best.max(dim=1).values.detach(), weights.max(dim=1).values.detach())


@given(st.sets(st.integers(0, 4), min_size=1))
def test_labels_shut_the_other_modules_out(allowed):
    prefixes = routed(5)
    names = tuple(f"m{number}" for number in sorted(allowed))
    hidden, mask = torch.randn(2, 3, 8), torch.ones(2, 3)
    shut = [number for number in range(5) if number not in allowed]
    for top_k in (UNIFORM, 5):
        _, weights = prefixes.at(0, hidden, mask, prefixes.mixture(View(names, top_k)))
        weights = weights.detach().expand(2, -1)
        assert not weights[:, shut].any()
        np.testing.assert_allclose(weights.sum(dim=1), 1.0, atol=1e-5)
        if top_k == UNIFORM:
            np.testing.assert_allclose(weights[:, sorted(allowed)], 1 / len(allowed), atol=1e-6)


def test_padding_is_not_read_by_a_router():
    prefixes = routed(4)
    mixture = prefixes.mixture(View(prefixes.shape.modules, 4))
    hidden = torch.randn(1, 3, 8)
    padded, mask = torch.cat([hidden, torch.randn(1, 2, 8)], dim=1), torch.tensor([[1, 1, 1, 0, 0]])
    _, weights = prefixes.at(0, hidden, torch.ones(1, 3), mixture)
    _, same = prefixes.at(0, padded, mask, mixture)
    np.testing.assert_allclose(weights.detach(), same.detach(), atol=1e-6)


def test_a_mixture_can_be_cut_into_batches():
    mixture = Mixture(torch.eye(3), torch.tensor([0, 1, 2]))
    assert mixture.rows([2, 0]).top_k_B.tolist() == [2, 0]
    assert mixture.rows([2, 0]).shares_BN.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_what_does_not_fit_is_refused(encoder, tmp_path):
    with pytest.raises(EncoderError, match="layers up to 7"):
        encoder.add_adapter("far", PrefixSettings(layers=(7,)))
    with_prefix(encoder, "one")
    with_prefix(encoder, "long", settings=PrefixSettings(length=9))
    encoder.add_adapter("low", LoraSettings())
    folders = saved(encoder, tmp_path, "one", "long", "low")
    with pytest.raises(EncoderError, match=r"train all with the same training\.adapter"):
        batch_adapters(load_tower(FAKE), {name: folders[name] for name in ("one", "long")})
    with pytest.raises(EncoderError, match=r"different kinds .*'one' is prefix, 'low' is lora"):
        batch_adapters(load_tower(FAKE), {name: folders[name] for name in ("one", "low")})
    config = folders["one"] / ADAPTER_CONFIG
    config.write_text(config.read_text().replace('"width": 32', '"width": 64'))
    with pytest.raises(EncoderError, match="64 wide"):
        load_tower(FAKE).load_adapter("one", folders["one"])
    config.write_text(
        config.read_text().replace('"width": 64', '"width": 32').replace('"length": 5', '"length": 6')
    )
    with pytest.raises(EncoderError, match="does not hold what its settings say"):
        load_tower(FAKE).load_adapter("one", folders["one"])
    (folders["one"] / ADAPTER_WEIGHTS).unlink()
    with pytest.raises(EncoderError, match="lacks adapter_model"):
        load_tower(FAKE).load_adapter("one", folders["one"])


def test_an_encoder_with_an_attention_of_its_own_is_refused():
    class Odd(nn.Module):
        """Has layers, and no attention."""

        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Identity()])
            self.weight = nn.Parameter(torch.zeros(1))

        def set_attn_implementation(self, name):
            pass

        def forward(self, input_ids, attention_mask):
            return self.layers[0](input_ids.float())

    from routerretriever.adapters.prefix_attention import PrefixAttention

    odd = Odd()
    with pytest.raises(EncoderError, match="takes no prefix"):
        PrefixAttention(odd, list(odd.layers))
