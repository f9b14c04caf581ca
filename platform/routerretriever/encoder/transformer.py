"""The transformer of an encoder: with its pooling, and up to one of its layers.

Shapes: B texts, L tokens, d dimensions.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from routerretriever.encoder.pooling import pooling_of
from routerretriever.errors import EncoderError


class Tower(nn.Module):
    """The transformer with its pooling: token ids [B, L] and mask [B, L] to vectors [B, d], in float32."""

    def __init__(
        self, model: Any, pooling: str | None, similarity: str | None, dense: Sequence[nn.Module] = ()
    ) -> None:
        super().__init__()
        self.model = model
        self.similarity = similarity
        self.pool = pooling_of(pooling or "mean")
        self.dense = nn.ModuleList(dense)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Pool the last hidden state; unit length if similarity is cosine."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        pooled = self.pool(hidden, attention_mask)
        for layer in self.dense:
            pooled = layer({"sentence_embedding": pooled})["sentence_embedding"]
        return F.normalize(pooled, dim=-1) if self.similarity == "cosine" else pooled


class _EarlyStop(Exception):
    """Carries the hidden state out of a forward pass that need not go on."""


def hidden_entering(layer: nn.Module, model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The states [B, L, d] that enter a layer; what comes after it is not run.

    Raises:
        EncoderError: the model does not run this layer.
    """
    captured: list[Tensor] = []
    asking = threading.get_ident()

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() != asking:  # a pass that goes through, as for a release that is prepared
            return
        captured.append(args[0] if args else kwargs["hidden_states"])
        raise _EarlyStop

    handle = layer.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(input_ids=input_ids, attention_mask=attention_mask)
    except _EarlyStop:
        return captured[0]
    finally:
        handle.remove()
    raise EncoderError("routing.features: this encoder does not run the layer it was asked to stop at")


def transformer_layers(model: Any) -> list[nn.Module]:
    """The layers that follow each other, first to last; none in a table of static embeddings."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(stacks, key=lambda stack: len(list(stack)), default=nn.ModuleList()))
