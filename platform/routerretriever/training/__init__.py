"""Experts: one LoRA on the query tower per domain, trained in parallel on Ray Train.

Documents are frozen, so positives and negatives are looked up in the corpus artifact, never encoded.
"""

from __future__ import annotations

from routerretriever.training.experts import (
    Expert,
    TrainingFailed,
    average_experts,
    expert_key,
    name_views,
    open_expert,
    train_copies,
    train_ddr,
    train_experts,
    train_general_prefix,
    train_joint,
    train_samples,
)

__all__ = [
    "Expert", "TrainingFailed", "average_experts", "expert_key", "name_views", "open_expert", "train_copies",
    "train_ddr", "train_experts", "train_general_prefix", "train_joint", "train_samples",
]  # fmt: skip
