"""The weight of BM25 for a query, from the collection that is searched.

Each domain has a curve: how much nDCG@10 its dev queries gain at every weight over the prior weight. Little
evidence shrinks a curve towards zero. A small cost for every step away from the weight where the domain
starts keeps weak evidence from moving it: that is the prior, or less where BM25 alone is far below the
vectors. Another collection has the prior, whatever domain a query seems to be of: leaving domains out, the
other domains' curves lost to it. Where no collection is named, a query's curve and costs are the domains'
means by the router's posterior; what the router does not know has no gain anywhere and starts at the prior.

A model of single queries (score margins, overlap of the lists, rarity of words, length) was tried too.
Leaving domains out, it lost to the prior, and with domains known it did not gain: see
docs/explanation/hybrid.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from routerretriever.errors import BadInput
from routerretriever.index.settings import FusionSettings

GRID = (0.0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0)
"""Weights that are compared: vectors alone first, BM25 alone last."""
_DOUBT = 5
"""So many queries more, on which BM25 is as good as the vectors, are assumed of each domain."""
_LEAST_CAUTION = 1e-9
"""Of weights with equal gains, the one that is nearest to the start is taken, whatever the caution."""


@dataclass(frozen=True)
class FusionWeights:
    """Curves of domains, in the order of ``domains``."""

    settings: FusionSettings
    domains: tuple[str, ...]
    gains_DW: NDArray[np.float64]
    """Shrunk gain in nDCG@10 of each domain at each weight of the grid over the prior."""
    starts_D: NDArray[np.float64]
    """The weight of each domain if its curve is flat."""

    @classmethod
    def fit(cls, ndcg: Mapping[str, NDArray[np.float64]], settings: FusionSettings) -> FusionWeights:
        """Learn from dev queries, labelled or generated.

        Args:
            ndcg: for each domain the nDCG@10 of its queries at each weight of the grid [Q, W].
            settings: prior, shrinkage and caution.

        Raises:
            BadInput: a domain's values are not [Q, W].
        """
        curves, starts = [], []
        for domain, values in ndcg.items():
            if values.ndim != 2 or values.shape[1] != len(GRID) or not len(values):
                raise BadInput(f"{domain}: expected nDCG of [queries, {len(GRID)}], found {values.shape}")
            prior = np.array([np.interp(settings.prior, GRID, row) for row in values])
            evidence = len(values) / (len(values) + settings.shrinkage)
            curves.append(evidence * (values - prior[:, None]).mean(axis=0))
            starts.append(_start(values, settings))
        return cls(settings, tuple(ndcg), np.array(curves).reshape(-1, len(GRID)), np.array(starts))

    def predict(self, posterior_BD: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weights of queries [B].

        Args:
            posterior_BD: how likely each query is of each domain. Rows may add up to less than 1: the rest is
                the chance that it is of none.
        """
        weights = np.array([*GRID, self.settings.prior])
        gains_DW = np.column_stack([self.gains_DW, np.zeros(len(self.domains))])
        moved_DW = np.abs(weights - self.starts_D[:, None])
        unknown_B1 = 1 - posterior_BD.sum(axis=1, keepdims=True)
        caution = max(self.settings.caution, _LEAST_CAUTION)
        values_BW = posterior_BD @ (gains_DW - caution * moved_DW)
        values_BW -= caution * unknown_B1 * np.abs(weights - self.settings.prior)
        best: NDArray[np.float64] = weights[values_BW.argmax(axis=1)]
        return best

    def for_domain(self, domain: str) -> float:
        """The weight of a query that is known to be of a domain; the prior for an unknown one."""
        posterior = np.array([[float(name == domain) for name in self.domains]])
        return float(self.predict(posterior)[0]) if self.domains else self.settings.prior

    def of_queries(
        self, weights_BT: NDArray[np.float32], experts: Sequence[str], collection: str | None = None
    ) -> NDArray[np.float64]:
        """Weights of queries [B].

        Args:
            weights_BT: a router's weights, taken for the chances that a query is of each expert's domain.
            experts: the T experts. One that is no domain here, such as the base, counts as none.
            collection: what is searched, if it is one: its own curve decides for all queries, and the prior
                if it has none.
        """
        if collection is not None:
            return np.full(len(weights_BT), self.for_domain(collection))
        if not self.domains:
            return np.full(len(weights_BT), self.settings.prior)
        columns = {name: column for column, name in enumerate(experts)}
        posterior = np.zeros((len(weights_BT), len(self.domains)))
        for place, domain in enumerate(self.domains):
            if domain in columns:
                posterior[:, place] = weights_BT[:, columns[domain]]
        return self.predict(posterior)

    def to_json(self) -> dict[str, object]:
        """Everything that ``from_json`` needs."""
        return {
            "settings": self.settings.model_dump(),
            "grid": list(GRID),
            "domains": dict(zip(self.domains, self.gains_DW.tolist(), strict=True)),
            "starts": self.starts_D.tolist(),
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Mapping[str, object] | Sequence[float]]) -> FusionWeights:
        """Read what ``to_json`` gave.

        Raises:
            BadInput: it was made with another grid.
        """
        if list(saved["grid"]) != list(GRID):
            raise BadInput(
                "fusion weights: made with other weights than this release compares; fit them again"
            )
        domains = dict(saved["domains"])  # type: ignore[arg-type]
        gains = np.array(list(domains.values()), dtype=np.float64).reshape(-1, len(GRID))
        starts = np.array(saved["starts"], dtype=np.float64)
        return cls(FusionSettings.model_validate(saved["settings"]), tuple(domains), gains, starts)


def _start(values_QW: NDArray[np.float64], settings: FusionSettings) -> float:
    """Where a domain's weight starts, by what BM25 alone reaches of what the vectors reach."""
    dense, bm25 = values_QW[:, 0].sum(), values_QW[:, -1].sum()
    share = bm25 / dense if dense > 0 else 1.0
    doubtful = (len(values_QW) * share + _DOUBT) / (len(values_QW) + _DOUBT)
    return float(np.interp(doubtful, [settings.poor, settings.useful], [0.0, settings.prior]))
