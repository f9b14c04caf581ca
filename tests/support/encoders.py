"""Tiny random encoders of common architectures, with the files that sentence-transformers writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    T5EncoderModel,
)

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "copper", "and", "zinc", "query",
         "a", "b", "passage", ":", "search", "for", "long", "text"]  # fmt: skip
_SMALL = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "initializer_range": 0.5, "pad_token_id": 1,
}  # fmt: skip


@dataclass(frozen=True)
class TinyEncoder:
    """An architecture, and what its sentence-transformers files say."""

    model_type: str
    pooling: str = "mean"
    normalise: bool = True
    prompts: dict[str, str] = field(default_factory=dict)
    dense: tuple[int, ...] = ()
    """Widths of the Dense layers that follow pooling."""
    similarity: str | None = None
    config: dict[str, Any] = field(default_factory=dict)


_GROUPED = {"num_key_value_heads": 1, "head_dim": 8}
_MODERN = {"pad_token_id": 1, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
_QUERY = {"query": "search for the query : ", "document": ""}
ENCODERS: dict[str, TinyEncoder] = {
    "bert-mean": TinyEncoder("bert"),
    "bert-cls-prompt": TinyEncoder("bert", "cls", prompts=_QUERY),
    "bert-dot": TinyEncoder("bert", "cls", normalise=False, similarity="dot"),
    "bert-max": TinyEncoder("bert", "max"),
    "bert-weighted": TinyEncoder("bert", "weightedmean"),
    "mpnet": TinyEncoder("mpnet"),
    "distilbert": TinyEncoder("distilbert", "cls", normalise=False, similarity="dot",
                              config={"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}),
    "roberta": TinyEncoder("roberta", prompts={"query": "query : ", "passage": "passage : "}),
    "xlm-roberta": TinyEncoder("xlm-roberta", "cls"),
    "albert": TinyEncoder("albert", config={"embedding_size": 8}),
    "modernbert": TinyEncoder("modernbert", config=_MODERN),
    "modernbert-cls": TinyEncoder("modernbert", "cls", config=_MODERN),
    "nomic": TinyEncoder("nomic_bert", prompts={"query": "query : ", "document": "passage : "}),
    "gte": TinyEncoder("gte", "cls"),
    "deberta-v2": TinyEncoder("deberta-v2", config={"relative_attention": True, "position_buckets": 8,
                              "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 16}),
    "t5-dense": TinyEncoder("t5", dense=(12,), config={"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2,
                                                    "num_heads": 2}),
    "qwen3": TinyEncoder("qwen3", "lasttoken", prompts=_QUERY, config=_GROUPED),
    "mistral": TinyEncoder("mistral", "lasttoken", prompts=_QUERY, config=_GROUPED),
    "llama": TinyEncoder("llama", "lasttoken", config={"pad_token_id": None, "num_key_value_heads": 2}),
    "gemma3-dense": TinyEncoder("gemma3_text", dense=(24, 12), prompts=_QUERY, config=_GROUPED),
}  # fmt: skip


def write_encoder(name: str, folder: Path) -> Path:
    """Write one of ``ENCODERS``, seeded, as sentence-transformers would."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    tiny = ENCODERS[name]
    made = write_transformer(tiny, folder / "transformer")
    transformer = Transformer(str(made), max_seq_length=24)
    modules: list[Any] = [transformer, Pooling(16, tiny.pooling)]
    torch.manual_seed(1)
    modules += [Dense(*widths) for widths in pairwise((16, *tiny.dense))]
    if tiny.normalise:
        modules.append(Normalize())
    model = SentenceTransformer(
        modules=modules, prompts=tiny.prompts or None, similarity_fn_name=tiny.similarity, device="cpu"
    )
    model.save(str(folder / "encoder"))
    return folder / "encoder"


def write_cross_encoder(folder: Path, labels: int = 1) -> Path:
    """Write a random BERT that reads two texts and gives so many scores."""
    tiny = TinyEncoder("bert", config={"num_labels": labels})
    return write_transformer(tiny, folder, AutoModelForSequenceClassification.from_config)


def write_transformer(tiny: TinyEncoder, folder: Path, build: Callable[..., Any] | None = None) -> Path:
    """Write a transformer and its tokenizer, without sentence-transformers' files."""
    config = AutoConfig.for_model(tiny.model_type, **{**_SMALL, "max_position_embeddings": 32, **tiny.config})
    build = build or (T5EncoderModel if tiny.model_type == "t5" else AutoModel.from_config)
    torch.manual_seed(0)
    build(config).save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(["[UNK]", "[PAD]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=30, **special).save_pretrained(
        folder
    )
    return folder
