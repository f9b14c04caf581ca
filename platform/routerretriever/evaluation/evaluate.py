"""Every way to answer, on every test set.

All of it is read from the score table of the test split: an expert alone is a column, DatasetOracle the
best column, InstanceOracle the best cell of each row. A router is run as in service: its weights mix the
experts' query vectors, or the experts themselves, and what comes out is searched once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from routerretriever.evaluation.significance import Difference, compare
from routerretriever.index.dense import SearchIndex
from routerretriever.measures import Measured, Qrels, Values, measure
from routerretriever.routing.protocol import Vectors
from routerretriever.routing.settings import RoutingSettings
from routerretriever.scoring.table import ScoreTable, SplitScores
from routerretriever.types import BASE

ROUTED = "RouterRetriever"
PAPER = "pilot library"
DATASET_ORACLE = "DatasetOracle"
INSTANCE_ORACLE = "InstanceOracle"
OWN_EXPERT = "own expert"
GENERAL_PREFIX, DDR, DDR_TOP_K = "general prefix", "DDR", "DDR-topk"
DDR_PRIOR, DDR_UNROUTED = "DDR-prior", "DDR without routing"
"""Dynamic Dense Retrieval: its base; all modules; the best few; those of a collection's labels; the same
without weights."""
PAPERS = RoutingSettings(features="embedding", mixing="hard", merge="embeddings", fallback=None)
"""What all of the paper's routers have in common."""
RIVALS: dict[str, RoutingSettings] = {
    PAPER: PAPERS.model_copy(update={"router": "pilots"}),
    "ExpertClassifierRouter": PAPERS.model_copy(update={"router": "expert_classifier"}),
    "ClassificationHeadRouter": PAPERS.model_copy(update={"router": "classification_head"}),
    "DatasetRouter": PAPERS.model_copy(update={"router": "dataset"}),
    "uniform mixing": PAPERS.model_copy(update={"router": "uniform"}),
}
"""The paper's routers, each as it describes them, and mixing without routing."""


@dataclass(frozen=True)
class RoutedBy:
    """What a fitted router makes of each dataset's test queries."""

    experts: list[str]
    merge: Literal["weights", "embeddings"]
    weights: Mapping[str, Vectors]
    """[Q, T] over the experts."""
    vectors: Mapping[str, Vectors]
    """[Q, d], to search with."""

    def encodings(self, dataset: str) -> float:
        """How often a query is encoded on average."""
        return 1.0 if self.merge == "weights" else float((self.weights[dataset] > 0).sum(axis=1).mean())


@dataclass(frozen=True)
class Evaluation:
    """Measures by way of answering and test set, query by query."""

    datasets: list[str]
    experts: list[str]
    """Without the base."""
    single_models: list[str]
    """Rivals: one model for everything."""
    routers: list[str]
    """The ways of answering that are routers, the deployed one first."""
    query_ids: dict[str, list[str]]
    measured: dict[str, dict[str, Measured]]
    """Way -> dataset -> arrays [Q]. The base, each expert, the routers, the oracles."""
    texts: dict[str, list[str]]
    """Dataset -> its test queries."""
    weights: dict[str, Vectors]
    """Dataset -> the deployed router's weights [Q, T] over the experts that ``routed_to`` names."""
    routed_to: dict[str, dict[str, dict[str, float]]]
    """Router -> dataset -> expert -> mean routing weight."""
    encodings: dict[str, dict[str, float]]
    """Router -> dataset -> how often a query is encoded on average."""
    oracle_choice: dict[str, dict[str, float]]
    """Dataset -> expert -> share of queries on which it is best; the tied share a query equally."""
    tied: dict[str, float]
    """Dataset -> share of queries on which two or more experts are equally the best."""
    settings: dict[str, Any]

    @property
    def with_expert(self) -> list[str]:
        """The datasets whose own domain has an expert; the others are zero-shot."""
        return [name for name in self.datasets if name in self.experts]

    @property
    def zero_shot(self) -> list[str]:
        """The datasets without an expert."""
        return [name for name in self.datasets if name not in self.experts]

    @property
    def ndcg_at_10(self) -> dict[str, dict[str, float]]:
        """Way -> dataset -> mean nDCG@10."""
        return self.means("ndcg_at_10")

    def means(self, measure_name: str) -> dict[str, dict[str, float]]:
        """Way -> dataset -> mean of one of ``MEASURES``."""
        return {
            way: {name: float(getattr(table, measure_name).mean()) for name, table in tables.items()}
            for way, tables in self.measured.items()
        }

    def mean(self, way: str, zero_shot: bool = False, measure_name: str = "ndcg_at_10") -> float | None:
        """Mean over the sets with an expert, or over the zero-shot sets; None if there are none.

        ``OWN_EXPERT`` is a way too: each set's own expert, over the sets that have one.
        """
        if way == OWN_EXPERT and zero_shot:
            return None
        chosen = self.zero_shot if zero_shot else self.with_expert
        tables = {name: self.measured[name if way == OWN_EXPERT else way][name] for name in chosen}
        figures = {name: float(getattr(table, measure_name).mean()) for name, table in tables.items()}
        return self.average(figures, zero_shot)

    def average(self, figures: Mapping[str, float], zero_shot: bool = False) -> float | None:
        """Mean of figures of datasets over those with an expert, or the zero-shot ones; None without any."""
        chosen = self.zero_shot if zero_shot else self.with_expert
        return float(np.mean([figures[name] for name in chosen])) if chosen else None

    def regret(self, way: str) -> dict[str, float]:
        """Dataset -> nDCG@10 that InstanceOracle is above this way."""
        figures = self.ndcg_at_10
        return {name: figures[INSTANCE_ORACLE][name] - figures[way][name] for name in self.datasets}

    @cached_property
    def differences(self) -> dict[str, dict[str, Difference]]:
        """Dataset -> rival -> paired difference of nDCG@10 of the deployed router over it."""
        found: dict[str, dict[str, Difference]] = {}
        for name in self.datasets:
            ours = self.measured[ROUTED][name].ndcg_at_10
            rivals = {way: way for way in (BASE, *self.single_models, PAPER, DATASET_ORACLE)}
            if name in self.experts:
                rivals[OWN_EXPERT] = name
            found[name] = {
                label: compare(ours, self.measured[rival][name].ndcg_at_10)
                for label, rival in rivals.items()
                if rival in self.measured
            }
        return found


def evaluate(
    scores: ScoreTable,
    singles: Mapping[str, Mapping[str, Measured]],
    texts: Mapping[str, list[str]],
    qrels: Mapping[str, Qrels],
    routers: Mapping[str, RoutedBy],
    indexes: Mapping[str, SearchIndex],
    depth: int,
    settings: dict[str, Any],
) -> Evaluation:
    """Evaluate on the test splits of the score table's datasets.

    Args:
        scores: test scores by dataset.
        singles: single models, which are shown and not routed to: name -> dataset -> arrays [Q].
        texts: test queries by dataset, in the score table's order.
        qrels: test judgements by dataset.
        routers: what routers make of the queries, the one to be deployed first.
        indexes: search index by dataset.
        depth: documents retrieved per query.
        settings: the recipe's, recorded with the figures.
    """
    names = next(iter(scores.values())).experts
    experts = [name for name in names if name != BASE]
    measured: dict[str, dict[str, Measured]] = {
        way: {} for way in (BASE, *experts, *singles, *routers, DATASET_ORACLE, INSTANCE_ORACLE)
    }
    routed_to: dict[str, dict[str, dict[str, float]]] = {name: {} for name in routers}
    weights: dict[str, Vectors] = {}
    encodings: dict[str, dict[str, float]] = {name: {} for name in routers}
    oracle_choice, tied = {}, {}
    for dataset, table in scores.items():
        for name in names:
            measured[name][dataset] = table.measured[:, table.of(name)]
        for name, tables in singles.items():
            measured[name][dataset] = tables[dataset]
        for name, routed in routers.items():
            run = indexes[dataset].run(table.query_ids, routed.vectors[dataset], depth)
            measured[name][dataset] = measure(qrels[dataset], run, table.query_ids)
            weights.setdefault(dataset, routed.weights[dataset])
            encodings[name][dataset] = routed.encodings(dataset)
            shares = routed.weights[dataset].mean(axis=0).tolist()
            routed_to[name][dataset] = dict(zip(routed.experts, shares, strict=True))
        # The oracles choose among the experts, as in the paper; the base is not a candidate.
        columns = [table.of(name) for name in experts]
        ndcg_QT: Values = table.measured.ndcg_at_10[:, columns]
        measured[DATASET_ORACLE][dataset] = measured[experts[int(ndcg_QT.mean(axis=0).argmax())]][dataset]
        best_Q = np.array(columns)[ndcg_QT.argmax(axis=1)]
        measured[INSTANCE_ORACLE][dataset] = table.measured[np.arange(len(best_Q)), best_Q]
        is_best_QT = ndcg_QT >= ndcg_QT.max(axis=1, keepdims=True) - 1e-9
        shares_QT = is_best_QT / is_best_QT.sum(axis=1, keepdims=True)
        oracle_choice[dataset] = dict(zip(experts, shares_QT.mean(axis=0).tolist(), strict=True))
        tied[dataset] = float((is_best_QT.sum(axis=1) > 1).mean())
    return Evaluation(
        datasets=list(scores),
        experts=experts,
        single_models=list(singles),
        routers=list(routers),
        query_ids={name: table.query_ids for name, table in scores.items()},
        measured=measured,
        texts=dict(texts),
        weights=weights,
        routed_to=routed_to,
        encodings=encodings,
        oracle_choice=oracle_choice,
        tied=tied,
        settings=settings,
    )


def mix(table: SplitScores, experts: list[str], weights_BT: Vectors) -> Vectors:
    """Query vectors mixed by weight [B, d]; exact, since all experts search the same documents."""
    columns = [table.of(name) for name in experts]
    return np.einsum("bt,btd->bd", weights_BT, table.vectors_QEd[:, columns], dtype=np.float32)
