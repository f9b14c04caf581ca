"""The routers. Shapes: B queries, T experts, P pilots, d dimensions of the routing features."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from routerretriever.routing.protocol import Router, Vectors, weigh

State = dict[str, NDArray[Any]]


class PilotRouter(Router):
    """The paper's router: similarity to every pilot, mean (or nearest) per expert, best expert wins.

    The mean dot product over an expert's pilots is the dot product with the mean pilot, so routing by the
    mean is a single [B, d] x [d, T] product.
    """

    kind = "pilots"

    def __init__(
        self,
        experts: list[str],
        pilots_Pd: Vectors,
        expert_P: NDArray[np.int64],
        aggregate: str = "mean",
        mixing: str = "hard",
        temperature: float = 1.0,
    ) -> None:
        super().__init__(experts)
        self._pilots_Pd = pilots_Pd
        self._expert_P = expert_P
        self._aggregate = aggregate
        self._mixing = mixing
        self._temperature = temperature

    def scores(self, features_Bd: Vectors) -> NDArray[np.float64]:
        """Similarity to each expert's pilots; an expert without pilots has minus infinity."""
        similarity_BP = (features_Bd @ self._pilots_Pd.T).astype(np.float64)
        scores_BT = np.full((len(features_Bd), len(self.experts)), -np.inf)
        for column in np.unique(self._expert_P):
            own_BP = similarity_BP[:, self._expert_P == column]
            scores_BT[:, column] = own_BP.mean(axis=1) if self._aggregate == "mean" else own_BP.max(axis=1)
        return scores_BT

    def weights(self, features_Bd: Vectors) -> Vectors:
        """One-hot rows, or a softmax of the scores."""
        return weigh(self.scores(features_Bd), self._mixing, self._temperature)

    def state(self) -> tuple[dict[str, Any], State]:
        """Settings and arrays."""
        settings = {"aggregate": self._aggregate, "mixing": self._mixing, "temperature": self._temperature}
        return settings, {"pilots_Pd": self._pilots_Pd, "expert_P": self._expert_P}


class PosteriorRouter(Router):
    """Which domain does the query come from? Multinomial logistic regression over the routing features.

    Soft mixing by its probabilities hedges where domains overlap; fitted in seconds from the queries.
    """

    kind = "posterior"

    def __init__(
        self, experts: list[str], coef_Td: Vectors, bias_T: Vectors, mixing: str, temperature: float
    ) -> None:
        super().__init__(experts)
        self._coef_Td = coef_Td
        self._bias_T = bias_T
        self._mixing = mixing
        self._temperature = temperature

    def scores(self, features_Bd: Vectors) -> NDArray[np.float64]:
        """Unnormalised log-probability of each expert's domain."""
        return (features_Bd @ self._coef_Td.T + self._bias_T).astype(np.float64)

    def weights(self, features_Bd: Vectors) -> Vectors:
        """One-hot rows, or the probabilities at the temperature."""
        return weigh(self.scores(features_Bd), self._mixing, self._temperature)

    def state(self) -> tuple[dict[str, Any], State]:
        """Settings and arrays."""
        settings = {"mixing": self._mixing, "temperature": self._temperature}
        return settings, {"coef_Td": self._coef_Td, "bias_T": self._bias_T}


class FixedRouter(Router):
    """One expert for everything."""

    kind = "fixed"

    def __init__(self, experts: list[str], expert: str) -> None:
        super().__init__(experts)
        self._expert = expert

    def scores(self, features_Bd: Vectors) -> NDArray[np.float64]:
        """One for the fixed expert."""
        scores_BT = np.zeros((len(features_Bd), len(self.experts)))
        scores_BT[:, self.experts.index(self._expert)] = 1.0
        return scores_BT

    def weights(self, features_Bd: Vectors) -> Vectors:
        """The same one-hot row for every query."""
        return self.scores(features_Bd).astype(np.float32)

    def state(self) -> tuple[dict[str, Any], State]:
        """The expert's name."""
        return {"expert": self._expert}, {}


class UniformRouter(Router):
    """All experts, equally."""

    kind = "uniform"

    def scores(self, features_Bd: Vectors) -> NDArray[np.float64]:
        """The same for all."""
        return np.full((len(features_Bd), len(self.experts)), 1.0 / len(self.experts))

    def weights(self, features_Bd: Vectors) -> Vectors:
        """One T-th each."""
        return self.scores(features_Bd).astype(np.float32)

    def state(self) -> tuple[dict[str, Any], State]:
        """Nothing to keep."""
        return {}, {}
