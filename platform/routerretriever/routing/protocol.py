"""What every router is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from routerretriever.types import Vectors

State = tuple[dict[str, Any], dict[str, NDArray[Any]]]


@dataclass(frozen=True)
class Neighbour:
    """A training query near to the one that was routed."""

    dataset: str
    query: str
    similarity: float


@dataclass(frozen=True)
class Explanation:
    """Why one query was routed as it was."""

    scores: dict[str, float]
    """What the weights were made from; an expert that can never be chosen is left out."""
    margin: float | None
    """Distance from the best score to the second; None with fewer than two."""
    familiarity: float | None = None
    """How much the query looks like the training queries, 0 to 1; None without a fallback."""
    nearest: tuple[Neighbour, ...] = ()


class Router(ABC):
    """Routing features [B, d] to weights over experts [B, T]; a row is one-hot, or sums to 1."""

    kind: ClassVar[str]

    min_share: float = 0.0
    """Experts with less than this share of the best one's weight are not run; set where it is fitted."""

    def __init__(self, experts: list[str]) -> None:
        self.experts = experts

    def weights(self, features_Bd: Vectors) -> Vectors:
        """How much of each expert goes into the query's vector: [B, T]; zero for those not worth running."""
        return worth_running(self.mixture(features_Bd), self.min_share)

    @abstractmethod
    def scores(self, features_Bd: Vectors) -> NDArray[np.float64]:
        """What the weights are made from: [B, T], higher is better; minus infinity is never chosen."""

    @abstractmethod
    def mixture(self, features_Bd: Vectors) -> Vectors:
        """Weights before the small ones are dropped: [B, T]."""

    @abstractmethod
    def state(self) -> State:
        """Constructor arguments besides ``experts``: plain values, and arrays."""

    def explain(self, features_Bd: Vectors) -> list[Explanation]:
        """Scores and margin of every query."""
        explanations = []
        for scores_T in self.scores(features_Bd):
            scores = {
                name: float(score)
                for name, score in zip(self.experts, scores_T, strict=True)
                if np.isfinite(score)
            }
            best = sorted(scores.values(), reverse=True)
            explanations.append(Explanation(scores, best[0] - best[1] if len(best) > 1 else None))
        return explanations


class MixingRouter(Router):
    """A router whose weights are its best score alone (``hard``), or a softmax of all scores (``soft``)."""

    def __init__(self, experts: list[str], mixing: str, temperature: float) -> None:
        super().__init__(experts)
        self.mixing = mixing
        self.temperature = temperature

    def mixture(self, features_Bd: Vectors) -> Vectors:
        """One-hot rows, or a softmax of the scores divided by the temperature."""
        scores_BT = self.scores(features_Bd)
        return one_hot(scores_BT) if self.mixing == "hard" else softmax(scores_BT / self.temperature)


def worth_running(
    mixed_BT: Vectors, min_share: float, compared_T: NDArray[np.bool_] | None = None
) -> Vectors:
    """Mixtures without the experts that have less than this share of the best one's weight.

    Args:
        mixed_BT: the mixtures.
        min_share: 0 to 1.
        compared_T: the columns of which one can be the best; by default all.
    """
    best_B1 = mixed_BT.max(axis=1, keepdims=True, where=True if compared_T is None else compared_T, initial=0)
    kept_BT = np.where(mixed_BT >= min_share * best_B1, mixed_BT, 0.0)
    return (kept_BT / kept_BT.sum(axis=1, keepdims=True)).astype(np.float32)


def one_hot(scores_BT: NDArray[np.float64]) -> Vectors:
    """Weight 1 for the best expert of each row; the first of several."""
    weights_BT = np.zeros(scores_BT.shape, dtype=np.float32)
    weights_BT[np.arange(len(scores_BT)), scores_BT.argmax(axis=1)] = 1.0
    return weights_BT


def softmax(scores_BT: NDArray[np.float64]) -> Vectors:
    """Rows that sum to 1; minus infinity gets weight 0."""
    shifted = np.exp(scores_BT - scores_BT.max(axis=1, keepdims=True))
    return (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
