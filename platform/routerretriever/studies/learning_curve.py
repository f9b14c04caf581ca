"""What training queries are worth: experts trained on nested samples of a domain's queries (Figure 3 of
arXiv 2409.02685), each size with one or more seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from routerretriever.reports.plots import Band, Lines, Section
from routerretriever.reports.tables import percent
from routerretriever.scoring.table import SplitScores
from routerretriever.types import BASE

_EXPERT = "expert"


@dataclass(frozen=True)
class CurvePoint:
    """Experts trained on one number of queries, a seed each: nDCG@10 on test."""

    queries: int
    experts: list[float]
    deployed: int
    """How many of them held-out queries found better than the base; the others answer as the base does."""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return sum(self.experts) / len(self.experts)


@dataclass(frozen=True)
class LearningCurve:
    """nDCG@10 by number of training queries."""

    dataset: str
    base: float
    points: list[CurvePoint]
    """By number of queries; the last is all there are."""

    @property
    def seeds(self) -> int:
        """Experts of each size."""
        return len(self.points[0].experts)


def learning_curve(
    scores: SplitScores, experts: Mapping[int, Sequence[str]], deployed: Mapping[str, bool]
) -> LearningCurve:
    """Read a learning curve from one test set's scores.

    Args:
        scores: of the base and all experts.
        experts: names by number of training queries.
        deployed: whether each was better than the base on held-out queries.
    """
    points = []
    for queries in sorted(experts):
        names = experts[queries]
        values = scores.utilities(names).mean(axis=0).tolist()
        points.append(CurvePoint(queries, values, sum(deployed[name] for name in names)))
    return LearningCurve(scores.dataset, float(scores.utilities([BASE]).mean()), points)


def learning_curve_section(curve: LearningCurve) -> Section:
    """A learning curve as a table and a plot."""
    steps = [str(point.queries) for point in curve.points]
    means = [100 * point.mean for point in curve.points]
    low, high = ([100 * pick(point.experts) for point in curve.points] for pick in (min, max))
    plot = Lines(
        "nDCG@10 x 100 on its own test set",
        steps,
        "training queries",
        {_EXPERT: means, BASE: [100 * curve.base] * len(steps)},
        {_EXPERT: Band(low, high)} if curve.seeds > 1 else {},
    )
    if curve.seeds > 1:
        spread = f"Mean and range of {curve.seeds} seeds, which learn from the same samples."
    else:
        spread = "One run each: a step down may be chance."
    return Section(
        f"{curve.dataset}: quality by number of training queries",
        "nDCG@10 x 100 on the test set. Each sample holds the smaller ones; the last one is all queries. "
        f"{spread} An expert that is not deployed answers as the base does. The plot draws the sizes equally "
        "far apart.",
        ["training queries", "expert", "lowest", "highest", BASE, "deployed"],
        [
            [
                str(point.queries),
                percent(point.mean),
                percent(min(point.experts)),
                percent(max(point.experts)),
                percent(curve.base),
                f"{point.deployed} of {curve.seeds}",
            ]
            for point in curve.points
        ],
        [plot],
    )
