"""An evaluation as tables for the terminal, Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
from rich.table import Table

from routerretriever.evaluation.evaluation import Evaluation
from routerretriever.evaluation.system import Kind, System
from routerretriever.measures import MEASURES
from routerretriever.runtime.progress import figures_table


def terminal_table(evaluation: Evaluation) -> Table:
    """A row per test set, the systems that matter most; the files have all of them."""
    figures = evaluation.ndcg_at_10
    # What each domain could have at best comes first.
    shown = sorted(evaluation.headline, key=lambda system: system.kind is not Kind.OWN)
    notes = "\n".join(f"{system.name}: {system.note}" for system in evaluation.systems if system.note)
    table = figures_table("test set", *(system.name for system in shown), title="nDCG@10 x 100")
    table.caption = notes or None
    for name in evaluation.datasets:
        table.add_row(name, *(percent(figures[system.name].get(name)) for system in shown))
    table.add_section()
    table.add_row("mean", *(percent(evaluation.mean(system.name)) for system in shown), style="bold")
    if evaluation.zero_shot:
        means = [percent(evaluation.mean(system.name, zero_shot=True)) for system in shown]
        table.add_row("zero-shot mean", *means)
    return table


def calibration_table(
    domain: str, queries: int, ndcg_at_10: Mapping[float, float], weight: float, prior: float
) -> Table:
    """A domain's dev queries at every weight of BM25, and the one that was chosen."""
    table = figures_table("weight of BM25", "nDCG@10 x 100", title=f"{domain}: {queries} dev queries")
    for each, figure in ndcg_at_10.items():
        table.add_row(f"{each:g}", percent(figure), style="bold" if each == weight else None)
    table.caption = f"chosen: {weight:g}; without dev queries it would be {prior:g}"
    return table


def markdown(evaluation: Evaluation) -> str:
    """All systems on all sets, and how sure the differences are."""
    header = ["nDCG@10 x 100", *evaluation.datasets, "mean", "zero-shot"]
    figures = evaluation.ndcg_at_10
    systems = [
        [
            system,
            *(percent(figures[system].get(name)) for name in evaluation.datasets),
            percent(evaluation.mean(system)),
            percent(evaluation.mean(system, zero_shot=True)),
        ]
        for system in evaluation.measured
    ]
    differences = [
        [
            name,
            rival,
            f"{100 * d.mean:+.1f}",
            f"{100 * d.low:+.1f} to {100 * d.high:+.1f}",
            p_value(d.adjusted_p_value),
        ]
        for name, rivals in evaluation.differences.items()
        for rival, d in rivals.items()
    ]
    return (
        f"{_grid(header, systems)}\n{evaluation.deployed} minus its rivals, paired over queries; "
        "95 % bootstrap interval, p of a randomisation test, corrected for the number of comparisons "
        "(Holm):\n\n"
        + _grid(["test set", "rival", "difference", "95 % interval", "p"], differences)
        + _data_notes(evaluation)
    )


def _data_notes(evaluation: Evaluation) -> str:
    lines = [f"- {name}: {note}\n" for name, notes in evaluation.data_notes.items() for note in notes]
    return f"\nNoted of the data before the run:\n\n{''.join(lines)}" if lines else ""


def as_dict(evaluation: Evaluation) -> dict[str, Any]:
    """All means, unrounded."""
    routed = [system for system in evaluation.systems if system.routing is not None]
    return {
        "datasets": evaluation.datasets,
        "with_expert": evaluation.with_expert,
        "deployed": evaluation.deployed,
        "systems": {system.name: system.kind.name.lower() for system in evaluation.systems},
        "queries": {name: len(ids) for name, ids in evaluation.query_ids.items()},
        **{name: evaluation.means(name) for name in MEASURES},
        "mean_ndcg_at_10": {
            system: {
                "with_expert": evaluation.mean(system),
                "zero_shot": evaluation.mean(system, zero_shot=True),
            }
            for system in evaluation.measured
        },
        "regret": {system.name: evaluation.regret(system.name) for system in evaluation.of_kind(Kind.ROUTER)},
        "differences": {
            name: {rival: asdict(difference) for rival, difference in rivals.items()}
            for name, rivals in evaluation.differences.items()
        },
        "routed_to": {
            system.name: {name: shares(system, name) for name in system.measured} for system in routed
        },
        "encodings": {
            system.name: dict(system.encodings) for system in evaluation.systems if system.encodings
        },
        "tied": tied_shares(evaluation),
        "data_notes": evaluation.data_notes,
        "settings": evaluation.settings,
        "encoder": evaluation.encoder,
    }


def shares(system: System, dataset: str) -> dict[str, float]:
    """Expert -> mean weight that a routed system gives it on a test set."""
    assert system.routing is not None
    return system.routing.shares(dataset)


def tied_shares(evaluation: Evaluation) -> dict[str, float]:
    """Dataset -> share of queries on which two or more experts are equally the best."""
    bound = evaluation.upper_bound
    if bound is None or bound.routing is None:
        return {}
    return {
        name: float(((bound.routing.weights[name] > 0).sum(axis=1) > 1).mean())
        for name in evaluation.datasets
    }


def write_tables(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write means as JSON, tables as Markdown, every query's measures as Parquet; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    figures, tables, queries = (folder / f"evaluation.{kind}" for kind in ("json", "md", "parquet"))
    figures.write_text(json.dumps(as_dict(evaluation), indent=2, ensure_ascii=False), encoding="utf-8")
    tables.write_text(markdown(evaluation), encoding="utf-8")
    rows: dict[str, list[Any]] = {"system": [], "dataset": [], "query_id": []}
    values: dict[str, list[Any]] = {name: [] for name in MEASURES}
    for system, measured in evaluation.measured.items():
        for dataset, table in measured.items():
            ids = evaluation.query_ids[dataset]
            rows["system"] += [system] * len(ids)
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
