"""What a language model's grades say, as tables for the terminal and the page."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from routerretriever.evaluation.significance import Interval
from routerretriever.generation.grading import Estimate
from routerretriever.reports.plots import Section
from routerretriever.reports.tables import percent
from routerretriever.runtime.progress import figures_table
from routerretriever.studies.judging import Judging


def estimate_table(estimates: Mapping[str, Estimate]) -> Table:
    """How much there is to grade."""
    header = ("test set", "pairs", "graded already", "calls to come", "tokens at most")
    table = figures_table(*header, title="what the judge will be asked")
    rows = {name: (one.pairs, one.graded, one.calls, one.tokens) for name, one in estimates.items()}
    for name, counts in (rows | {"all": tuple(map(sum, zip(*rows.values(), strict=True)))}).items():
        table.add_row(name, *map(str, counts))
    return table


def judging_sections(judging: Judging) -> list[Section]:
    """All of it; agreement with people only where there is any."""
    sections = [_systems(judging), _graded(judging)]
    if any(one.noise for one in judging.sets):
        sections.append(_noise(judging))
    if any(one.agreement for one in judging.sets):
        sections.append(_agreement(judging))
    return sections


def _systems(judging: Judging) -> Section:
    names = list(dict.fromkeys(name for one in judging.sets for name in one.ndcg_at_10))
    intervals = {one.dataset: one.intervals for one in judging.sets}
    rows = [
        [name, *(_interval(own.get(name)) for own in intervals.values()), _interval(judging.means.get(name))]
        for name in names
    ]
    who = ", ".join(f"{key} {value}" for key, value in judging.judge.items())
    left_out = f" Not judged: {', '.join(judging.left_out)}." if judging.left_out else ""
    return Section(
        "nDCG@10 x 100 by the judge",
        f"Graded 0 to 3 by one language model ({who}); mean and 95 % bootstrap interval over queries. The "
        f"mean is over sets whose domain has an expert.{left_out}",
        ["", *intervals, "mean"],
        rows,
    )


def _graded(judging: Judging) -> Section:
    return Section(
        "What was graded",
        "Pairs without a grade are taken out of all results. Tokens are those spent on the set so far.",
        ["", "queries", "pairs", "without a grade", "tokens"],
        [
            [
                one.dataset,
                str(one.queries),
                str(one.pairs),
                ", ".join(f"{count} ({reason})" for reason, count in one.dropped.items()) or "0",
                str(one.tokens),
            ]
            for one in judging.sets
        ],
    )


def _noise(judging: Judging) -> Section:
    return Section(
        "The judge's own noise",
        "Some queries were graded twice, the second time with document and query in the other order. A "
        "difference of systems below the last column is noise of the judge.",
        ["", "pairs", "same grade, %", "weighted kappa", "grades apart", "nDCG@10 of a query", "of a system"],
        [
            [
                one.dataset,
                str(one.noise.pairs),
                percent(one.noise.equal),
                _number(one.noise.kappa),
                f"{one.noise.distance:.2f}",
                percent(one.noise.query_shift),
                percent(one.noise.system_shift),
            ]
            for one in judging.sets
            if one.noise
        ],
    )


def _agreement(judging: Judging) -> Section:
    return Section(
        "The judge and people",
        "On queries for which people found something relevant: the order of systems (Kendall's tau), nDCG@10 "
        "by query and system (Pearson, Spearman), and the share of pairs that the judge grades 2 or 3 among "
        "those that people call relevant, call irrelevant, and did not judge.",
        [
            "",
            "queries",
            "tau",
            "Pearson",
            "Spearman",
            "% 2-3 if relevant",
            "if irrelevant",
            "if unjudged",
        ],
        [
            [
                one.dataset,
                str(own.queries),
                *map(_number, (own.tau, own.pearson, own.spearman)),
                _share(own.relevant_graded, own.relevant),
                _share(own.irrelevant_graded, own.irrelevant),
                _share(own.unjudged_graded, own.unjudged),
            ]
            for one in judging.sets
            if (own := one.agreement)
        ],
    )


def _share(value: float | None, count: int) -> str:
    return f"{percent(value)} of {count}" if count else "–"


def _interval(one: Interval | None) -> str:
    return "–" if one is None else f"{100 * one.mean:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
