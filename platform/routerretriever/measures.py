"""Retrieval measures as BEIR computes them (trec_eval, through pytrec_eval).

Shared by early stopping, the score table and the evaluation, so that a number means the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytrec_eval

from routerretriever.types import Values

Qrels = Mapping[str, Mapping[str, int]]
Run = Mapping[str, Mapping[str, float]]

MEASURES = {
    "ndcg_at_10": "nDCG@10",
    "recall_at_100": "recall@100",
    "average_precision": "MAP@100",
    "reciprocal_rank_at_10": "MRR@10",
}
"""Attributes of ``Measured`` and what their means are called."""


@dataclass(frozen=True)
class Measured:
    """How well queries were answered: arrays of one shape, [Q], or [Q, E] for E experts."""

    ndcg_at_10: Values
    recall_at_100: Values
    average_precision: Values
    """Over the first 100 documents."""
    first_relevant_rank: Values
    """1 for the top; infinite where no relevant document was retrieved."""

    @property
    def reciprocal_rank_at_10(self) -> Values:
        """One over the rank of the first relevant document; 0 below rank 10."""
        return np.where(self.first_relevant_rank <= 10, 1 / self.first_relevant_rank, 0.0)

    def __getitem__(self, index: Any) -> Measured:
        """The same index into every array."""
        return Measured(
            self.ndcg_at_10[index],
            self.recall_at_100[index],
            self.average_precision[index],
            self.first_relevant_rank[index],
        )


def measure(qrels: Qrels, run: Run, query_ids: Sequence[str]) -> Measured:
    """Measure queries [Q] in the given order; a query without results or judgements counts 0.

    Args:
        qrels: query id -> document id -> grade; a grade above 0 is relevant.
        run: query id -> document id -> score.
        query_ids: the queries.
    """
    judged = {i: {doc: int(grade) for doc, grade in qrels[i].items()} for i in query_ids if i in qrels}
    evaluator = pytrec_eval.RelevanceEvaluator(
        judged, {"ndcg_cut.10", "recall.100", "map_cut.100", "recip_rank"}
    )
    measured = evaluator.evaluate({i: dict(run[i]) for i in judged if i in run})

    def column(name: str) -> Values:
        return np.array([measured[i][name] if i in measured else 0.0 for i in query_ids])

    reciprocal = column("recip_rank")
    return Measured(
        ndcg_at_10=column("ndcg_cut_10"),
        recall_at_100=column("recall_100"),
        average_precision=column("map_cut_100"),
        first_relevant_rank=np.where(
            reciprocal > 0, np.round(1 / np.where(reciprocal > 0, reciprocal, 1)), np.inf
        ),
    )


def mean_ndcg(qrels: Qrels, run: Run) -> float:
    """Mean nDCG@10 over the judged queries; a query without results counts 0."""
    return float(measure(qrels, run, list(qrels)).ndcg_at_10.mean())
