"""One loss for every objective: softmax over candidate documents, other positives of a query masked.

What differs between the objectives is only which documents are candidates: all of the corpus, mined and
random negatives, or the batch's own positives. Documents are looked up, not encoded, as in LTRe (arXiv
2010.10469). Shapes: B queries, C candidates, d dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from routerretriever.types import Rows

_NEVER = -1e30
"""A logit that gets no share of a softmax; of two infinite ones no divergence could be told."""


def candidate_loss(
    query_Bd: Tensor,
    candidate_Cd: Tensor,
    candidate_rows: Rows,
    target_rows: Rows,
    positive_rows: Sequence[Rows],
    temperature: float,
    teacher_BC: Tensor | None = None,
    distillation: float = 0.0,
    mask_above: float | None = None,
    left_out_rows: Sequence[Rows] = (),
) -> Tensor:
    """Mean cross-entropy of each query's target document among the candidates.

    With ``distillation``, the divergence KL(teacher || expert) of the two softmaxes over the same candidates
    is added, so that documents without judgements keep the order that the teacher gives them. With
    ``mask_above``, candidates that the teacher scores above this share of the target's score, which may be
    relevant though nobody judged them, do not compete with the target.

    Args:
        query_Bd: query vectors, with gradients.
        candidate_Cd: frozen document vectors.
        candidate_rows: the candidates' rows in the corpus, ascending and unique: [C].
        target_rows: the positive to be found for each query, itself a candidate: [B].
        positive_rows: all positives of each query; those that are not the target neither attract nor repel.
        temperature: scores are divided by this.
        teacher_BC: the teacher's scores of the candidates; needed for the next two.
        distillation: weight of the divergence.
        mask_above: share of the target's score; None masks nothing.
        left_out_rows: for each query, none of its positives, and no candidates for it, neither in the
            cross-entropy nor in the divergence.
    """
    logits_BC = query_Bd @ candidate_Cd.T / temperature
    left_out_BC = _candidates_among(candidate_rows, left_out_rows, logits_BC)
    if left_out_BC is not None:
        logits_BC = logits_BC.masked_fill(left_out_BC, _NEVER)
        teacher_BC = None if teacher_BC is None else teacher_BC.masked_fill(left_out_BC, temperature * _NEVER)
    divergence = _divergence(logits_BC, teacher_BC, temperature) if distillation else None
    targets_B = torch.as_tensor(np.searchsorted(candidate_rows, target_rows), device=logits_BC.device)
    if mask_above is not None:
        assert teacher_BC is not None, "a mask needs the teacher's scores"
        logits_BC = logits_BC.masked_fill(above_target(teacher_BC, targets_B, mask_above), float("-inf"))
    others = [rows[rows != target] for rows, target in zip(positive_rows, target_rows, strict=True)]
    others_BC = _candidates_among(candidate_rows, others, logits_BC)
    if others_BC is not None:
        logits_BC = logits_BC.masked_fill(others_BC, float("-inf"))
    loss = F.cross_entropy(logits_BC, targets_B)
    return loss if divergence is None else loss + distillation * divergence


def _candidates_among(candidate_rows: Rows, rows: Sequence[Rows], like_BC: Tensor) -> Tensor | None:
    """Which candidates are among each query's rows, as a mask [B, C]; None if none is."""
    mask_rows: list[int] = []
    mask_columns: list[int] = []
    for query, own in enumerate(rows):
        columns = np.searchsorted(candidate_rows, own)
        within = columns < len(candidate_rows)
        columns, own = columns[within], own[within]
        columns = columns[candidate_rows[columns] == own]
        mask_rows += [query] * len(columns)
        mask_columns += columns.tolist()
    if not mask_rows:
        return None
    mask_BC = torch.zeros_like(like_BC, dtype=torch.bool)
    mask_BC[mask_rows, mask_columns] = True
    return mask_BC


def above_target(scores_BC: Tensor, targets_B: Tensor, share: float) -> Tensor:
    """Which candidates score above a share of the target's score; never the target itself: [B, C]."""
    target_B1 = targets_B[:, None]
    above_BC = scores_BC > share * scores_BC.gather(1, target_B1)
    return above_BC.scatter(1, target_B1, False)


def _divergence(logits_BC: Tensor, teacher_BC: Tensor | None, temperature: float) -> Tensor:
    """KL(teacher || expert), mean over queries; a query's positives count as any document."""
    assert teacher_BC is not None, "distillation needs the teacher's scores"
    return F.kl_div(
        F.log_softmax(logits_BC, dim=1),
        F.log_softmax(teacher_BC / temperature, dim=1),
        log_target=True,
        reduction="batchmean",
    )


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
