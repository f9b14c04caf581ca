"""Encoders by name only: every architecture gives what sentence-transformers makes of the same files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from routerretriever.adapters.check import check_encoder
from routerretriever.adapters.files import tower_fingerprint
from routerretriever.adapters.ia3 import Ia3Settings
from routerretriever.adapters.kinds import batch_adapters, merge_adapter
from routerretriever.adapters.lora import LoraSettings
from routerretriever.adapters.tower import load_tower
from routerretriever.encoder.card import read_card
from routerretriever.encoder.export import save_sentence_transformer
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.encoder.tokens import TextReader
from routerretriever.encoder.whole import require_whole
from routerretriever.errors import EncoderError
from safetensors.torch import save_file
from support.encoders import ENCODERS, TinyEncoder, write_encoder, write_transformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

TEXTS = ["the quick brown fox", "a", "copper and zinc over the lazy dog and a long long text for the query",
         "a b " * 30]  # fmt: skip


def settings_of(folder, **others) -> EncoderSettings:
    return EncoderSettings(name=str(folder), device="cpu", **others)


@pytest.fixture(scope="module", params=list(ENCODERS))
def encoder(request, tmp_path_factory):
    return request.param, write_encoder(request.param, tmp_path_factory.mktemp(request.param))


def normalised(vectors: np.ndarray, name: str) -> np.ndarray:
    if ENCODERS[name].similarity == "dot":
        return vectors
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_name_is_enough(encoder):
    from sentence_transformers import SentenceTransformer

    name, folder = encoder
    peer = SentenceTransformer(str(folder), device="cpu")
    ours = load_tower(settings_of(folder))
    documents = normalised(peer.encode_document(TEXTS), name)
    np.testing.assert_allclose(ours.encode_documents(TEXTS), documents, atol=1e-5)
    # A prompt takes nothing from a query here, so compare what the peer does not cut.
    queries = normalised(peer.encode_query(TEXTS[:2]), name)
    np.testing.assert_allclose(ours.encode_queries(TEXTS[:2]), queries, atol=1e-5)
    alone = np.concatenate([ours.encode_queries([text]) for text in TEXTS])
    np.testing.assert_allclose(ours.encode_queries(TEXTS), alone, atol=1e-5)
    assert ours.dimension == documents.shape[1]
    assert ours.routing_features(TEXTS, 0).shape == (4, 16)


def test_a_lora_on_all_linear_layers_runs_in_all_ways_alike(encoder, tmp_path):
    _, folder = encoder
    settings = settings_of(folder)
    tower = load_tower(settings)
    base = tower.encode_queries(TEXTS)
    torch.manual_seed(0)  # of some draws, steps as large as these make weights that round badly
    tower.add_adapter("one", LoraSettings(target_modules=("all-linear",), rank=2))
    weights = [weight for weight in tower.tower.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        tower.tower(*tower.pad(tower.tokenize_queries(TEXTS)))[:, 0].sum().backward()
        optimizer.step()
    expected = tower.encode_queries(TEXTS, "one")
    assert np.abs(expected - base).max() > 1e-4
    tower.save_adapter("one", tmp_path)
    shared = batch_adapters(load_tower(settings), {"one": tmp_path, "two": tmp_path})
    rows = tower.tokenize_queries(TEXTS)
    weights_BT = np.array([[1, 0], [0, 1], [0.5, 0.5], [1, 0]], dtype=np.float32)
    np.testing.assert_allclose(shared.embed(rows, weights_BT, ["one", "two"]), expected, atol=1e-5)
    merged = load_tower(settings)
    merge_adapter(merged, "one", tmp_path)
    np.testing.assert_allclose(merged.encode_queries(TEXTS), expected, atol=1e-5)


def test_a_tokenizer_without_a_pad_token_pads_what_is_masked(tmp_path):
    folder = write_encoder("llama", tmp_path)
    padded = load_tower(settings_of(folder)).encode_queries(TEXTS)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    ours = load_tower(settings_of(folder))
    assert ours.parts[0].pad_token_id is None
    np.testing.assert_allclose(ours.encode_queries(TEXTS), padded, atol=1e-6)
    check_encoder(settings_of(folder), (LoraSettings(),))


@pytest.mark.parametrize(("dtype", "theirs"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_is_that_of_transformers(encoder, dtype, theirs):
    """Which keeps in fp32 what must not be rounded, as the frequencies of rotary positions."""
    from transformers import AutoModel, T5EncoderModel

    name, folder = encoder
    kind = T5EncoderModel if name.startswith("t5") else AutoModel
    ours = load_tower(settings_of(folder, dtype=dtype))
    peer = kind.from_pretrained(folder, dtype=theirs).eval()
    ids, mask = ours.pad(ours.tokenize_documents(TEXTS))
    with torch.inference_mode():
        found, expected = (
            model(input_ids=ids, attention_mask=mask).last_hidden_state for model in (ours.transformer, peer)
        )
    assert torch.equal(found[mask.bool()], expected[mask.bool()])
    assert np.isfinite(ours.encode_queries(TEXTS)).all()


@pytest.fixture
def bert(tmp_path):
    return write_encoder("bert-cls-prompt", tmp_path)


def test_the_driver_knows_what_will_run(bert):
    card = check_encoder(settings_of(bert, pooling="mean"), (LoraSettings(), Ia3Settings()))
    assert card.settings.query_max_length == 24
    assert card.sources["query_prompt"] == "files"
    assert card.sources["pooling"] == "recipe"
    assert card.warnings == ("encoder.pooling: 'mean' by the recipe; the files say 'cls'",)
    assert "pooling: 'mean' (recipe)" in card.lines()
    with pytest.raises(EncoderError, match="named 'q_proj'; there are dense, key, query, value"):
        check_encoder(settings_of(bert), (LoraSettings(target_modules=("q_proj",)),))


def test_a_length_that_cuts_nothing_or_leaves_nothing_to_read_is_told(bert):
    with pytest.raises(EncoderError, match=r"encoder\.document_max_length: .* the tokenizer cuts nothing"):
        check_encoder(settings_of(bert, document_max_length=1))
    for kind in ("query", "document"):
        told = rf"encoder\.{kind}_max_length: of a {kind} only its prompt is read"
        with pytest.raises(EncoderError, match=told):
            check_encoder(settings_of(bert, **{f"{kind}_max_length": 2}))


def test_a_prompt_that_leaves_nothing_of_a_text_to_read_is_told(bert):
    told = "encoder.query_max_length: of a query only its prompt is read, 32 tokens; .*encoder.query_prompt"
    with pytest.raises(EncoderError, match=told):
        check_encoder(settings_of(bert, query_prompt="the quick brown fox " * 20))
    told = "encoder.document_max_length: of a document only its prompt is read, 24 tokens"
    with pytest.raises(EncoderError, match=told):
        check_encoder(settings_of(bert, document_prompt="the quick brown fox " * 20))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncated", "cannot be loaded as a text encoder"),
        ("pointer", "Git LFS pointer"),
        ("tokenizer pointer", "tokenizer.json is a Git LFS pointer"),
        ("sizes", "not of the sizes that its config.json gives"),
        ("modules", "which is no folder"),
        ("tokenizer", "tokenizer"),
        ("missing", "they would be random"),
        ("code", "trust_remote_code"),
        ("pickle", "cannot be loaded as a text encoder"),
        ("length", "above the model's 32 positions"),
    ],
)
def test_bad_folders_are_told_in_one_line(bert, damage, message):
    weights, others = bert / "model.safetensors", {}
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:2000])
    elif damage == "pointer":
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    elif damage == "tokenizer pointer":
        (bert / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\nsize 1\n")
    elif damage == "sizes":
        config = json.loads((bert / "config.json").read_text())
        (bert / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 1}))
    elif damage == "modules":
        listed = [{"type": "sentence_transformers.models.Transformer", "path": "missing"}]
        (bert / "modules.json").write_text(json.dumps(listed))
    elif damage == "tokenizer":
        for path in bert.glob("tokenizer*"):
            path.unlink()
    elif damage == "missing":
        from safetensors.torch import load_file

        kept = {key: value for key, value in load_file(weights).items() if "layer.1." not in key}
        save_file(kept, weights, metadata={"format": "pt"})
    elif damage == "code":
        config = json.loads((bert / "config.json").read_text())
        config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
        (bert / "config.json").write_text(json.dumps(config))
        (bert / "own.py").write_text("raise SystemExit('must not run')")
    elif damage == "pickle":
        weights.unlink()
        (bert / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    else:
        others = {"document_max_length": 33}
    with pytest.raises(EncoderError, match=message) as caught:
        check_encoder(settings_of(bert, **others))
    assert len(str(caught.value).splitlines()) == 1


def test_files_that_are_not_whole_are_told_before_anything_heavy_is_imported(bert, tmp_path):
    weights = bert / "model.safetensors"
    whole = weights.read_bytes()
    require_whole(settings_of(bert))
    weights.write_bytes(whole[:2000])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: t\ndomains:\n  none: {{path: {tmp_path / 'none'}}}\nencoder: {{name: {bert}}}\n"
    )
    program = (
        "import sys; from routerretriever.cli.app import open_pipeline\n"
        "from routerretriever.errors import EncoderError\n"
        "try: open_pipeline(sys.argv[1], None, True)\n"
        "except EncoderError as error: print(error, {'torch', 'ray', 'mlflow'} & set(sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", program, recipe], text=True, capture_output=True, check=True)
    assert re.search(
        r"model.safetensors is damaged or cut short .*; fetch it again set\(\)$", told.stdout.strip()
    )
    weights.unlink()
    with pytest.raises(EncoderError, match="holds no weights"):
        require_whole(settings_of(bert))
    (bert / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    with pytest.raises(EncoderError, match=r"lacks model-1\.safetensors, which model.safetensors.index.json"):
        require_whole(settings_of(bert))
    with pytest.raises(EncoderError, match=r"/nowhere holds no config\.json"):
        require_whole(settings_of(bert, documents={"name": "/nowhere"}).for_documents())
    require_whole(settings_of("no-such/encoder"))  # nothing is fetched for it


def test_what_changes_a_vector_changes_the_fingerprint(bert, tmp_path):
    first = tower_fingerprint(settings_of(bert))
    copy = shutil.copytree(bert, tmp_path / "elsewhere")
    assert tower_fingerprint(settings_of(copy)) == first
    seen = {first}
    for file, old, new in (("config.json", '"gelu"', '"relu"'), ("1_Pooling/config.json", '"cls"', '"mean"'),
                           ("config_sentence_transformers.json", "search for", "find")):  # fmt: skip
        changed = shutil.copytree(bert, tmp_path / file.replace("/", "-"))
        text = (changed / file).read_text()
        assert old in text
        (changed / file).write_text(text.replace(old, new))
        seen.add(tower_fingerprint(settings_of(changed)))
    assert len(seen) == 4


def test_the_default_encoder_keeps_the_fingerprint_of_the_first_release():
    assert tower_fingerprint(EncoderSettings()) == "54cfc05307432892"
    assert tower_fingerprint(EncoderSettings(name="fake")) == "e32c689ea1914ba6"


def test_a_prompt_is_no_part_of_routing_features_and_takes_no_room(bert):
    prompted, plain = load_tower(settings_of(bert)), load_tower(settings_of(bert, query_prompt=""))
    longest = "a b " * 30
    assert (
        len(prompted.tokenize_queries([longest], 10)[0]) == len(plain.tokenize_queries([longest], 10)[0]) + 5
    )
    one, other = prompted.routing_features(["copper", "zinc"], 0)
    alike, unlike = plain.routing_features(["copper", "zinc"], 0), prompted.routing_features(["copper"], 0)
    np.testing.assert_allclose(unlike[0], one, atol=1e-6)
    assert abs(float(one @ other) - float(alike[0] @ alike[1])) < 0.2


@pytest.mark.parametrize("file", ["sentence_bert_config.json", "sentence_roberta_config.json"])
def test_texts_are_lowered_for_a_cased_tokenizer_where_the_files_say_so(bert, tmp_path, file):
    from sentence_transformers import SentenceTransformer

    texts = ["The Quick brown FOX", "copper [SEP] Zinc"]
    lowered = shutil.copytree(bert, tmp_path / "lowered")
    (lowered / "sentence_bert_config.json").unlink()
    (lowered / file).write_text('{"max_seq_length": 20, "do_lower_case": true}')
    ours = load_tower(settings_of(lowered))
    peer = SentenceTransformer(str(lowered), device="cpu")
    np.testing.assert_allclose(ours.encode_queries(texts), peer.encode_query(texts), atol=1e-5)
    np.testing.assert_allclose(ours.encode_documents(texts), peer.encode_document(texts), atol=1e-5)
    cased = load_tower(settings_of(bert)).encode_queries(texts)
    assert np.abs(cased - ours.encode_queries(texts)).max() > 0.1
    assert ours.card.settings.document_max_length == 20
    save_sentence_transformer(ours, tmp_path / "exported")
    exported = SentenceTransformer(str(tmp_path / "exported"), device="cpu")
    np.testing.assert_allclose(exported.encode_document(texts), ours.encode_documents(texts), atol=1e-5)


def test_lowering_is_part_of_the_fingerprint_unless_the_tokenizer_does_it_itself(bert, tmp_path):
    def fingerprints(folder):
        plain = tower_fingerprint(settings_of(folder))
        (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 24, "do_lower_case": true}')
        return plain, tower_fingerprint(settings_of(folder))

    uncased = shutil.copytree(bert, tmp_path / "uncased")
    tokenizer = json.loads((uncased / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}
    (uncased / "tokenizer.json").write_text(json.dumps(tokenizer))
    before, after = fingerprints(bert)
    assert before != after
    before, after = fingerprints(uncased)
    assert before == after


@pytest.mark.parametrize(
    ("prompt", "query", "left"),
    [
        ("query: ", "what is copper", "▁what ▁is ▁copper </s>"),
        ("a: ", "what is copper", "▁what ▁is ▁copper </s>"),
        ("b: query: ", "a", "▁ a </s>"),
    ],
)
def test_a_tokenizer_that_puts_a_space_before_a_text_leaves_out_the_prompt_and_no_more(prompt, query, left):
    known = ["▁query", "▁what", "▁is", "▁copper", "▁", "a", "b", ":"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -len(piece)) for piece in known)]
    unigram = Tokenizer(models.Unigram(pieces, unk_id=2))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=unigram, **special)
    lengths = {"query_max_length": 64, "document_max_length": 64}
    reader = TextReader(tokenizer, EncoderSettings(query_prompt=prompt, document_prompt="", **lengths), None)
    (row,) = reader.queries([query])
    del row[reader.prompt]
    assert tokenizer.convert_ids_to_tokens(row) == left.split()


def test_positions_that_are_never_used_do_not_count(tmp_path):
    folder = write_transformer(TinyEncoder("roberta"), tmp_path)
    assert read_card(settings_of(folder)).settings.query_max_length == 30
    with pytest.raises(EncoderError, match="above the model's 30 positions"):
        load_tower(settings_of(folder, query_max_length=31))


@pytest.mark.parametrize(
    "written",
    [
        {"pooling_mode": ["cls", "mean"]},
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
    ],
)
def test_of_several_poolings_a_recipe_can_have_one(bert, tmp_path, written):
    (bert / "1_Pooling" / "config.json").write_text(json.dumps(written))
    with pytest.raises(EncoderError, match=r"side by side \(cls \+ mean\).* set encoder.pooling to one"):
        read_card(settings_of(bert))
    card = read_card(settings_of(bert, pooling="mean"))
    assert (card.settings.pooling, card.sources["pooling"]) == ("mean", "recipe")
    assert card.warnings == ("encoder.pooling: 'mean' by the recipe; the files say 'cls + mean'",)
    plain = write_transformer(TinyEncoder("bert"), tmp_path / "plain")
    expected = load_tower(settings_of(plain, query_prompt="")).encode_documents(TEXTS[:2])
    found = load_tower(settings_of(bert, pooling="mean")).encode_documents(TEXTS[:2])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_dense_layers_for_several_poolings_are_told_of(tmp_path):
    folder = write_encoder("t5-dense", tmp_path)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": ["cls", "mean"]}')
    dense = folder / "2_Dense" / "config.json"
    dense.write_text(json.dumps(json.loads(dense.read_text()) | {"in_features": 32}))
    weights = folder / "2_Dense" / "model.safetensors"
    save_file({"linear.weight": torch.zeros(12, 32), "linear.bias": torch.zeros(12)}, weights)
    with pytest.raises(EncoderError, match=r"vectors 16 wide, and the Dense layer of .* takes 32"):
        load_tower(settings_of(folder, pooling="mean"))


def test_a_recipe_that_reads_more_of_a_text_than_the_files_say_is_warned(bert):
    card = read_card(settings_of(bert, query_max_length=10, document_max_length=30))
    assert card.warnings == ("encoder.document_max_length: 30 by the recipe; the files say 24",)


@pytest.mark.parametrize(
    ("written", "about", "recipe", "warnings"),
    [
        ("bert-dot", {"similarity_fn_name": "euclidean"}, {},
         ("encoder.similarity: the files name 'euclidean', which is not supported; set cosine or dot",)),
        ("bert-dot", {"similarity_fn_name": "euclidean"}, {"similarity": "dot"}, ()),
        ("bert-mean", {"similarity_fn_name": "euclidean"}, {}, ()),  # it normalises
        ("bert-mean", {"similarity_fn_name": "dot"}, {}, ()),
        ("bert-mean", {"prompts": {"query": "q "}, "default_prompt_name": "ask"}, {},
         ("encoder.query_prompt: the files' default prompt is 'ask', and they have none of that name",)),
    ],
)  # fmt: skip
def test_files_that_contradict_themselves_are_told_where_it_matters(
    tmp_path, written, about, recipe, warnings
):
    folder = write_encoder(written, tmp_path)
    (folder / "config_sentence_transformers.json").write_text(json.dumps(about))
    assert read_card(settings_of(folder, **recipe)).warnings == warnings


def test_known_families_fill_in_what_files_leave_out(tmp_path):
    folder = write_transformer(TinyEncoder("bert"), tmp_path / "contriever-msmarco")
    card = read_card(settings_of(folder))
    assert (card.settings.similarity, card.sources["similarity"]) == ("dot", "known family")


@pytest.mark.parametrize(
    ("name", "query", "document"),
    [
        ("nomic-embed-text-v1.5", "search_query: ", "search_document: "),
        ("nomic-embed-text-v1", "search_query: ", "search_document: "),
        ("modernbert-embed-base", "search_query: ", "search_document: "),
        ("bge-large-zh-v1.5", "为这个句子生成表示以用于检索相关文章：", ""),
        ("multilingual-e5-small", "query: ", "passage: "),
        ("multilingual-e5-large-instruct", "", ""),
        ("bge-m3", "", ""),
    ],
)
def test_known_families_have_the_prompts_of_their_model_cards(tmp_path, name, query, document):
    folder = write_transformer(TinyEncoder("bert"), tmp_path / name)
    known = read_card(settings_of(folder)).settings
    assert (known.query_prompt, known.document_prompt) == (query, document)
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"query": "own: "}}')
    assert read_card(settings_of(folder)).settings.query_prompt == "own: "


def test_a_width_and_a_prompt_may_be_known_of_one_encoder(tmp_path):
    folder = write_transformer(TinyEncoder("bert"), tmp_path / "nomic-embed-text-v1.5")
    assert read_card(settings_of(folder)).settings.matryoshka_dimensions == (512, 256, 128, 64)


@pytest.mark.parametrize(
    ("name", "written", "named", "expected"),
    [
        ("msmarco-distilbert-base-tas-b", "distilbert", None, ("dot", "known family")),
        ("multi-qa-mpnet-base-dot-v1", "bert-dot", None, ("dot", "known family")),
        ("contriever", "bert-dot", None, ("dot", "known family")),
        ("contriever", "bert-dot", "cosine", ("cosine", "files")),
        ("contriever", "bert-mean", None, ("cosine", "files")),
        ("contriever", "bert-mean", "dot", ("cosine", "files")),  # it normalises
        ("another", "bert-dot", None, ("cosine", "default")),
        ("another", "bert-dot", "euclidean", ("cosine", "default")),
        ("another", "bert-dot", "dot", ("dot", "files")),
    ],
)
def test_files_say_which_similarity_only_where_they_normalise_or_name_it(
    tmp_path, name, written, named, expected
):
    folder = write_encoder(written, tmp_path).rename(tmp_path / name)
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"similarity_fn_name": named}))
    card = read_card(settings_of(folder))
    assert (card.settings.similarity, card.sources["similarity"]) == expected


@pytest.mark.parametrize(
    ("name", "files", "recipe", "expected"),
    [
        ("plain", {}, {}, (16,)),
        ("stated", {"matryoshka_dimensions": [4, 8, 64]}, {}, (16, 8, 4)),
        ("stated", {"matryoshka_dimensions": [4, 8]}, {"matryoshka_dimensions": ()}, (16,)),
        ("plain", {}, {"matryoshka_dimensions": (2,)}, (16, 2)),
    ],
)
def test_vectors_are_cut_to_the_widths_that_the_files_or_the_recipe_name(
    tmp_path, name, files, recipe, expected
):
    folder = write_transformer(TinyEncoder("bert"), tmp_path / name)
    config = json.loads((folder / "config.json").read_text()) | files
    (folder / "config.json").write_text(json.dumps(config))
    tower = load_tower(settings_of(folder, **recipe))
    assert tower.dimensions == expected
    vector = tower.encode_queries(["copper"])[0]
    for width in tower.dimensions:
        short = tower.cut(vector, width)
        assert len(short) == width
        np.testing.assert_allclose(short, vector[:width] / np.linalg.norm(vector[:width]), rtol=1e-6)
    assert settings_of(folder, matryoshka_dimensions=(3,)).identity() == settings_of(folder).identity()
