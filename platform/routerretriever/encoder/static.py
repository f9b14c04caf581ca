"""Static embeddings: a table of token vectors, whose mean is a text's vector. There is no layer to adapt.

As model2vec and sentence-transformers' StaticEmbedding have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig

from routerretriever.errors import EncoderError, first_line


def read_static(folder: Path) -> tuple[StaticTokenizer, StaticModel]:
    """The tokenizer and the table of a folder.

    Raises:
        EncoderError: files are missing or broken.
    """
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    try:
        module = StaticEmbedding.load(str(folder), local_files_only=True)
    except Exception as error:  # what broken files raise is of many libraries' kinds
        reason = first_line(error)
        raise EncoderError(f"encoder.name: {folder} holds no static embeddings: {reason}") from None
    return StaticTokenizer(module.tokenizer), StaticModel(module.embedding.weight.data)


class StaticTokenizer:
    """The part of a Hugging Face tokenizer's interface that the encoder uses; adds no special tokens."""

    pad_token_id = 0

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        tokenizer.no_truncation()
        unknown = getattr(tokenizer.model, "unk_token", None)
        self.unk_token_id = None if unknown is None else tokenizer.token_to_id(unknown)

    def num_special_tokens_to_add(self) -> int:
        """None are added."""
        return 0

    def __call__(
        self, texts: Sequence[str], *, truncation: bool, max_length: int | None = None, **_: Any
    ) -> dict[str, list[list[int]]]:
        """Token ids of each text, at most ``max_length`` of them."""
        limit = max_length if truncation else None
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return {"input_ids": [each.ids[:limit] for each in encoded]}


class StaticModel(nn.Module):
    """The table, called like a transformer without layers."""

    def __init__(self, weight_Vd: Tensor) -> None:
        super().__init__()
        self.embeddings = nn.Embedding.from_pretrained(weight_Vd)
        self.config = PretrainedConfig(hidden_size=weight_Vd.shape[1])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """The tokens' vectors [B, L, d]."""
        return SimpleNamespace(last_hidden_state=self.embeddings(input_ids))
