"""nDCG@10 of every way to answer, on every test set.

All of it is read from the score table of the test split: an expert alone is a column, DatasetOracle the
best column, InstanceOracle the best cell of each row. The router is run as in service: its weights mix the
experts' query vectors, and the mixture is searched once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from routerretriever.config import BASE
from routerretriever.corpus import SearchIndex
from routerretriever.measures import Qrels, utilities
from routerretriever.routing import Router
from routerretriever.routing.protocol import Vectors
from routerretriever.scoring import ScoreTable, SplitScores

ROUTED = "RouterRetriever"
PAPER = "pilots"
DATASET_ORACLE = "DatasetOracle"
INSTANCE_ORACLE = "InstanceOracle"


@dataclass(frozen=True)
class Evaluation:
    """Figures by way of answering and test set."""

    datasets: list[str]
    with_expert: list[str]
    """The datasets whose own domain has an expert; the others are zero-shot."""
    ndcg_at_10: dict[str, dict[str, float]]
    recall_at_100: dict[str, dict[str, float]]
    routers: list[str]
    """The ways of answering that are routers, the deployed one first."""
    routed_to: dict[str, dict[str, float]]
    """Dataset -> expert -> mean routing weight of the deployed router."""
    queries: dict[str, int]
    settings: dict[str, Any] = field(default_factory=dict)

    def mean(self, way: str, zero_shot: bool) -> float | None:
        """Mean nDCG@10 over the sets with an expert, or over the zero-shot sets; None if there are none."""
        chosen = [name for name in self.datasets if (name not in self.with_expert) == zero_shot]
        return float(np.mean([self.ndcg_at_10[way][name] for name in chosen])) if chosen else None

    def rows(self) -> list[list[str]]:
        """The table's cells: nDCG@10 x 100, a way of answering per row."""
        lines = []
        for way, figures in self.ndcg_at_10.items():
            means = [self.mean(way, zero_shot=False), self.mean(way, zero_shot=True)]
            cells = [f"{100 * figures[name]:.1f}" for name in self.datasets]
            lines.append([way, *cells, *(_percent(mean) for mean in means)])
        return lines

    def header(self) -> list[str]:
        """The table's column names."""
        return ["nDCG@10 x 100", *self.datasets, "mean", "zero-shot"]

    def table(self) -> Table:
        """For the terminal: a row per test set; each other expert's figures are in the files."""
        ways = [BASE, *self.routers, DATASET_ORACLE, INSTANCE_ORACLE]
        table = Table("test set", "own expert", *ways, title="nDCG@10 x 100", header_style="bold")
        for column in table.columns[1:]:
            column.justify = "right"
        for name in self.datasets:
            own = self.ndcg_at_10[name][name] if name in self.with_expert else None
            table.add_row(name, _percent(own), *(_percent(self.ndcg_at_10[way][name]) for way in ways))
        table.add_section()
        own_mean = [self.ndcg_at_10[name][name] for name in self.with_expert]
        means = [_percent(self.mean(way, zero_shot=False)) for way in ways]
        table.add_row("mean", _percent(float(np.mean(own_mean))), *means, style="bold")
        if len(self.with_expert) < len(self.datasets):
            table.add_row("zero-shot mean", "", *(_percent(self.mean(way, zero_shot=True)) for way in ways))
        return table

    def markdown(self) -> str:
        """The same table for a file."""
        header = self.header()
        lines = [header, ["---"] + ["---:"] * (len(header) - 1), *self.rows()]
        return "".join("| " + " | ".join(line) + " |\n" for line in lines)

    def as_dict(self) -> dict[str, Any]:
        """All figures, unrounded, with the means."""
        means = {
            way: {"with_expert": self.mean(way, zero_shot=False), "zero_shot": self.mean(way, zero_shot=True)}
            for way in self.ndcg_at_10
        }
        return {**asdict(self), "mean_ndcg_at_10": means}


def evaluate(
    scores: ScoreTable,
    qrels: Mapping[str, Qrels],
    routers: Mapping[str, Router],
    features: Mapping[str, Vectors],
    indexes: Mapping[str, SearchIndex],
    depth: int,
    settings: dict[str, Any],
) -> Evaluation:
    """Evaluate on the test splits of the score table's datasets.

    Args:
        scores: test scores by dataset.
        qrels: test judgements by dataset.
        routers: fitted routers by name, the one to be deployed first.
        features: routing features of the test queries by dataset, in the score table's order.
        indexes: search index by dataset.
        depth: documents retrieved per query.
        settings: the recipe's, recorded with the figures.
    """
    experts = next(iter(scores.values())).experts
    ways = [BASE, *[name for name in experts if name != BASE], *routers, DATASET_ORACLE, INSTANCE_ORACLE]
    ndcg: dict[str, dict[str, float]] = {way: {} for way in ways}
    recall: dict[str, dict[str, float]] = {way: {} for way in ways}
    routed_to: dict[str, dict[str, float]] = {}
    for dataset, table in scores.items():
        for name in experts:
            ndcg[name][dataset] = float(table.ndcg_QE[:, table.of(name)].mean())
            recall[name][dataset] = float(table.recall_QE[:, table.of(name)].mean())
        for name, router in routers.items():
            weights_BT = router.weights(features[dataset])
            run = indexes[dataset].run(table.query_ids, mix(table, router.experts, weights_BT), depth)
            measured = utilities(qrels[dataset], run)
            ndcg[name][dataset] = float(np.mean([measured[i].ndcg_at_10 for i in table.query_ids]))
            recall[name][dataset] = float(np.mean([measured[i].recall_at_100 for i in table.query_ids]))
            shares = dict(zip(router.experts, weights_BT.mean(axis=0).tolist(), strict=True))
            routed_to.setdefault(dataset, shares)
        # The oracles choose among the experts, as in the paper; the base is not a candidate.
        columns = [table.of(name) for name in experts if name != BASE]
        best = columns[int(table.ndcg_QE[:, columns].mean(axis=0).argmax())]
        ndcg[DATASET_ORACLE][dataset] = float(table.ndcg_QE[:, best].mean())
        recall[DATASET_ORACLE][dataset] = float(table.recall_QE[:, best].mean())
        ndcg[INSTANCE_ORACLE][dataset] = float(table.ndcg_QE[:, columns].max(axis=1).mean())
        recall[INSTANCE_ORACLE][dataset] = float(table.recall_QE[:, columns].max(axis=1).mean())
    return Evaluation(
        datasets=list(scores),
        with_expert=[name for name in scores if name in experts],
        ndcg_at_10=ndcg,
        recall_at_100=recall,
        routers=list(routers),
        routed_to=routed_to,
        queries={name: len(table.query_ids) for name, table in scores.items()},
        settings=settings,
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def mix(table: SplitScores, experts: list[str], weights_BT: Vectors) -> Vectors:
    """Query vectors mixed by weight [B, d]; exact, since all experts search the same documents."""
    columns = [table.of(name) for name in experts]
    return np.einsum("bt,btd->bd", weights_BT, table.vectors_QEd[:, columns], dtype=np.float32)


def write_reports(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write the figures as JSON and the table as Markdown; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    figures, table = folder / "evaluation.json", folder / "evaluation.md"
    figures.write_text(json.dumps(evaluation.as_dict(), indent=2, ensure_ascii=False), encoding="utf-8")
    table.write_text(evaluation.markdown(), encoding="utf-8")
    return [figures, table]
