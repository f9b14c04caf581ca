"""Text to vectors: the frozen base encoder, and experts as adapters on its query tower.

The only room that knows models and tokenizers. It knows nothing of collections, indexes or routing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from routerretriever.encoder.prefix_shape import UNIFORM, PrefixShape, View
from routerretriever.encoder.source import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    EncoderError,
    encoder_fingerprint,
    general_prefix_folder,
)

if TYPE_CHECKING:
    from routerretriever.encoder.encoder import Encoder, Features, load_encoder
    from routerretriever.encoder.packed import PackedExperts, merge_expert, pack_experts

__all__ = [
    "ADAPTER_CONFIG", "ADAPTER_WEIGHTS", "UNIFORM", "Encoder", "EncoderError", "Features", "PackedExperts",
    "PrefixShape", "View", "encoder_fingerprint", "general_prefix_folder", "load_encoder", "merge_expert",
    "pack_experts",
]  # fmt: skip


def __getattr__(name: str) -> object:
    # torch and transformers take seconds to import; who only needs a fingerprint does not pay for them.
    if name in ("Encoder", "Features", "load_encoder"):
        from routerretriever.encoder import encoder

        return getattr(encoder, name)
    if name in ("PackedExperts", "merge_expert", "pack_experts"):
        from routerretriever.encoder import packed

        return getattr(packed, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
