"""The paper's analyses (arXiv 2409.02685) on any collections, from the score table alone.

``growing`` is Table 3 and Figures 4 and 5, ``with_and_without`` Tables 1 and 2, ``centroids`` the k-means
ablation. Figure 6 is in the evaluation's report. No expert is run and nothing is encoded for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from routerretriever.config import BASE, RoutingSettings
from routerretriever.console import figures_table
from routerretriever.evaluation.bench import RouterBench
from routerretriever.evaluation.evaluate import PAPERS
from routerretriever.evaluation.tables import percent
from routerretriever.measures import Values
from routerretriever.routing import Router
from routerretriever.scoring import SplitScores


@dataclass(frozen=True)
class Growth:
    """nDCG@10 with the first experts only: means over sets whose expert is among them, and elsewhere."""

    experts: list[str]
    router: float | None
    """None, here and below, where there is no such set."""
    dataset_oracle: float | None
    instance_oracle: float | None
    router_elsewhere: float | None
    base_elsewhere: float | None


@dataclass(frozen=True)
class Presence:
    """What a domain's own expert is worth to it."""

    dataset: str
    base: float
    without: float
    """The router as if this expert and its queries had never been there."""
    with_it: float


@dataclass(frozen=True)
class Centroids:
    """The pilot library with k centroids per group: mean nDCG@10 over sets with an expert, and without."""

    clusters: int
    in_domain: float | None
    zero_shot: float | None


@dataclass(frozen=True)
class NoiseFloor:
    """How much of InstanceOracle's gain is luck: the oracle over re-seeded copies of one expert."""

    dataset: str
    copies: int
    single: float
    """Mean nDCG@10 over the copies, each alone."""
    best_copy: float
    copies_oracle: float
    """The best copy for each query: they differ by their seeds only."""
    experts_oracle: float
    """InstanceOracle over the recipe's experts, of which there may be another number."""


@dataclass(frozen=True)
class Analyses:
    """All of them."""

    growing: list[Growth]
    with_and_without: list[Presence]
    centroids: list[Centroids]


def analyse(
    bench: RouterBench, settings: RoutingSettings, order: Sequence[str], clusters: Sequence[int]
) -> Analyses:
    """Run the analyses on a bench over the test split.

    Args:
        bench: scored queries, and the test split to measure on.
        settings: the deployed router's.
        order: in which experts are added.
        clusters: numbers of centroids to try.

    Raises:
        ValueError: the order does not name each expert once.
    """
    if sorted(order) != sorted(bench.experts):
        raise ValueError(f"order: found {', '.join(order)}; name each once of {', '.join(bench.experts)}")
    whole = bench.router(settings, bench.experts)
    return Analyses(
        [_growth(bench, settings, list(order[:count])) for count in range(1, len(order) + 1)],
        [_presence(bench, settings, whole, name) for name in bench.experts if name in bench.datasets],
        [_centroids(bench, count) for count in clusters],
    )


def _growth(bench: RouterBench, settings: RoutingSettings, experts: list[str]) -> Growth:
    router = bench.router(settings, experts)
    routed = {name: _mean_of(bench.ndcg(router, settings, name)) for name in bench.datasets}
    inside = [name for name in experts if name in bench.datasets]
    outside = [name for name in bench.datasets if name not in experts]
    tables = {name: bench.scores[name].utilities(experts) for name in bench.datasets}
    return Growth(
        experts=experts,
        router=_mean(routed[name] for name in inside),
        dataset_oracle=_mean(tables[name].mean(axis=0).max() for name in inside),
        instance_oracle=_mean(tables[name].max(axis=1).mean() for name in inside),
        router_elsewhere=_mean(routed[name] for name in outside),
        base_elsewhere=_mean(bench.scores[name].utilities([BASE]).mean() for name in outside),
    )


def _presence(bench: RouterBench, settings: RoutingSettings, whole: Router, dataset: str) -> Presence:
    others = [name for name in bench.experts if name != dataset]
    with_it = bench.ndcg(whole, settings, dataset)
    base = _mean_of(bench.scores[dataset].utilities([BASE])[:, 0])
    without = _mean_of(bench.ndcg(bench.router(settings, others), settings, dataset)) if others else base
    return Presence(dataset, base, without, _mean_of(with_it))


def _centroids(bench: RouterBench, clusters: int) -> Centroids:
    settings = PAPERS.model_copy(update={"router": "pilots", "clusters": clusters})
    router = bench.router(settings, bench.experts)
    figures = {name: _mean_of(bench.ndcg(router, settings, name)) for name in bench.datasets}
    inside = _mean(value for name, value in figures.items() if name in bench.experts)
    return Centroids(clusters, inside, _mean(v for name, v in figures.items() if name not in bench.experts))


def _mean_of(values: Values) -> float:
    return float(values.mean())


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return float(np.mean(listed)) if listed else None


def noise_floor(copies: SplitScores, experts: SplitScores) -> NoiseFloor:
    """Compare the oracle over copies of one expert with the oracle over the experts, on one test set."""
    of_copies_QC = copies.utilities([name for name in copies.experts if name != BASE])
    of_experts_QT = experts.utilities([name for name in experts.experts if name != BASE])
    return NoiseFloor(
        dataset=copies.dataset,
        copies=of_copies_QC.shape[1],
        single=_mean_of(of_copies_QC),
        best_copy=float(of_copies_QC.mean(axis=0).max()),
        copies_oracle=_mean_of(of_copies_QC.max(axis=1)),
        experts_oracle=_mean_of(of_experts_QT.max(axis=1)),
    )


def noise_floor_table(floor: NoiseFloor) -> Table:
    """For the terminal."""
    table = figures_table("", "nDCG@10 x 100", title=f"{floor.dataset}: luck and choice")
    for label, value in (
        (f"one of {floor.copies} copies, mean", floor.single),
        ("best copy on this test set", floor.best_copy),
        ("best copy for each query", floor.copies_oracle),
        ("best expert for each query (InstanceOracle)", floor.experts_oracle),
    ):
        table.add_row(label, percent(value))
    return table


def analyses_tables(analyses: Analyses) -> list[Table]:
    """For the terminal."""
    growing = figures_table(
        "experts, added in turn", "router", "DatasetOracle", "InstanceOracle", "router elsewhere",
        "base elsewhere", title="nDCG@10 x 100 with a growing number of experts",
    )  # fmt: skip
    for number, row in enumerate(analyses.growing, start=1):
        figures = (
            row.router,
            row.dataset_oracle,
            row.instance_oracle,
            row.router_elsewhere,
            row.base_elsewhere,
        )
        growing.add_row(f"{number}: + {row.experts[-1]}", *(percent(value) for value in figures))
    presence = figures_table("test set", "base", "router without its expert", "router with it",
                             title="nDCG@10 x 100 with and without the own expert")  # fmt: skip
    for one in analyses.with_and_without:
        presence.add_row(one.dataset, percent(one.base), percent(one.without), percent(one.with_it))
    centroids = figures_table(
        "centroids per group", "in domain", "zero-shot", title="pilot library, nDCG@10 x 100"
    )
    for entry in analyses.centroids:
        centroids.add_row(str(entry.clusters), percent(entry.in_domain), percent(entry.zero_shot))
    return [growing, presence, centroids]
