"""Known figures as data: what a recipe is to score, and whether it still does.

A file holds cases by name; each is a recipe, what to change in it, and figures by system and test set. A
case of nothing but the bare base trains nothing and reads no collection that it does not name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.table import Table

from routerretriever.config.loading import load_recipe, parse_settings, read_settings
from routerretriever.errors import RecipeError
from routerretriever.measures import MEASURES
from routerretriever.methods.known import METHODS
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.runtime.progress import figures_table, log
from routerretriever.studies.settings import ReproductionCase, ReproductionFile
from routerretriever.types import BASE

Verdict = Literal["OK", "OKish", "FAIL"]


@dataclass(frozen=True)
class Outcome:
    """One figure, as expected and as found, both times 100."""

    case: str
    system: str
    dataset: str
    measure: str
    expected: float
    found: float | None
    """None: the evaluation has no such figure, because its router could not be fitted."""
    verdict: Verdict


def reproduce(path: Path, only: Sequence[str], overrides: Sequence[str]) -> list[Outcome]:
    """Run the cases of a file, or some of them.

    Args:
        path: the file; recipes are found relative to it.
        only: names of cases; none means all.
        overrides: ``dotted.key=value`` settings for every recipe, after the cases' own.

    Raises:
        RecipeError: the file, a recipe, or a name in either is wrong.
        DatasetError: a collection is missing. Both are found before anything is computed.
    """
    cases = load_reproduction(path)
    if unknown := [name for name in only if name not in cases]:
        raise RecipeError(f"only: {path} has no case {unknown[0]!r}; there are {', '.join(cases)}")
    pipelines = {
        name: _pipeline(path, name, case, overrides)
        for name, case in cases.items()
        if not only or name in only
    }
    outcomes = []
    for name, pipeline in pipelines.items():
        log.info("case %s: %d figures", name, sum(len(figures) for figures in cases[name].expected.values()))
        outcomes += list(_compare(name, cases[name], pipeline))
    return outcomes


def _pipeline(path: Path, name: str, case: ReproductionCase, overrides: Sequence[str]) -> Pipeline:
    recipe = load_recipe(path.parent / case.recipe, [*case.changes, *overrides])
    for system, figures in case.expected.items():
        for dataset in figures:
            if dataset not in recipe.domains:
                there = ", ".join(recipe.domains)
                raise RecipeError(
                    f"{path}: cases.{name}.expected.{system}: no {dataset!r}; there are {there}"
                )
    if case.needs_base_only:
        named = {dataset: recipe.domains[dataset] for dataset in case.expected[BASE]}
        return Pipeline(recipe.model_copy(update={"domains": named}))
    known = [
        system
        for method, settings in recipe.methods.named().items()
        for system in METHODS[method].system_names(settings, recipe.expert_domains)
    ]
    for system in case.expected:
        if system not in known:
            raise RecipeError(f"{path}: cases.{name}.expected: no system is named {system!r}")
    return Pipeline(recipe)


def _compare(name: str, case: ReproductionCase, pipeline: Pipeline) -> Iterator[Outcome]:
    if case.needs_base_only:
        found = {BASE: pipeline.base_means(case.measure)}
    else:
        found = pipeline.evaluation.means(case.measure)
    for system, figures in case.expected.items():
        for dataset, expected in figures.items():
            value = found.get(system, {}).get(dataset)
            value = None if value is None else 100 * value
            yield Outcome(
                name, system, dataset, MEASURES[case.measure], expected, value, verdict(case, expected, value)
            )


def verdict(case: ReproductionCase, expected: float, found: float | None) -> Verdict:
    """How close a figure came."""
    # Figures are written with two digits.
    distance = float("inf") if found is None else round(abs(found - expected), 2)
    if distance <= case.tolerance:
        return "OK"
    return "OKish" if distance <= case.wide_tolerance else "FAIL"


def reproduction_table(outcomes: Sequence[Outcome]) -> Table:
    """For the terminal."""
    table = figures_table(
        "case", "system", "test set", "measure", "expected", "found", "verdict", title="measures x 100"
    )
    for one in outcomes:
        found = "–" if one.found is None else f"{one.found:.2f}"
        table.add_row(
            one.case, one.system, one.dataset, one.measure, f"{one.expected:.2f}", found, one.verdict
        )
    return table


def load_reproduction(path: Path) -> dict[str, ReproductionCase]:
    """Read and check a file of expected figures: cases by name.

    Raises:
        RecipeError: the file is missing, no YAML, or a setting is wrong.
    """
    return parse_settings(ReproductionFile, read_settings(path), str(path)).cases
