"""The folds of a cross-validation: training jobs that each leave a third of the labelled queries out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from routerretriever.artifacts.step import Step
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.datasets.collection import Collection
from routerretriever.datasets.judgements import Judgements, write_judgements
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
            held = split_folds(list(labelled.qrels), FOLDS)[step.number - 1]
            left_out = set(held)
            chosen = labelled.subset(
                held if step.held_out else [i for i in labelled.qrels if i not in left_out]
            )
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
