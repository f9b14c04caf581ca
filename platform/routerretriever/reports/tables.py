"""An evaluation as tables for the terminal, Markdown and JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
from rich.table import Table

from routerretriever.evaluation.evaluate import (
    DATASET_ORACLE,
    INSTANCE_ORACLE,
    OWN_EXPERT,
    PAPER,
    ROUTED,
    Evaluation,
)
from routerretriever.measures import MEASURES
from routerretriever.runtime.progress import figures_table
from routerretriever.types import BASE


def terminal_table(evaluation: Evaluation) -> Table:
    """A row per test set, the ways that matter most; the files have all of them."""
    figures = evaluation.ndcg_at_10
    shown = (BASE, *evaluation.single_models, ROUTED, PAPER, DATASET_ORACLE, INSTANCE_ORACLE)
    table = figures_table("test set", OWN_EXPERT, *shown, title="nDCG@10 x 100")
    for name in evaluation.datasets:
        own = figures[name][name] if name in evaluation.experts else None
        table.add_row(name, percent(own), *(percent(figures[way][name]) for way in shown))
    table.add_section()
    means = [percent(evaluation.mean(way)) for way in (OWN_EXPERT, *shown)]
    table.add_row("mean", *means, style="bold")
    if evaluation.zero_shot:
        means = [percent(evaluation.mean(way, zero_shot=True)) for way in (OWN_EXPERT, *shown)]
        table.add_row("zero-shot mean", *means)
    return table


def markdown(evaluation: Evaluation) -> str:
    """All ways on all sets, and how sure the differences are."""
    header = ["nDCG@10 x 100", *evaluation.datasets, "mean", "zero-shot"]
    figures = evaluation.ndcg_at_10
    ways = [
        [
            way,
            *(percent(figures[way][name]) for name in evaluation.datasets),
            percent(evaluation.mean(way)),
            percent(evaluation.mean(way, zero_shot=True)),
        ]
        for way in evaluation.measured
    ]
    differences = [
        [
            name,
            rival,
            f"{100 * d.mean:+.1f}",
            f"{100 * d.low:+.1f} to {100 * d.high:+.1f}",
            p_value(d.p_value),
        ]
        for name, rivals in evaluation.differences.items()
        for rival, d in rivals.items()
    ]
    return (
        f"{_grid(header, ways)}\n{ROUTED} minus its rivals, paired over queries; "
        "95 % bootstrap interval, p of a randomisation test:\n\n"
        + _grid(["test set", "rival", "difference", "95 % interval", "p"], differences)
    )


def as_dict(evaluation: Evaluation) -> dict[str, Any]:
    """All means, unrounded."""
    return {
        "datasets": evaluation.datasets,
        "with_expert": evaluation.with_expert,
        "queries": {name: len(ids) for name, ids in evaluation.query_ids.items()},
        **{name: evaluation.means(name) for name in MEASURES},
        "mean_ndcg_at_10": {
            way: {"with_expert": evaluation.mean(way), "zero_shot": evaluation.mean(way, zero_shot=True)}
            for way in evaluation.measured
        },
        "regret": {way: evaluation.regret(way) for way in evaluation.routers},
        "differences": {
            name: {rival: asdict(difference) for rival, difference in rivals.items()}
            for name, rivals in evaluation.differences.items()
        },
        "routed_to": evaluation.routed_to,
        "encodings": evaluation.encodings,
        "oracle_choice": evaluation.oracle_choice,
        "tied": evaluation.tied,
        "settings": evaluation.settings,
    }


def write_tables(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write means as JSON, tables as Markdown, every query's measures as Parquet; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    figures, tables, queries = (folder / f"evaluation.{kind}" for kind in ("json", "md", "parquet"))
    figures.write_text(json.dumps(as_dict(evaluation), indent=2, ensure_ascii=False), encoding="utf-8")
    tables.write_text(markdown(evaluation), encoding="utf-8")
    rows: dict[str, list[Any]] = {"way": [], "dataset": [], "query_id": []}
    values: dict[str, list[Any]] = {name: [] for name in MEASURES}
    for way, measured in evaluation.measured.items():
        for dataset, table in measured.items():
            ids = evaluation.query_ids[dataset]
            rows["way"] += [way] * len(ids)
            rows["dataset"] += [dataset] * len(ids)
            rows["query_id"] += ids
            for name in MEASURES:
                values[name].append(getattr(table, name))
    parquet.write_table(arrow.table({**rows, **{n: np.concatenate(v) for n, v in values.items()}}), queries)
    return [figures, tables, queries]


def percent(value: float | None) -> str:
    """A measure times 100, or a dash."""
    return "–" if value is None else f"{100 * value:.1f}"


def p_value(value: float) -> str:
    """Three digits, and no zero: resampling cannot show one."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _grid(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
