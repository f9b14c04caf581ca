"""What analyses show, tables and plots: for the terminal, and as one HTML page that needs nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from routerretriever.runtime.progress import figures_table

COLOURS = (
    "#2163af", "#d9730d", "#2f8f4e", "#b8336a", "#6b5bb5", "#7a5a3c", "#1b9aa5", "#8a8d1f", "#c2403a",
    "#555f6d",
)  # fmt: skip
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _MARGIN = 460, 300, 36, 40, 14
"""Of a plot, in the units of its SVG, which scales with the page."""
_GRID_LINES = 6


@dataclass(frozen=True)
class Lines:
    """Values over steps that are drawn equally far apart; None is a gap."""

    title: str
    steps: Sequence[str]
    steps_title: str
    series: Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class Scatter:
    """Groups of points [N, 2]; only what lies near what has a meaning, so there are no axes."""

    title: str
    groups: Mapping[str, Sequence[Sequence[float]]]


@dataclass(frozen=True)
class Section:
    """A table, what it means, and what is drawn of it."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    plots: Sequence[Lines | Scatter] = field(default=())


def section_table(section: Section) -> Table:
    """For the terminal."""
    table = figures_table(*section.header, title=section.title)
    for row in section.rows:
        table.add_row(*row)
    return table


def write_sections(name: str, sections: Iterable[Section], path: Path) -> Path:
    """Write a page of sections; returns the file."""
    content = [
        {
            "title": section.title,
            "note": section.note,
            "header": section.header,
            "rows": section.rows,
            "plots": [_drawn(plot) for plot in section.plots],
        }
        for section in sections
    ]
    return render("sections.html.j2", {"name": name, "sections": content}, path)


def render(template: str, content: dict[str, Any], path: Path) -> Path:
    """Fill one of this room's templates; returns the file."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("routerretriever.reports", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(environment.get_template(template).render(content), encoding="utf-8")
    return path


def _drawn(plot: Lines | Scatter) -> dict[str, Any]:
    drawn = _lines(plot) if isinstance(plot, Lines) else _scatter(plot)
    return {"title": plot.title, "width": _WIDTH, "height": _HEIGHT, "left": _LEFT, **drawn}


def _lines(plot: Lines) -> dict[str, Any]:
    known = [value for values in plot.series.values() for value in values if value is not None]
    marks = grid(min(known), max(known))
    right, low = _WIDTH - _MARGIN, _HEIGHT - _BOTTOM

    def x(step: int) -> float:
        return _LEFT + (right - _LEFT) * (step + 0.5) / len(plot.steps)

    def y(value: float) -> float:
        return low - (low - _MARGIN) * (value - marks[0]) / (marks[-1] - marks[0])

    return {
        "right": right,
        "grid": [{"y": y(mark), "label": f"{mark:g}"} for mark in marks],
        "steps": [{"x": x(step), "label": label} for step, label in enumerate(plot.steps)],
        "steps_title": plot.steps_title,
        "series": [
            {
                "name": name,
                "colour": COLOURS[number % len(COLOURS)],
                "points": [
                    {"x": x(step), "y": y(value), "value": f"{value:.1f}"}
                    for step, value in enumerate(values)
                    if value is not None
                ],
            }
            for number, (name, values) in enumerate(plot.series.items())
        ],
    }


def grid(low: float, high: float) -> list[float]:
    """Round values, at most a handful and at least two, between which everything lies."""
    for step in (digit * 10.0**power for power in itertools.count(-1) for digit in (1, 2, 5)):
        first, last = np.floor(low / step), np.ceil(high / step)
        if last - first < _GRID_LINES:
            break
    # round: 3 x 0.1 is not 0.3 to the last bit.
    return [round(float(step * mark), 1) for mark in np.arange(first, max(last, first + 1) + 1)]


def _scatter(plot: Scatter) -> dict[str, Any]:
    every = np.concatenate([np.asarray(points) for points in plot.groups.values()])
    low, span = every.min(axis=0), np.maximum(np.ptp(every, axis=0), 1e-9)
    size = np.array([_WIDTH, _HEIGHT]) - 2 * _MARGIN
    return {
        "groups": [
            {
                "name": name,
                "colour": COLOURS[number % len(COLOURS)],
                "points": np.round(_MARGIN + size * (np.asarray(points) - low) / span, 1).tolist(),
            }
            for number, (name, points) in enumerate(plot.groups.items())
        ]
    }
