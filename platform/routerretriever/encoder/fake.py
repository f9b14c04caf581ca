"""A tiny random BERT and a hashing tokenizer: the same interface as a real encoder, in milliseconds.

Everything above this room (adapters, training, scoring, serving) runs on it unchanged, which is what makes
the tests fast. Texts that share words get similar vectors, so retrieval by it is better than chance.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Any

_VOCABULARY = 4096
_SPECIAL = 3  # 0 pads, 1 opens and 2 closes a text


class HashingTokenizer:
    """Words to ids by checksum; the part of a Hugging Face tokenizer's interface that the encoder uses."""

    pad_token_id = 0

    def __call__(
        self, texts: Sequence[str], *, truncation: bool, max_length: int, **_: Any
    ) -> dict[str, list[list[int]]]:
        """Token ids of each text, opened and closed, at most ``max_length`` long."""
        assert truncation
        rows = []
        for text in texts:
            words = re.findall(r"\w+", text.lower())[: max_length - 2]
            hashed = [_SPECIAL + zlib.crc32(word.encode()) % (_VOCABULARY - _SPECIAL) for word in words]
            rows.append([1, *hashed, 2])
        return {"input_ids": rows}


def fake_model() -> Any:
    """A seeded two-layer BERT, 32 wide."""
    import torch
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=_VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        model = BertModel(config, add_pooling_layer=False)
        # Positions as strong as words would drown what a text is about.
        model.embeddings.position_embeddings.weight.data.mul_(0.1)
    return model
