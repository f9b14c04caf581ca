"""What routers learn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from routerretriever.types import BASE, Rows, Vectors

Answered = Callable[[str, Rows, list[str], Vectors], NDArray[np.float64]]
"""nDCG@10 [B] of a dataset's queries at these rows, when these experts are mixed by these weights [B, T]."""


@dataclass(frozen=True)
class HeldOut:
    """Queries that no expert has learned from, in part of the datasets."""

    features: dict[str, Vectors]
    """Routing features [Q, d] by dataset."""
    answered: Answered
    """Measures mixtures of experts, and of the base, on them."""


@dataclass(frozen=True)
class RoutingData:
    """Scored queries by dataset: utilities [Q, T], routing features [Q, d], and the queries' texts."""

    experts: list[str]
    """Columns of the utilities."""
    utilities: dict[str, NDArray[np.float64]]
    features: dict[str, Vectors]
    queries: dict[str, list[str]] = field(default_factory=dict)
    """May be empty; then explanations cannot quote the nearest queries."""
    answered: Answered | None = None
    """Measures mixtures of experts, and of the base; rows are those of the whole data, before any sample."""
    held_out: HeldOut | None = None
    """None if no expert has learned from the scored queries themselves, or if there are no others."""
    background: Mapping[str, Vectors] = field(default_factory=dict)
    """Features [Q, d] of queries of no domain, by where they are from, to compare a single domain with."""

    @property
    def own_datasets(self) -> list[str]:
        """Datasets that have an expert of their own."""
        return [name for name in self.features if name in self.experts]

    def stacked(self, datasets: list[str]) -> tuple[Vectors, NDArray[np.float64], NDArray[np.int64]]:
        """Features [N, d], utilities [N, T] and the position of each query's dataset in the list [N]."""
        features = np.concatenate([self.features[name] for name in datasets])
        utilities = np.concatenate([self.utilities[name] for name in datasets])
        return (
            features,
            utilities,
            np.repeat(np.arange(len(datasets)), [len(self.features[n]) for n in datasets]),
        )

    def sample(self, per_dataset: int, seed: int) -> RoutingData:
        """The same with at most so many queries of each dataset."""
        if all(len(features) <= per_dataset for features in self.features.values()):
            return self
        rows = self.sample_rows(per_dataset, seed)
        return RoutingData(
            self.experts,
            {name: self.utilities[name][chosen] for name, chosen in rows.items()},
            {name: self.features[name][chosen] for name, chosen in rows.items()},
            {
                name: [self.queries[name][row] for row in chosen]
                for name, chosen in rows.items()
                if name in self.queries
            },
            background=self.background,
        )

    def sample_rows(self, per_dataset: int, seed: int) -> dict[str, Rows]:
        """The rows that ``sample`` takes of each dataset, ascending."""
        return {
            name: np.sort(np.random.default_rng(seed).permutation(len(features))[:per_dataset])
            for name, features in self.features.items()
        }

    def only(self, domains: Sequence[str]) -> RoutingData:
        """The same as if there had never been another expert, nor its domain's queries; the base stays."""
        kept = [column for column, name in enumerate(self.experts) if name in domains or name == BASE]
        datasets = [name for name in self.features if name in domains]
        return RoutingData(
            [self.experts[column] for column in kept],
            {name: self.utilities[name][:, kept] for name in datasets},
            {name: self.features[name] for name in datasets},
            {name: self.queries[name] for name in datasets if name in self.queries},
            self.answered,
            self.held_out,
        )
