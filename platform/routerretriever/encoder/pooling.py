"""Token states to one vector a text, as an encoder was trained for.

Shapes: B texts, L tokens, d dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Pool = Callable[[Tensor, Tensor], Tensor]
"""States [B, L, d] and mask [B, L] to vectors [B, d], in float32."""


def pooling_of(mode: str) -> Pool:
    """The pooling that sentence-transformers calls so.

    The two that most encoders use are written out, which spares every process 3 s of imports.
    """
    if mode == "mean":
        return mean_over_tokens
    if mode == "cls":
        return first_token
    from sentence_transformers.sentence_transformer.modules import Pooling

    pooling = Pooling(1, mode)

    def pool(hidden_BLd: Tensor, mask_BL: Tensor) -> Tensor:
        features = {"token_embeddings": hidden_BLd.float(), "attention_mask": mask_BL}
        vectors: Tensor = pooling(features)["sentence_embedding"]
        return vectors

    return pool


def mean_over_tokens(hidden_BLd: Tensor, mask_BL: Tensor) -> Tensor:
    """The mean over the tokens that are no padding."""
    mask = mask_BL.unsqueeze(-1).float()
    return (hidden_BLd.float() * mask).sum(1) / mask.sum(1).clamp(min=1.0)


def first_token(hidden_BLd: Tensor, _: Tensor) -> Tensor:
    """The state of the first token."""
    return hidden_BLd[:, 0].float()
