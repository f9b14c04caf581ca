"""What a trainer on any node needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from routerretriever.encoder.settings import EncoderSettings
from routerretriever.index.settings import LexicalSettings
from routerretriever.training.selection import Selected
from routerretriever.training.settings import TrainingSettings

Selection = Literal["best_step", "dev", "cross_validation", "fold", "chosen"]

BEST_FOLDER = "best"
"""Where a checkpoint keeps the adapter that was best on dev."""

UNDEPLOYED_FOLDER = "undeployed"
"""Where an expert that is not better than the base keeps the adapter that was trained."""
HELD_OUT_FILE = "held_out.npz"
"""Where a fold of a cross-validation keeps what it measured."""


@dataclass(frozen=True)
class TrainingPart:
    """One domain that an adapter is trained on: keys of its artifacts in storage."""

    corpus_key: str
    train_key: str
    dev_key: str
    modules: tuple[str, ...] = ()
    """Of a prefix with several modules, those that its queries may use."""
    lexical: LexicalSettings | None = None
    """How the teacher reads words."""
    candidate_keys: tuple[str, ...] = ()
    """What a reranker has scored, if it is the teacher; where a query is in several, the last has the say."""


@dataclass(frozen=True)
class TrainingJob:
    """One adapter to train: an expert has one part, a joint model several."""

    name: str
    key: str
    encoder: EncoderSettings
    training: TrainingSettings
    parts: tuple[TrainingPart, ...]
    queries_per_domain: int | None = None
    """At most so many train queries of each part; None uses all."""
    modules: tuple[str, ...] = ()
    """Names of the modules of a prefix that has several, with a router in each layer."""
    both_towers: int | None = None
    """Set for an adapter on both towers: documents are encoded with it too, anew in every step, and dev
    queries search so many of them."""
    selection: Selection = "best_step"
    """How step and scale are found. A cross-validation makes jobs of its own, ``fold``, which measure every
    scale at each evaluation; what they say makes the job ``chosen``."""
    chosen: Selected | None = None
    """What a cross-validation has found: training goes to this step, whatever dev says."""
    folds: tuple[str, ...] = ()
    """Keys of the folds that are to choose, if they are in training at the same time."""
