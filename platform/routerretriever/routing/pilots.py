"""The paper's router: Algorithm 1's pilot library, and routing by similarity to it (arXiv 2409.02685)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from routerretriever.routing.data import RoutingData
from routerretriever.routing.pilot_library import build_library
from routerretriever.routing.protocol import MixingRouter, State
from routerretriever.routing.settings import RoutingSettings
from routerretriever.runtime.progress import log
from routerretriever.types import Vectors


class PilotRouter(MixingRouter):
    """Similarity to every pilot, mean (or nearest) per expert, best expert wins.

    The mean dot product over an expert's pilots is the dot product with the mean pilot, so routing by the
    mean is a single [B, d] x [d, T] product. P pilots.
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
        super().__init__(experts, mixing, temperature)
        self._pilots_Pd = pilots_Pd
        self._expert_P = expert_P
        self._aggregate = aggregate

    def scores(self, features_Bd: Vectors) -> NDArray[np.float64]:
        """Similarity to each expert's pilots; an expert without pilots has minus infinity."""
        similarity_BP = (features_Bd @ self._pilots_Pd.T).astype(np.float64)
        scores_BT = np.full((len(features_Bd), len(self.experts)), -np.inf)
        for column in np.unique(self._expert_P):
            own_BP = similarity_BP[:, self._expert_P == column]
            scores_BT[:, column] = own_BP.mean(axis=1) if self._aggregate == "mean" else own_BP.max(axis=1)
        return scores_BT

    def state(self) -> State:
        """Settings and arrays."""
        settings = {"aggregate": self._aggregate, "mixing": self.mixing, "temperature": self.temperature}
        return settings, {"pilots_Pd": self._pilots_Pd, "expert_P": self._expert_P}


def fit_pilots(data: RoutingData, settings: RoutingSettings) -> PilotRouter:
    """Build the pilot library; an expert that is best for nobody is reported."""
    library = build_library(
        data.experts, data.utilities, data.features, settings.ties, settings.clusters, settings.seed
    )
    if library.without_pilots:
        silent = ", ".join(library.without_pilots)
        log.warning("no pilots for %s: never the best on any query, so never routed to", silent)
    return PilotRouter(
        data.experts,
        library.vectors_Pd,
        library.expert_P,
        settings.aggregate,
        settings.mixing,
        settings.temperature,
    )
