"""The folds of a cross-validation: training jobs that each leave a third of the labelled queries out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.datasets.judgements import Judgements, load_judgements, put_judgements
from routerretriever.hashing import content_hash
from routerretriever.training.job import HELD_OUT_FILE, TrainingJob
from routerretriever.training.selection import HeldOut, split_folds

FOLDS = 3


def fold_jobs(job: TrainingJob, store: ArtifactStore) -> list[TrainingJob]:
    """One job for each fold of an expert's train and dev queries, with its judgements in storage."""
    (part,) = job.parts
    train, dev = load_judgements(store, part.train_key), load_judgements(store, part.dev_key)
    labelled = Judgements({**train.queries, **dev.queries}, {**train.qrels, **dev.qrels})
    digest = content_hash(job.key, FOLDS)
    jobs = []
    for number, held in enumerate(split_folds(list(labelled.qrels), FOLDS), start=1):
        left_out = set(held)
        others = [query for query in labelled.qrels if query not in left_out]
        rest_key, held_key = (f"judgements/{job.name}-{digest}-{kind}-{number}" for kind in ("rest", "held"))
        own = replace(
            part,
            train_key=put_judgements(store, rest_key, labelled.subset(others)),
            dev_key=put_judgements(store, held_key, labelled.subset(held)),
        )
        name = f"{job.name} fold {number} of {FOLDS}"
        key = f"folds/{job.name}-{number}-{digest}"
        # All held-out queries count, and none of the others is kept from training.
        training = job.training.model_copy(update={"dev_queries": len(held), "held_out_fraction": 0.0})
        jobs.append(replace(job, name=name, key=key, parts=(own,), training=training, selection="fold"))
    return jobs


def read_held_out(folder: Path) -> HeldOut:
    """What a fold has measured."""
    with np.load(folder / HELD_OUT_FILE) as kept:
        return HeldOut(
            tuple(kept["steps"].tolist()), tuple(kept["scales"].tolist()), kept["ndcg_TSQ"], kept["base_Q"]
        )
