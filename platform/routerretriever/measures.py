"""Retrieval measures as BEIR computes them (trec_eval, through pytrec_eval).

Shared by early stopping, the score table and the evaluation, so that a number means the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pytrec_eval

Qrels = Mapping[str, Mapping[str, int]]
Run = Mapping[str, Mapping[str, float]]


class Utility(NamedTuple):
    """How well one query was answered."""

    ndcg_at_10: float
    recall_at_100: float
    first_relevant_rank: int | None
    """1 for the top; None when no relevant document was retrieved."""


def utilities(qrels: Qrels, run: Run) -> dict[str, Utility]:
    """Measure every query of a run that has judgements.

    Args:
        qrels: query id -> document id -> grade; a grade above 0 is relevant.
        run: query id -> document id -> score.
    """
    judged = {query: {doc: int(grade) for doc, grade in grades.items()} for query, grades in qrels.items()}
    evaluator = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10", "recall.100", "recip_rank"})
    measured = evaluator.evaluate({query: dict(run[query]) for query in judged if query in run})
    return {
        query: Utility(
            ndcg_at_10=values["ndcg_cut_10"],
            recall_at_100=values["recall_100"],
            first_relevant_rank=round(1 / values["recip_rank"]) if values["recip_rank"] > 0 else None,
        )
        for query, values in measured.items()
    }


def mean_ndcg(qrels: Qrels, run: Run) -> float:
    """Mean nDCG@10 over the judged queries; a query without results counts 0."""
    measured = utilities(qrels, run)
    return sum(utility.ndcg_at_10 for utility in measured.values()) / len(qrels)
