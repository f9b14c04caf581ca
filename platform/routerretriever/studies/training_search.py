"""A search over how experts are trained, on dev: what is tried, what each trial reached, and which is best.

A trial trains an expert of every domain, perhaps with several seeds, under the same settings. What counts is
the gain over the base in dev nDCG@10 at the best step, as a mean over the domains. ``trials`` runs them.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from rich.table import Table
from ruamel.yaml import YAML

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.config.tuning import TuningSettings, Values, describe
from routerretriever.hashing import content_hash
from routerretriever.reports.plots import Lines, Section
from routerretriever.runtime.progress import figures_table
from routerretriever.training.job import TrainingJob
from routerretriever.training.settings import TrainingSettings

_DRAWN = 5
"""Trials whose course is drawn, the best ones."""
WARNING = (
    "The best of several trials on dev owes a part of its gain to chance; `evaluate` with these settings "
    "says on test what they are worth."
)


@dataclass(frozen=True)
class TrialRun:
    """One domain's training with one seed: dev nDCG@10."""

    domain: str
    seed: int
    base: float
    history: list[tuple[int, float]]
    """Step and nDCG@10 of every evaluation, the first before any step."""
    seconds: float

    @property
    def steps(self) -> int:
        """That were taken."""
        return self.history[-1][0]

    @property
    def best_step(self) -> int:
        """The first with the best nDCG@10."""
        return max(self.history, key=lambda each: each[1])[0]

    def gain(self, evaluations: int | None = None) -> float:
        """Over the base at the best step so far; None counts all evaluations."""
        seen = self.history if evaluations is None else self.history[: evaluations + 1]
        return max(value for _, value in seen) - self.base


@dataclass(frozen=True)
class TrainingTrial:
    """Settings that were tried, and what they reached."""

    values: Values
    """What it puts in the place of the recipe's settings."""
    training: TrainingSettings
    """With these in place."""
    runs: list[TrialRun]
    stopped: bool = False
    """Whether it was ended early, as it was behind the others."""
    failed: str | None = None
    """Why it came to no end, if it did not."""

    @cached_property
    def gains(self) -> dict[str, float]:
        """By domain, each the mean over the seeds."""
        return gains(self.runs)

    @property
    def mean_gain(self) -> float:
        """Over the domains."""
        return _mean(self.gains)

    @property
    def worst(self) -> str:
        """The domain that gained least."""
        return min(self.gains, key=lambda name: self.gains[name])

    @property
    def steps(self) -> int:
        """Of all runs."""
        return sum(run.steps for run in self.runs)

    @property
    def seconds(self) -> float:
        """Of all runs."""
        return sum(run.seconds for run in self.runs)

    @property
    def ended(self) -> str:
        """How it ended, for people."""
        if self.failed is not None:
            return f"failed: {self.failed}"
        return "stopped early" if self.stopped else "to its end"

    @classmethod
    def read(cls, plan: TrialPlan, content: Mapping[str, Any]) -> TrainingTrial:
        """A trial from its artifact's manifest."""
        runs = [
            TrialRun(**{**run, "history": [(step, value) for step, value in run["history"]]})
            for run in content["runs"]
        ]
        return cls(plan.values, plan.training, runs, content["stopped"], content["failed"])

    def course(self) -> list[float]:
        """Mean gain after each evaluation on dev; a run that has ended keeps its own."""
        evaluations = max(len(run.history) for run in self.runs) - 1
        return [_mean(gains(self.runs, count)) for count in range(1, evaluations + 1)]


def gains(runs: Sequence[TrialRun], evaluations: int | None = None) -> dict[str, float]:
    """Gain over the base by domain, each the mean over its seeds."""
    by_domain: dict[str, list[float]] = {}
    for run in runs:
        by_domain.setdefault(run.domain, []).append(run.gain(evaluations))
    return {name: float(np.mean(values)) for name, values in by_domain.items()}


def _mean(values: Mapping[str, float]) -> float:
    return float(np.mean(list(values.values())))


@dataclass(frozen=True)
class TrialPlan:
    """A trial to run."""

    values: Values
    training: TrainingSettings
    jobs: tuple[TrainingJob, ...]
    """A run for each domain and seed, named as the domain."""
    longest: int
    """Steps of the longest run, at most."""
    steps: int
    """Of all runs, at most."""

    @property
    def key(self) -> str:
        """Where its result lies if it came to an end of its own."""
        return f"trials/{content_hash([job.key for job in self.jobs])}"

    @property
    def evaluations(self) -> int:
        """On dev, at most."""
        return -(-self.longest // self.training.evaluate_every)


@dataclass(frozen=True)
class Search:
    """Trials that are compared with each other."""

    plans: tuple[TrialPlan, ...]
    settings: TuningSettings

    @property
    def identity(self) -> str:
        """Hash of all that says which trials end early."""
        asha = self.settings.grace_evaluations, self.settings.reduction
        return content_hash([plan.key for plan in self.plans], asha)

    def key(self, plan: TrialPlan, stopped: bool) -> str:
        """Where a trial's result lies. One that was ended early is a result of this search only."""
        return f"{plan.key}-stopped-{self.identity}" if stopped else plan.key

    def result(self, plan: TrialPlan, store: ArtifactStore) -> TrainingTrial | None:
        """What a trial has reached; None if it has not been run to an end."""
        for stopped in (False, True):
            key = self.key(plan, stopped)
            if store.verify(key):
                return TrainingTrial.read(plan, store.manifest(key))
        return None

    def table(self, store: ArtifactStore) -> Table:
        """What a run would do, for the terminal."""
        table = figures_table("settings", "runs", "steps at most", "to do", title="trials")
        left = 0
        for plan in self.plans:
            there = self.result(plan, store) is not None
            left += 0 if there else plan.steps
            to_do = "there already" if there else "to be run"
            table.add_row(describe(plan.values), str(len(plan.jobs)), str(plan.steps), to_do)
        table.add_section()
        table.add_row("to be run", "", str(left), "")
        return table


@dataclass(frozen=True)
class Ranking:
    """All trials of a search, the best first."""

    trials: list[TrainingTrial]

    @property
    def best(self) -> TrainingTrial:
        """With the highest mean gain."""
        return self.trials[0]

    @property
    def training(self) -> dict[str, Any]:
        """What the best one changes, as the recipe's ``training`` would give it; empty if it changes nothing.

        An adapter is given whole, since its kind says which settings it has.
        """
        best, settings = self.best, self.best.training.model_dump(mode="json")
        changed = {name.partition(".")[0] for name in best.values}
        made = {name: value for name, value in settings.items() if name in changed}
        if "adapter" in made:
            given = best.training.adapter.model_dump(mode="json", exclude_defaults=True)
            made["adapter"] = {"kind": best.training.adapter.kind, **given}
        return made

    def advice(self) -> str:
        """What to put into the recipe, as YAML with comments."""
        if not self.training:
            return f"# The recipe's own settings are the best that were tried.\n# {WARNING}\n"
        text = io.StringIO()
        yaml = YAML()
        yaml.default_flow_style = None  # lists in a line
        yaml.dump({"training": self.training}, text)
        return f"# Into the recipe:\n{text.getvalue()}# {WARNING}\n"

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        trials = [
            {
                "values": trial.values,
                "mean_gain": trial.mean_gain,
                "gains": trial.gains,
                "worst": trial.worst,
                "steps": trial.steps,
                "seconds": trial.seconds,
                "stopped": trial.stopped,
                "failed": trial.failed,
                "runs": [asdict(run) for run in trial.runs],
            }
            for trial in self.trials
        ]
        return {"training": self.training, "trials": trials}


def rank(trials: Sequence[TrainingTrial]) -> Ranking:
    """Order trials by mean gain; of two alike, the better worst domain comes first, and then fewer steps."""
    return Ranking(
        sorted(
            trials,
            key=lambda trial: (
                trial.failed is not None, round(-trial.mean_gain, 6), -trial.gains[trial.worst], trial.steps
            ),
        )
    )  # fmt: skip


def ranking_sections(ranking: Ranking) -> list[Section]:
    """All trials, the course of the best, and their gains by domain."""
    trials = ranking.trials
    names = [describe(trial.values) for trial in trials]
    domains = list(ranking.best.gains)
    courses = {name: trial.course() for name, trial in zip(names[:_DRAWN], trials, strict=False)}
    longest = max(len(course) for course in courses.values())
    plot = Lines(
        "Mean gain over the base",
        [str(number) for number in range(1, longest + 1)],
        "evaluations on dev",
        {
            name: [100 * gain for gain in course] + [None] * (longest - len(course))
            for name, course in courses.items()
        },
    )
    return [
        Section(
            "Gain over the base on dev",
            f"nDCG@10 x 100 at the best step, mean over the domains, the best first. {WARNING}",
            ["settings", "mean gain", "worst domain", "steps", "seconds", "ended"],
            [
                [
                    name,
                    _signed(trial.mean_gain),
                    f"{trial.worst} {_signed(trial.gains[trial.worst])}",
                    str(trial.steps),
                    f"{trial.seconds:.0f}",
                    trial.ended,
                ]
                for name, trial in zip(names, trials, strict=True)
            ],
            [plot],
            ranking.advice(),
        ),
        Section(
            "By domain",
            "nDCG@10 x 100 over the base on dev, each at its best step.",
            ["settings", *domains],
            [
                [name, *(_signed(trial.gains[domain]) for domain in domains)]
                for name, trial in zip(names, trials, strict=True)
            ],
        ),
    ]


def _signed(gain: float) -> str:
    return f"{100 * gain:+.1f}"
