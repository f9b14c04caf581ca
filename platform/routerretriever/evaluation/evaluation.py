"""An evaluation: systems on test sets, with means, regrets and paired tests. It knows no method by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from routerretriever.errors import BadInput
from routerretriever.evaluation.significance import Difference, compare_all
from routerretriever.evaluation.system import Kind, System
from routerretriever.measures import Measured

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Evaluation:
    """Measures by system and test set, query by query."""

    datasets: list[str]
    experts: list[str]
    """Domains that have an expert."""
    systems: list[System]
    """In the order of their kinds."""
    deployed: str
    """The system that is registered and served."""
    query_ids: dict[str, list[str]]
    texts: dict[str, list[str]]
    """Test set -> its queries."""
    settings: dict[str, Any]
    data_notes: dict[str, list[str]] = field(default_factory=dict)
    """Collection -> what was noted of it before the run: leaks, copies, cut texts."""
    encoder: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Setting of the base encoder -> the value that it was run with, and where that came from."""

    @property
    def with_expert(self) -> list[str]:
        """The datasets whose own domain has an expert; the others are zero-shot."""
        return [name for name in self.datasets if name in self.experts]

    @property
    def zero_shot(self) -> list[str]:
        """The datasets without an expert."""
        return [name for name in self.datasets if name not in self.experts]

    @cached_property
    def measured(self) -> dict[str, Mapping[str, Measured]]:
        """System -> dataset -> arrays [Q]."""
        return {system.name: system.measured for system in self.systems}

    def system(self, name: str) -> System:
        """One system by its name."""
        return next(system for system in self.systems if system.name == name)

    def of_kind(self, kind: Kind) -> list[System]:
        """The systems of one kind."""
        return [system for system in self.systems if system.kind == kind]

    @property
    def headline(self) -> list[System]:
        """The systems that matter most."""
        return [system for system in self.systems if system.headline]

    @property
    def ndcg_at_10(self) -> dict[str, dict[str, float]]:
        """System -> dataset -> mean nDCG@10."""
        return self.means("ndcg_at_10")

    def means(self, measure_name: str) -> dict[str, dict[str, float]]:
        """System -> dataset -> mean of one of ``MEASURES``."""
        return {
            system.name: {
                name: float(getattr(system.measured[name], measure_name).mean())
                for name in self.datasets
                if name in system.measured
            }
            for system in self.systems
        }

    def mean(self, system: str, zero_shot: bool = False, measure_name: str = "ndcg_at_10") -> float | None:
        """Mean over the sets with an expert, or over the zero-shot sets; None if it lacks one of them."""
        chosen = self.zero_shot if zero_shot else self.with_expert
        tables = self.measured[system]
        if any(name not in tables for name in chosen):
            return None
        figures = {name: float(getattr(tables[name], measure_name).mean()) for name in chosen}
        return self.average(figures, zero_shot)

    def average(self, figures: Mapping[str, float], zero_shot: bool = False) -> float | None:
        """Mean of figures of datasets over those with an expert, or the zero-shot ones; None without any."""
        chosen = self.zero_shot if zero_shot else self.with_expert
        return float(np.mean([figures[name] for name in chosen])) if chosen else None

    def frame(self, measure_name: str = "ndcg_at_10") -> DataFrame:
        """One of ``MEASURES`` as a table: a row a system, a column a test set, and the means."""
        from pandas import DataFrame

        table = DataFrame(self.means(measure_name)).T
        table["mean"] = [self.mean(name, measure_name=measure_name) for name in table.index]
        table["zero-shot"] = [self.mean(name, True, measure_name) for name in table.index]
        return table

    @property
    def upper_bound(self) -> System | None:
        """The last oracle."""
        return next(iter(self.of_kind(Kind.ORACLE)[::-1]), None)

    def regret(self, system: str) -> dict[str, float]:
        """Dataset -> nDCG@10 that the upper bound is above this system."""
        figures, bound = self.ndcg_at_10, self.upper_bound
        if bound is None:
            return {}
        return {name: figures[bound.name][name] - figures[system][name] for name in self.datasets}

    @cached_property
    def differences(self) -> dict[str, dict[str, Difference]]:
        """Dataset -> rival -> paired difference of nDCG@10 of the deployed system over it."""
        ours = self.measured[self.deployed]
        rivals = [system for system in self.systems if system.rival and system.name != self.deployed]
        pairs = {
            (name, rival.name): (ours[name].ndcg_at_10, rival.measured[name].ndcg_at_10)
            for name in self.datasets
            for rival in rivals
            if name in rival.measured
        }
        found: dict[str, dict[str, Difference]] = {name: {} for name in self.datasets}
        for (name, rival_name), difference in compare_all(pairs).items():
            found[name][rival_name] = difference
        return found


def assemble(
    systems: Sequence[System],
    deployed: str,
    experts: Sequence[str],
    queries: Mapping[str, Mapping[str, str]],
    settings: dict[str, Any],
    data_notes: Mapping[str, list[str]] | None = None,
    encoder: Mapping[str, Mapping[str, Any]] | None = None,
) -> Evaluation:
    """Put the systems of all methods into one evaluation.

    Args:
        systems: of all methods.
        deployed: the name of the one that is registered and served.
        experts: domains that have an expert.
        queries: test set -> query id -> text, in the order of the measures.
        settings: the recipe's, recorded with the figures.
        data_notes: what was noted of each collection before the run.
        encoder: the base encoder's settings, none left open, and their sources.

    Raises:
        BadInput: two systems have the same name.
    """
    names = [system.name for system in systems]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadInput(f"methods: two systems are named {twice!r}; rename a baseline or a domain")
    return Evaluation(
        datasets=list(queries),
        experts=list(experts),
        systems=sorted(systems, key=lambda system: system.kind),
        deployed=deployed,
        query_ids={name: list(texts) for name, texts in queries.items()},
        texts={name: list(texts.values()) for name, texts in queries.items()},
        settings=settings,
        data_notes={name: notes for name, notes in (data_notes or {}).items() if notes},
        encoder=encoder or {},
    )
