"""An evaluation as one HTML file that needs nothing else: verdict, tables, heat maps, largest losses."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from routerretriever.evaluation.evaluation import Evaluation
from routerretriever.evaluation.system import Kind, System
from routerretriever.measures import MEASURES
from routerretriever.reports.plots import Bars, render, svg
from routerretriever.reports.tables import p_value, percent, shares, tied_shares, write_tables
from routerretriever.reports.verdict import verdict
from routerretriever.runtime.machine import git_commit

_LOSSES = 12
_NAMED_WEIGHT = 0.05
"""Weights below this are not listed with a query."""


def write_reports(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write tables, figures and the page; returns the files."""
    return [*write_tables(evaluation, folder), write_page(evaluation, folder)]


def write_page(evaluation: Evaluation, folder: Path) -> Path:
    """Write ``evaluation.html``; returns the file."""
    return render("report.html.j2", _content(evaluation), folder / "evaluation.html")


def plot(evaluation: Evaluation) -> Bars:
    """The page's chart, which a notebook draws: nDCG@10 x 100 by test set.

    Of each set it shows what it can have: of the base, of its own expert, routed, and as it is searched.
    """
    shown = [
        *evaluation.of_kind(Kind.BASE),
        *evaluation.of_kind(Kind.OWN),
        evaluation.system(evaluation.deployed),
    ]
    names = dict.fromkeys(system.name for system in shown + [one for one in evaluation.systems if one.served])
    return Bars(
        "nDCG@10 x 100 by test set",
        evaluation.datasets,
        {name: _percents(evaluation, name) for name in names},
    )


def _content(evaluation: Evaluation) -> dict[str, Any]:
    settings = evaluation.settings
    return {
        "name": settings["name"],
        "date": datetime.now(UTC).strftime("%-d %B %Y, %H:%M UTC"),
        "version": metadata.version("routerretriever"),
        "commit": git_commit(),
        "verdict": verdict(evaluation),
        "chart": svg(plot(evaluation)),
        "encoder": settings["encoder"]["name"],
        "encoder_settings": evaluation.encoder,
        "router": settings["routing"]["router"],
        "deployed": evaluation.deployed,
        "experts": evaluation.experts,
        "datasets": evaluation.datasets,
        "zero_shot": evaluation.zero_shot,
        "total_queries": sum(len(ids) for ids in evaluation.query_ids.values()),
        "systems": _systems(evaluation),
        "notes": [f"{system.name}: {system.note}" for system in evaluation.systems if system.note],
        "data_notes": evaluation.data_notes,
        "rivals": _rivals(evaluation),
        "differences": _differences(evaluation),
        "heat_maps": _heat_maps(evaluation),
        "measures": list(MEASURES.values()),
        "others": _other_measures(evaluation),
        "losses": _losses(evaluation),
        "recipe": json.dumps(settings, indent=2, ensure_ascii=False),
    }


def _percents(evaluation: Evaluation, system: str) -> list[float | None]:
    figures = evaluation.ndcg_at_10[system]
    return [100 * figures[name] if name in figures else None for name in evaluation.datasets]


def _systems(evaluation: Evaluation) -> list[dict[str, Any]]:
    figures = evaluation.ndcg_at_10
    columns: list[dict[str, float | None]] = [
        {system: figures[system].get(name) for system in figures} for name in evaluation.datasets
    ]
    columns.append({system: evaluation.mean(system) for system in figures})
    if evaluation.zero_shot:
        columns.append({system: evaluation.mean(system, zero_shot=True) for system in figures})
    # What each domain's own expert reaches takes knowing the domain, as an oracle does.
    honest = [system.name for system in evaluation.systems if system.kind not in (Kind.ORACLE, Kind.OWN)]
    best = [max((column[system] or 0.0) for system in honest) for column in columns]
    ruled = (Kind.ROUTER, Kind.HYBRID, Kind.ORACLE)
    starts = {own[0].name for kind in ruled if (own := evaluation.of_kind(kind))}
    return [
        {
            "system": system,
            "ours": system == evaluation.deployed,
            "rule": system in starts,
            "cells": [
                {"text": percent(column[system]), "best": system in honest and column[system] == top}
                for column, top in zip(columns, best, strict=True)
            ],
        }
        for system in figures
    ]


def _rivals(evaluation: Evaluation) -> list[str]:
    known = {rival for rivals in evaluation.differences.values() for rival in rivals}
    return [system for system in evaluation.measured if system in known]


def _differences(evaluation: Evaluation) -> list[dict[str, Any]]:
    rows, columns = [], _rivals(evaluation)
    for name, rivals in evaluation.differences.items():
        cells: list[dict[str, Any] | None] = []
        for rival in columns:
            found = rivals.get(rival)
            if found is None:
                cells.append(None)
                continue
            interval = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
            cells.append(
                {
                    "mean": f"{100 * found.mean:+.1f}",
                    "detail": f"{interval}, p {p_value(found.adjusted_p_value)}",
                    "sure": found.significant,
                }
            )
        rows.append({"set": name, "queries": len(evaluation.query_ids[name]), "cells": cells})
    return rows


def _heat_maps(evaluation: Evaluation) -> list[dict[str, Any]]:
    maps = []
    tied = tied_shares(evaluation)
    shown = [evaluation.system(evaluation.deployed)]
    if evaluation.upper_bound is not None:
        shown.append(evaluation.upper_bound)
    for system in shown:
        if system.routing is None:
            continue
        is_bound = system is evaluation.upper_bound
        maps.append(
            {
                "title": system.name,
                "experts": system.routing.experts,
                "tied": is_bound,
                "rows": [
                    {
                        "set": name,
                        "shares": list(shares(system, name).values()),
                        "tied": tied[name] if is_bound else None,
                    }
                    for name in evaluation.datasets
                ],
            }
        )
    return maps


def _other_measures(evaluation: Evaluation) -> list[dict[str, Any]]:
    rows = []
    for system in evaluation.systems:
        cells = [percent(evaluation.mean(system.name, measure_name=name)) for name in MEASURES]
        complete = system.measured.keys() >= set(evaluation.datasets)
        regret = evaluation.regret(system.name) if complete else {}
        cells.append(percent(evaluation.average(regret) if regret else None))
        encodings = evaluation.average(system.encodings) if system.encodings else None
        cells.append("–" if encodings is None else f"{encodings:.2f}")
        rows.append({"system": system.name, "ours": system.name == evaluation.deployed, "cells": cells})
    return rows


def _losses(evaluation: Evaluation) -> list[dict[str, Any]]:
    experts = evaluation.of_kind(Kind.EXPERT)
    return [_losses_on(evaluation, name, experts) for name in evaluation.datasets] if experts else []


def _losses_on(evaluation: Evaluation, name: str, experts: list[System]) -> dict[str, Any]:
    ours = evaluation.measured[evaluation.deployed][name].ndcg_at_10
    experts_QT = np.stack([system.measured[name].ndcg_at_10 for system in experts], axis=1)
    best = experts_QT.max(axis=1)
    lost = best - ours
    deployed = evaluation.system(evaluation.deployed)
    return {
        "name": name,
        "queries": len(ours),
        "count": int((lost > 1e-9).sum()),
        "rows": [
            {
                "text": evaluation.texts[name][row],
                "ours": percent(ours[row]),
                "best": percent(best[row]),
                "expert": experts[int(experts_QT[row].argmax())].name,
                "weights": _weights(deployed, name, row),
            }
            for row in np.argsort(-lost, kind="stable")[:_LOSSES]
            if lost[row] > 1e-9
        ],
    }


def _weights(system: System, name: str, row: int) -> str:
    if system.routing is None:
        return ""
    weights_T = system.routing.weights[name][row]
    ranked = sorted(zip(weights_T.tolist(), system.routing.experts, strict=True), reverse=True)
    return ", ".join(f"{expert} {100 * weight:.0f} %" for weight, expert in ranked if weight >= _NAMED_WEIGHT)
