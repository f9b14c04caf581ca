"""What a run would do: a loop over its steps. Starts no Ray, loads no model, writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from routerretriever.artifacts.step import Status, Step, in_order
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.corpus.build import EncodeCorpus
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.scoring.table import ScoreSplit

_HIDDEN = ("read",)
"""Stages that take no time."""


@dataclass(frozen=True)
class PlannedStage:
    """Steps of one kind; ``to_do`` is empty if all of it is there."""

    stage: str
    to_do: str
    there: str
    asks_for: str


def plan_run(pipeline: Pipeline) -> list[PlannedStage]:
    """The stages of ``run``, in order."""
    seen: set[str] = set()
    planned = []
    for name, method in pipeline.methods.items():
        steps = [step for step in in_order(method.steps()) if step.key not in seen]
        seen |= {step.key for step in steps}
        for stage in dict.fromkeys(step.stage for step in steps if step.stage not in _HIDDEN):
            own = [step for step in steps if step.stage == stage]
            planned.append(_planned(f"{stage} ({name})", own, pipeline.store))
    recipe, tested = pipeline.recipe, len(pipeline.workspace.tested)
    return [
        *planned,
        PlannedStage("route", f"fit router {recipe.routing.router}", "", "the driver"),
        PlannedStage("evaluate", f"{tested} test set{'s' if tested > 1 else ''}", "", "the driver"),
        PlannedStage("register", f"bundle {recipe.registry.name}", "", "the driver, and MLflow"),
    ]


def plan_table(stages: Sequence[PlannedStage]) -> Table:
    """The plan for people."""
    table = Table("step", "to do", "there already", "asks for", title="plan", show_lines=True)
    for stage in stages:
        table.add_row(stage.stage, stage.to_do or "nothing", stage.there, stage.asks_for)
    return table


def _planned(stage: str, steps: Sequence[Step], store: ArtifactStore) -> PlannedStage:
    status = {step.key: step.status(store) for step in steps}
    there = [step for step in steps if status[step.key] is Status.PRESENT]
    missing = [step for step in steps if status[step.key] is not Status.PRESENT]
    left = _folds_left(steps, {step.key for step in missing})
    if steps and isinstance(steps[0], ScoreSplit):
        to_do = _scores([step for step in missing if isinstance(step, ScoreSplit)])
        present = f"{len(there)} of {len(steps)} partitions"
    else:
        to_do = [_line(step, status[step.key], left[step.key]) for step in missing if step.key in left]
        present = ", ".join(step.name for step in there if step.key in left)
        documents = sum(step.documents for step in missing if isinstance(step, EncodeCorpus))
        if documents:
            to_do.append(f"{documents} documents in all")
    return PlannedStage(stage, "\n".join(to_do), present, next((step.asks_for() for step in steps), ""))


def _folds_left(steps: Sequence[Step], missing: set[str]) -> dict[str, int]:
    """Key of each step that has a line of its own -> its folds that are missing; these share its line."""
    folds = {step.key: [one.key for one in getattr(step, "folds", ())] for step in steps}
    shared = {
        one for key, keys in folds.items() if key in missing or missing.isdisjoint(keys) for one in keys
    }
    return {key: len(missing.intersection(keys)) for key, keys in folds.items() if key not in shared}


def _line(step: Step, status: Status, folds: int) -> str:
    line = f"{step.name}: {step.work()}" if step.work() else step.name
    line += f", and {folds} fold{'s' if folds > 1 else ''} of a cross-validation" if folds else ""
    return f"{line}, {status.value}" if status in (Status.STARTED, Status.DAMAGED) else line


def _scores(missing: Sequence[ScoreSplit]) -> list[str]:
    """Partitions by collection, a line each: there may be very many."""
    groups: dict[str, dict[str, list[ScoreSplit]]] = {}
    for step in missing:
        groups.setdefault(step.corpus.collection.name, {}).setdefault(step.split, []).append(step)
    lines = [
        f"{name}: " + ", ".join(f"{split} {own[0].queries} x {len(own)}" for split, own in splits.items())
        for name, splits in groups.items()
    ]
    total = sum(step.queries for step in missing)
    return [*lines, f"(queries x models) {total} query encodings and searches in all"] if lines else []
