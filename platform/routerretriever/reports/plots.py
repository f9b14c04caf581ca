"""What analyses show, tables and plots: for the terminal, and as one HTML page that needs nothing else."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from rich.table import Table

from routerretriever.runtime.progress import figures_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (
    "#2163af", "#d9730d", "#2f8f4e", "#b8336a", "#6b5bb5", "#7a5a3c", "#1b9aa5", "#8a8d1f", "#c2403a",
    "#555f6d",
)  # fmt: skip
_INCHES = (4.8, 3.3)
"""Of a plot; its SVG scales with the page."""
_BAR_INCHES = 0.1
_GRID: dict[str, Any] = {"color": "#5b6675", "alpha": 0.25}  # on light and on dark ground
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "routerretriever",  # the same figures make the same file
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#c3cad4",
    "axes.labelcolor": "#5b6675",
    "text.color": "#5b6675",
    "xtick.color": "#5b6675",
    "ytick.color": "#5b6675",
    "text.parse_math": False,  # names come from outside
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Band:
    """The least and the greatest value at each step."""

    low: Sequence[float]
    high: Sequence[float]


class _ShownInNotebooks:
    """A plot that a notebook draws where it is the last value of a cell."""

    def _repr_svg_(self) -> str:
        return svg(cast("Plot", self))


@dataclass(frozen=True)
class Lines(_ShownInNotebooks):
    """Values over steps that are drawn equally far apart; None is a gap."""

    title: str
    steps: Sequence[str]
    steps_title: str
    series: Mapping[str, Sequence[float | None]]
    bands: Mapping[str, Band] = field(default_factory=dict)
    """By series: where its values lie."""


@dataclass(frozen=True)
class Scatter(_ShownInNotebooks):
    """Groups of points [N, 2]; only what lies near what has a meaning, so there are no axes."""

    title: str
    groups: Mapping[str, Sequence[Sequence[float]]]


@dataclass(frozen=True)
class Bars(_ShownInNotebooks):
    """Values of several series, side by side for each group; None is a gap."""

    title: str
    groups: Sequence[str]
    series: Mapping[str, Sequence[float | None]]


Plot = Lines | Scatter | Bars


@dataclass(frozen=True)
class Section:
    """A table, what it means, and what is drawn of it."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    plots: Sequence[Lines | Scatter] = field(default=())
    code: str = ""
    """To be copied."""


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
            "code": section.code,
            "plots": [{"title": plot.title, "svg": svg(plot)} for plot in section.plots],
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


def svg(plot: Plot) -> str:
    """A plot as an ``svg`` element."""
    # No pyplot: it keeps figures in a list of the process.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_size(plot), layout="constrained")
        axes = figure.add_subplot()
        match plot:
            case Lines():
                _draw_lines(axes, plot)
            case Scatter():
                _draw_scatter(axes, plot)
            case Bars():
                _draw_bars(axes, plot)
        figure.legend(loc="outside lower center", ncols=3)
        written = io.StringIO()
        # Screen readers tell the title.
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Title": plot.title})
    text = written.getvalue()
    return text[text.index("<svg") :]


def _size(plot: Plot) -> tuple[float, float]:
    """In inches; bars lie below each other, so that names of any length can be read."""
    if not isinstance(plot, Bars):
        return _INCHES
    return _INCHES[0], 0.8 + _BAR_INCHES * len(plot.groups) * (len(plot.series) + 1)


def _draw_lines(axes: Axes, plot: Lines) -> None:
    places = np.arange(len(plot.steps))
    for number, (name, values) in enumerate(plot.series.items()):
        known = [np.nan if value is None else value for value in values]
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(
            places, known, marker="o", markersize=4, label=name, color=colour,
            linestyle="-" if number == 0 else "--",
        )  # fmt: skip
        if name in plot.bands:
            band = plot.bands[name]
            axes.fill_between(places, band.low, band.high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xticks(places, plot.steps)
    axes.set_xlabel(plot.steps_title)
    axes.grid(axis="y", **_GRID)


def _draw_bars(axes: Axes, plot: Bars) -> None:
    height = 1 / (len(plot.series) + 1)
    places = np.arange(len(plot.groups))
    for number, (name, values) in enumerate(plot.series.items()):
        known = [np.nan if value is None else value for value in values]
        axes.barh(places + number * height, known, height, label=name, color=COLOURS[number % len(COLOURS)])
    axes.set_yticks(places + (len(plot.series) - 1) * height / 2, plot.groups)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.grid(axis="x", **_GRID)
    axes.set_axisbelow(True)


def _draw_scatter(axes: Axes, plot: Scatter) -> None:
    for number, (name, points) in enumerate(plot.groups.items()):
        x, y = np.asarray(points).T
        axes.scatter(x, y, s=8, alpha=0.65, label=name, color=COLOURS[number % len(COLOURS)], linewidths=0)
    axes.set_axis_off()
