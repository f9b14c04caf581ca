"""One loss for every objective: softmax over candidate documents, other positives of a query masked.

What differs between the objectives is only which documents are candidates: all of the corpus, mined and
random negatives, or the batch's own positives. Shapes: B queries, C candidates, d dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Rows = NDArray[np.int64]


def candidate_loss(
    query_Bd: Tensor,
    candidate_Cd: Tensor,
    candidate_rows: Rows,
    target_rows: Rows,
    positive_rows: Sequence[Rows],
    temperature: float,
) -> Tensor:
    """Mean cross-entropy of each query's target document among the candidates.

    Args:
        query_Bd: query vectors, with gradients.
        candidate_Cd: frozen document vectors.
        candidate_rows: the candidates' rows in the corpus, ascending and unique: [C].
        target_rows: the positive to be found for each query, itself a candidate: [B].
        positive_rows: all positives of each query; those that are not the target neither attract nor repel.
        temperature: scores are divided by this.
    """
    logits_BC = query_Bd @ candidate_Cd.T / temperature
    targets_B = np.searchsorted(candidate_rows, target_rows)
    mask_rows: list[int] = []
    mask_columns: list[int] = []
    for query, (positives, target) in enumerate(zip(positive_rows, target_rows, strict=True)):
        others = positives[positives != target]
        columns = np.searchsorted(candidate_rows, others)
        within = columns < len(candidate_rows)
        columns, others = columns[within], others[within]
        columns = columns[candidate_rows[columns] == others]
        mask_rows += [query] * len(columns)
        mask_columns += columns.tolist()
    if mask_rows:
        mask_BC = torch.zeros_like(logits_BC, dtype=torch.bool)
        mask_BC[mask_rows, mask_columns] = True
        logits_BC = logits_BC.masked_fill(mask_BC, float("-inf"))
    return F.cross_entropy(logits_BC, torch.as_tensor(targets_B, device=logits_BC.device))


def draw_targets(
    positive_rows: Sequence[Rows], grades: Sequence[NDArray[np.int64]], random: np.random.Generator
) -> Rows:
    """One positive per query, drawn in proportion to its grade: [B]."""
    return np.array(
        [
            random.choice(rows, p=grade / grade.sum())
            for rows, grade in zip(positive_rows, grades, strict=True)
        ],
        dtype=np.int64,
    )
