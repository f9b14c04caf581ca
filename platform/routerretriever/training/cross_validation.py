"""The folds of a cross-validation: training jobs that each leave a third of the labelled queries out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from routerretriever.artifacts.step import Step
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.datasets.collection import Collection
from routerretriever.datasets.judgements import Judgements, write_judgements
from routerretriever.datasets.splitting import first_by_hash
from routerretriever.errors import DatasetError
from routerretriever.training.job import HELD_OUT_FILE
from routerretriever.training.selection import HeldOut, Selected, join_folds, select, split_folds

FOLDS = 3


@dataclass(frozen=True)
class Fold:
    """The queries that one training of a cross-validation learns from, and those that it is measured on."""

    trained_on: list[str]
    held_out: list[str]


@dataclass(frozen=True)
class LabelledQueries:
    """The train and dev queries of a domain, and how a cross-validation deals them out."""

    collection: Collection
    train_limit: int | None
    """At most so many of the train queries."""
    held_out_fraction: float
    """Share of these that no expert trains on, so no fold does."""

    def judgements(self) -> Judgements:
        """All of them, judged for whole documents."""
        return self._judgements(self.held_out_fraction)

    @cached_property
    def folds(self) -> list[Fold]:
        """Three folds, or two where the queries are two groups (``Collection.groups``).

        A fold learns from no more queries than the expert, which learns from train alone: of the queries that
        it does not hold out, those of train, and those of dev that make up for what it holds out of train.

        Raises:
            DatasetError: all queries are of one group.
        """
        ids = list(self.judgements().queries)
        groups = self.collection.groups("train", "dev")
        count = min(FOLDS, len({groups[query] for query in ids}))
        if count < 2:
            raise DatasetError(
                f"{self.collection.folder}: the {len(ids)} train and dev queries ask the same or were "
                "written about one document, so none can be held out; add others, or set training.selection "
                "to best_step"
            )
        train = self.collection.queries("train").keys() & ids
        return [
            Fold(_at_most(len(train), _others(ids, held), train), held)
            for held in split_folds(ids, count, groups)
        ]

    @cached_property
    def identity(self) -> list[object]:
        """What tells the folds from thirds of all queries by id, of whole documents; empty if none."""
        every = self._judgements(0.0)
        ids = list(every.queries)
        thirds = [Fold(_others(ids, held), held) for held in split_folds(ids, FOLDS)]
        if self.folds == thirds and not every.passages:
            return []
        return [[sorted(fold.trained_on), sorted(fold.held_out)] for fold in self.folds]

    def _judgements(self, held_out_fraction: float) -> Judgements:
        limits = self.train_limit, held_out_fraction
        train = Judgements.of(self.collection, "train", *limits, whole_documents=True)
        dev = Judgements.of(self.collection, "dev")
        return Judgements(
            {**train.queries, **dev.queries},
            {**train.qrels, **dev.qrels},
            train.own_kept | dev.own_kept,
            dev.passages,
        )


def _at_most(count: int, query_ids: Sequence[str], train: Set[str]) -> list[str]:
    """Train queries first, then others by the hash of their ids; in the given order."""
    others = [query for query in query_ids if query not in train]
    chosen = set(first_by_hash(others, count - (len(query_ids) - len(others)), "fold"))
    return [query for query in query_ids if query in train or query in chosen]


def _others(query_ids: Iterable[str], held_out: Iterable[str]) -> list[str]:
    left_out = set(held_out)
    return [query for query in query_ids if query not in left_out]


@dataclass(frozen=True, kw_only=True, eq=False)
class StoreFold(Step):
    """The queries that one fold trains on, or those that it holds out."""

    stage: ClassVar[str] = "read"

    labelled: LabelledQueries
    number: int
    held_out: bool

    @classmethod
    def build_all(cls, steps: Sequence[StoreFold], store: ArtifactStore) -> None:
        """Write each fold."""
        for step in steps:
            collection, fold = step.labelled.collection, step.labelled.folds[step.number - 1]
            chosen = step.labelled.judgements().subset(fold.held_out if step.held_out else fold.trained_on)
            if not step.held_out:
                chosen = replace(chosen, qrels=collection.as_trained(chosen.qrels))
            write_judgements(store, step.key, chosen, {"collection": collection.name})


def chosen_by_folds(store: ArtifactStore, keys: Sequence[str], confidence: float) -> Selected | None:
    """The step and scale that finished folds choose; None while one is missing."""
    if not all(store.exists(key) for key in keys):
        return None
    return select(join_folds([read_held_out(store.fetch(key)) for key in keys]), confidence)


def read_held_out(folder: Path) -> HeldOut:
    """What a fold has measured."""
    with np.load(folder / HELD_OUT_FILE) as kept:
        return HeldOut(
            tuple(kept["steps"].tolist()), tuple(kept["scales"].tolist()), kept["ndcg_TSQ"], kept["base_Q"]
        )
