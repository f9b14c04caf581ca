"""The folds of a cross-validation: training jobs that each leave a third of the labelled queries out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
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


def labelled_queries(collection: Collection, train_limit: int | None) -> Judgements:
    """The train and dev queries of a domain, or of a sample of the former, judged for whole documents."""
    train = Judgements.of(collection, "train", train_limit, whole_documents=True)
    dev = Judgements.of(collection, "dev")
    return Judgements(
        {**train.queries, **dev.queries},
        {**train.qrels, **dev.qrels},
        train.own_kept | dev.own_kept,
        dev.passages,
    )


@dataclass(frozen=True)
class Fold:
    """The queries that one training of a cross-validation learns from, and those that it is measured on."""

    trained_on: list[str]
    held_out: list[str]


def deal_folds(collection: Collection, labelled: Judgements) -> list[Fold]:
    """Three folds of a domain's labelled queries, or two where they are two groups (``Collection.groups``).

    A fold learns from no more queries than the expert, which learns from train alone: of the queries that it
    does not hold out, those of train, and those of dev that make up for what it holds out of train.

    Raises:
        DatasetError: all queries are of one group.
    """
    groups = collection.groups("train", "dev")
    count = min(FOLDS, len({groups[query] for query in labelled.qrels}))
    if count < 2:
        raise DatasetError(
            f"{collection.folder}: the {len(labelled.qrels)} train and dev queries ask the same or were "
            "written about one document, so none can be held out; add others, or set training.selection to "
            "best_step"
        )
    train = labelled.qrels.keys() & collection.queries("train").keys()
    return [
        Fold(_at_most(len(train), _others(labelled.qrels, held), train), held)
        for held in split_folds(list(labelled.qrels), count, groups)
    ]


def _at_most(count: int, query_ids: Sequence[str], train: Set[str]) -> list[str]:
    """Train queries first, then others by the hash of their ids; in the given order."""
    others = [query for query in query_ids if query not in train]
    chosen = set(first_by_hash(others, count - (len(query_ids) - len(others)), "fold"))
    return [query for query in query_ids if query in train or query in chosen]


def folds_identity(collection: Collection, labelled: Judgements) -> list[object]:
    """What tells these folds from thirds of the queries by id, of whole documents; empty if nothing does."""
    ids = list(labelled.qrels)
    thirds = [Fold(_others(ids, held), held) for held in split_folds(ids, FOLDS)]
    dealt = deal_folds(collection, labelled)
    if dealt == thirds and not labelled.passages:
        return []
    return [[sorted(fold.trained_on), sorted(fold.held_out)] for fold in dealt]


def _others(query_ids: Iterable[str], held_out: Iterable[str]) -> list[str]:
    left_out = set(held_out)
    return [query for query in query_ids if query not in left_out]


@dataclass(frozen=True, kw_only=True, eq=False)
class StoreFold(Step):
    """The queries that one fold trains on, or those that it holds out."""

    stage: ClassVar[str] = "read"

    collection: Collection
    train_limit: int | None
    number: int
    held_out: bool

    @classmethod
    def build_all(cls, steps: Sequence[StoreFold], store: ArtifactStore) -> None:
        """Write each fold."""
        for step in steps:
            labelled = labelled_queries(step.collection, step.train_limit)
            fold = deal_folds(step.collection, labelled)[step.number - 1]
            chosen = labelled.subset(fold.held_out if step.held_out else fold.trained_on)
            if not step.held_out:
                chosen = replace(chosen, qrels=step.collection.as_trained(chosen.qrels))
            write_judgements(store, step.key, chosen, {"collection": step.collection.name})


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
