"""A model with Python code of its own, as the hub has them: saving it copies this file beside its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class OwnConfig(PretrainedConfig):
    model_type = "own"

    def __init__(
        self, vocab_size: int = 40, hidden_size: int = 16, num_hidden_layers: int = 2, **others: Any
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.max_position_embeddings = 32
        super().__init__(**others)


class OwnLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.dense = nn.Linear(width, width)

    def forward(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
        scores = self.query(hidden_states) @ hidden_states.transpose(1, 2)
        scores = scores.masked_fill(mask[:, None, :] == 0, float("-inf"))
        mixed: Tensor = hidden_states + torch.tanh(self.dense(scores.softmax(-1) @ hidden_states))
        return mixed


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(OwnLayer(config.hidden_size) for _ in range(config.num_hidden_layers))
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> BaseModelOutput:
        hidden = self.words(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask)
        return BaseModelOutput(last_hidden_state=hidden)
