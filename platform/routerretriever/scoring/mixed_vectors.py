"""Measuring mixtures of experts from the score table: their vectors are mixed, and nothing is encoded.

A router that merges weights makes other vectors, within about a tenth of a point of these; ``mixtures``
encodes them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from routerretriever.index.dense import SearchIndex
from routerretriever.measures import Qrels, measure
from routerretriever.scoring.table import ScoreTable, SplitScores
from routerretriever.types import Values, Vectors


@dataclass(frozen=True, kw_only=True)
class MixedVectors:
    """Scored queries of a split, and what they search."""

    scores: ScoreTable
    qrels: Mapping[str, Qrels]
    indexes: Mapping[str, SearchIndex]
    own_kept: Mapping[str, Collection[str]] = field(default_factory=dict)
    """Queries that may find the document of their own id."""
    passages: Collection[str] = ()
    """Collections whose index holds passages."""

    def mixed_ndcg(
        self, dataset: str, rows: NDArray[np.int64] | None, experts: list[str], weights_BT: Vectors
    ) -> Values:
        """nDCG@10 [B] of a dataset's queries, or those at some rows, by mixtures of experts and the base."""
        table = self.scores[dataset] if rows is None else self.scores[dataset].subset(rows)
        run = self.indexes[dataset].run(
            table.query_ids,
            mix(table, experts, weights_BT),
            10,
            self.own_kept.get(dataset, ()),
            dataset in self.passages,
        )
        return measure(self.qrels[dataset], run, table.query_ids).ndcg_at_10


def mix(table: SplitScores, experts: list[str], weights_BT: Vectors) -> Vectors:
    """Query vectors merged by weight [B, d]; exact, since all experts search the same documents."""
    columns = [table.of(name) for name in experts]
    return np.einsum("bt,btd->bd", weights_BT, table.vectors_QEd[:, columns], dtype=np.float32)
