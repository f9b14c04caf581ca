"""What an encoder's small files say besides its modules: followed, or refused in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from routerretriever.adapters.files import tower_fingerprint
from routerretriever.adapters.tower import load_tower
from routerretriever.encoder.card import read_card
from routerretriever.encoder.fingerprint import files_hash
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.encoder.whole import require_whole
from routerretriever.errors import EncoderError
from safetensors.torch import load_file, save_file
from support.encoders import TinyEncoder, write_encoder, write_transformer

ABOUT, TRANSFORMER = "config_sentence_transformers.json", "sentence_bert_config.json"


def settings_of(folder, **others) -> EncoderSettings:
    return EncoderSettings(name=str(folder), device="cpu", **others)


def change(path, **values) -> None:
    """Set values in a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def lengths(folder) -> tuple[int | None, int | None]:
    found = read_card(settings_of(folder)).settings
    return found.query_max_length, found.document_max_length


@pytest.fixture
def bert(tmp_path):
    return write_encoder("bert-mean", tmp_path)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (ABOUT, {"model_type": "CrossEncoder"}, "is a CrossEncoder, which does not make one dense vector"),
        (ABOUT, {"model_type": "ColBERT"}, "is a ColBERT, which does not make one dense vector"),
        (TRANSFORMER, {"config_kwargs": {"num_hidden_layers": 1}}, "with config_kwargs: num_hidden_layers"),
        (TRANSFORMER, {"tokenizer_args": {"model_max_length": 9}}, "with tokenizer_args: model_max_length"),
        (TRANSFORMER, {"processing_kwargs": {"text": {"max_length": 9}}}, "with processing_kwargs: text"),
        (TRANSFORMER, {"modality_config": {"text": {"method": "forward", "method_output_name": "logits"}}},
         "would read texts by"),
        ("2_Normalize/config.json", {"module_input_name": "token_embeddings"},
         "module_input_name 'token_embeddings'; only sentence_embedding"),
    ],
)  # fmt: skip
def test_what_would_be_run_otherwise_by_sentence_transformers_is_refused(bert, file, values, message):
    change(bert / file, **values)
    with pytest.raises(EncoderError, match=message) as caught:
        require_whole(settings_of(bert))
    assert len(str(caught.value).splitlines()) == 1


def test_arguments_that_change_no_vector_are_let_be(bert):
    change(bert / TRANSFORMER, model_args={"attn_implementation": "eager", "torch_dtype": "bfloat16"})
    require_whole(settings_of(bert))


def test_a_module_that_is_not_sentence_transformers_own_is_refused(bert):
    modules = json.loads((bert / "modules.json").read_text())
    modules[0]["type"] = "custom_st.Transformer"
    (bert / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(EncoderError, match=r"names custom_st\.Transformer, which is not sentence-transf"):
        require_whole(settings_of(bert))


def test_modules_without_pooling_need_one_of_the_recipe(bert):
    modules = json.loads((bert / "modules.json").read_text())
    (bert / "modules.json").write_text(json.dumps([modules[0], modules[2]]))
    with pytest.raises(EncoderError, match="has no Pooling, as of a model with a vector for every token"):
        require_whole(settings_of(bert))
    require_whole(settings_of(bert, pooling="mean"))


@pytest.mark.parametrize("beside", [False, True], ids=["adapter alone", "beside the base's weights"])
def test_an_adapter_is_no_base_and_its_folder_says_what_to_write(bert, tmp_path, beside):
    from peft import LoraConfig
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(str(bert), device="cpu")
    peer.add_adapter(LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False))
    adapter = tmp_path / "adapter"
    peer.save(str(adapter))
    if beside:
        (adapter / "config.json").write_bytes((bert / "config.json").read_bytes())
    with pytest.raises(EncoderError) as caught:
        require_whole(settings_of(adapter))
    told = f"is an adapter; set encoder.name to {bert} and encoder.adapter to this folder"
    assert told in str(caught.value)
    ours = load_tower(settings_of(bert, adapter=str(adapter)))
    expected = peer.encode_query(["the quick brown fox"])
    np.testing.assert_allclose(ours.encode_queries(["the quick brown fox"]), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("limit", "positions", "expected"), [(1500, 2000, 1500), (1500, 700, 700), (1e30, 2000, 512)]
)
def test_a_length_that_sentence_transformers_keeps_in_the_tokenizer_is_read(bert, limit, positions, expected):
    change(bert / "config.json", max_position_embeddings=positions)
    change(bert / "tokenizer_config.json", model_max_length=limit)
    assert lengths(bert) == (expected, expected)
    (bert / TRANSFORMER).write_text("{}")  # then it is only what the tokenizer can read
    assert lengths(bert) == (512, 512)


def test_queries_and_documents_have_lengths_of_their_own_where_the_files_say_so(bert):
    change(bert / TRANSFORMER, query_length=8, document_length=100)
    assert lengths(bert) == (8, 32)


def test_notes_that_macos_keeps_beside_files_are_no_part_of_an_encoder(bert):
    before = tower_fingerprint(settings_of(bert))
    for path in list(bert.iterdir()):
        (bert / f"._{path.name}").write_bytes(b"\0\5\x16\7")
    files_hash.cache_clear()
    require_whole(settings_of(bert))
    assert tower_fingerprint(settings_of(bert)) == before


def test_a_vocabulary_without_a_tokenizer_file_is_part_of_the_fingerprint(bert):
    (bert / "tokenizer.json").rename(bert / "vocab.json")
    before = tower_fingerprint(settings_of(bert))
    change(bert / "vocab.json", other=1)
    files_hash.cache_clear()  # of a folder that changed, which none does while a process runs
    assert tower_fingerprint(settings_of(bert)) != before


def test_a_dense_layer_that_cannot_be_read_is_told_in_one_line(tmp_path):
    folder = write_encoder("t5-dense", tmp_path)
    change(folder / "2_Dense" / "config.json", activation_function="torch.nn.modules.activation.None_such")
    with pytest.raises(EncoderError, match="a Dense layer cannot be read") as caught:
        load_tower(settings_of(folder))
    change(folder / "2_Dense" / "config.json", activation_function="torch.nn.Tanh", out_features=9)
    with pytest.raises(EncoderError, match="a Dense layer cannot be read") as mismatched:
        load_tower(settings_of(folder))
    assert [len(str(error.value).splitlines()) for error in (caught, mismatched)] == [1, 1]


def test_missing_weights_are_told_of_models_whose_layers_are_called_a_decoder(tmp_path):
    opt = TinyEncoder("opt", config={"ffn_dim": 32, "word_embed_proj_dim": 16})
    folder = write_transformer(opt, tmp_path)
    weights = folder / "model.safetensors"
    kept = {key: value for key, value in load_file(weights).items() if "layers.1." not in key}
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(EncoderError, match="they would be random"):
        load_tower(settings_of(folder))


def test_static_embeddings_are_cut_where_their_tokenizer_cuts(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "fox": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    peer = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=4)], device="cpu")
    peer.save(str(tmp_path / "static"))
    ours = load_tower(settings_of(tmp_path / "static", similarity="dot"))
    np.testing.assert_allclose(
        ours.encode_documents(["a a fox fox"]), peer.encode_document(["a a fox fox"]), atol=1e-6
    )
