"""An evaluation as one HTML file that needs nothing else: tables, heat maps, the largest losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from routerretriever.evaluation.evaluate import (
    DATASET_ORACLE,
    INSTANCE_ORACLE,
    OWN_EXPERT,
    PAPER,
    ROUTED,
    Evaluation,
)
from routerretriever.measures import MEASURES
from routerretriever.reports.plots import render
from routerretriever.reports.tables import p_value, percent, write_tables
from routerretriever.types import BASE

_ORACLES = (DATASET_ORACLE, INSTANCE_ORACLE)
_LOSSES = 12
_NAMED_WEIGHT = 0.05
"""Weights below this are not listed with a query."""


def write_reports(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write tables, figures and the page; returns the files."""
    return [*write_tables(evaluation, folder), write_page(evaluation, folder)]


def write_page(evaluation: Evaluation, folder: Path) -> Path:
    """Write ``evaluation.html``; returns the file."""
    return render("report.html.j2", _content(evaluation), folder / "evaluation.html")


def _content(evaluation: Evaluation) -> dict[str, Any]:
    settings = evaluation.settings
    return {
        "name": settings["name"],
        "encoder": settings["encoder"]["name"],
        "router": settings["routing"]["router"],
        "experts": evaluation.experts,
        "datasets": evaluation.datasets,
        "zero_shot": evaluation.zero_shot,
        "total_queries": sum(len(ids) for ids in evaluation.query_ids.values()),
        "ways": _ways(evaluation),
        "rivals": _rivals(evaluation),
        "differences": _differences(evaluation),
        "heat_maps": _heat_maps(evaluation),
        "measures": list(MEASURES.values()),
        "others": _other_measures(evaluation),
        "losses": [_losses(evaluation, name) for name in evaluation.datasets],
        "recipe": json.dumps(settings, indent=2, ensure_ascii=False),
    }


def _ways(evaluation: Evaluation) -> list[dict[str, Any]]:
    figures = evaluation.ndcg_at_10
    columns: list[dict[str, float | None]] = [
        {way: figures[way][name] for way in figures} for name in evaluation.datasets
    ]
    columns.append({way: evaluation.mean(way) for way in figures})
    if evaluation.zero_shot:
        columns.append({way: evaluation.mean(way, zero_shot=True) for way in figures})
    honest = [way for way in figures if way not in _ORACLES]
    best = [max((column[way] or 0.0) for way in honest) for column in columns]
    starts = (evaluation.routers[0], DATASET_ORACLE)
    return [
        {
            "way": way,
            "ours": way == ROUTED,
            "rule": way in starts,
            "cells": [
                {"text": percent(column[way]), "best": way in honest and column[way] == top}
                for column, top in zip(columns, best, strict=True)
            ],
        }
        for way in figures
    ]


def _rivals(evaluation: Evaluation) -> list[str]:
    known = {rival for rivals in evaluation.differences.values() for rival in rivals}
    order = (BASE, OWN_EXPERT, *evaluation.single_models, PAPER, DATASET_ORACLE)
    return [rival for rival in order if rival in known]


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
                    "detail": f"{interval}, p {p_value(found.p_value)}",
                    "sure": found.significant,
                }
            )
        rows.append({"set": name, "queries": len(evaluation.query_ids[name]), "cells": cells})
    return rows


def _heat_maps(evaluation: Evaluation) -> list[dict[str, Any]]:
    routed = evaluation.routed_to[ROUTED]
    names = list(next(iter(routed.values())))
    return [
        {
            "title": "router",
            "experts": names,
            "tied": False,
            "rows": [{"set": s, "shares": [routed[s][name] for name in names]} for s in evaluation.datasets],
        },
        {
            "title": "oracle",
            "experts": evaluation.experts,
            "tied": True,
            "rows": [
                {"set": s, "shares": list(evaluation.oracle_choice[s].values()), "tied": evaluation.tied[s]}
                for s in evaluation.datasets
            ],
        },
    ]


def _other_measures(evaluation: Evaluation) -> list[dict[str, Any]]:
    rows = []
    for way in evaluation.measured:
        cells = [percent(evaluation.mean(way, measure_name=name)) for name in MEASURES]
        cells.append(percent(evaluation.average(evaluation.regret(way))))
        encodings = evaluation.average(evaluation.encodings[way]) if way in evaluation.encodings else None
        cells.append("–" if encodings is None else f"{encodings:.2f}")
        rows.append({"way": way, "ours": way == ROUTED, "cells": cells})
    return rows


def _losses(evaluation: Evaluation, name: str) -> dict[str, Any]:
    ours = evaluation.measured[ROUTED][name].ndcg_at_10
    best = evaluation.measured[INSTANCE_ORACLE][name].ndcg_at_10
    experts_QT = np.stack([evaluation.measured[e][name].ndcg_at_10 for e in evaluation.experts], axis=1)
    lost = best - ours
    return {
        "name": name,
        "queries": len(ours),
        "count": int((lost > 1e-9).sum()),
        "rows": [
            {
                "text": evaluation.texts[name][row],
                "ours": percent(ours[row]),
                "best": percent(best[row]),
                "expert": evaluation.experts[int(experts_QT[row].argmax())],
                "weights": _weights(evaluation, name, row),
            }
            for row in np.argsort(-lost, kind="stable")[:_LOSSES]
            if lost[row] > 1e-9
        ],
    }


def _weights(evaluation: Evaluation, name: str, row: int) -> str:
    experts = list(evaluation.routed_to[ROUTED][name])
    weights_T = evaluation.weights[name][row]
    shares = sorted(zip(weights_T.tolist(), experts, strict=True), reverse=True)
    return ", ".join(f"{expert} {100 * weight:.0f} %" for weight, expert in shares if weight >= _NAMED_WEIGHT)
