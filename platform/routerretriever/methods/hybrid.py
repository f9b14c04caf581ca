"""BM25 beside a method's query vectors: its rows of the evaluation, and weights learned from dev queries.

Shapes: Q queries, T experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from routerretriever.evaluation.system import Kind, Rank, System
from routerretriever.index.fusion_weights import GRID, FusionWeights
from routerretriever.measures import Measured
from routerretriever.methods.base import Calibration, Workspace
from routerretriever.methods.ranking import hybrid_rank
from routerretriever.scoring.fusion import FusedScores, FuseSplit, QueryVectors, fuse_step
from routerretriever.scoring.table import ScoredModel
from routerretriever.types import Values, Vectors

BM25, BASE_FIXED = "BM25", "base + BM25"
ROUTED_FIXED, ROUTED_LEARNED, WEIGHT_ORACLE = "routed + BM25, fixed", "routed + BM25", "routed + BM25, oracle"
SYSTEMS = (BM25, BASE_FIXED, ROUTED_FIXED, ROUTED_LEARNED, WEIGHT_ORACLE)


@dataclass(frozen=True)
class RoutedQueries:
    """A split's queries as a router has them encoded."""

    experts: Sequence[str]
    weights_QT: Vectors
    vectors: QueryVectors


Routed = Callable[[str, list[str]], Mapping[str, RoutedQueries]]
"""Given a split and domains: their queries, routed."""


class Hybrid:
    """Words beside the vectors that a router makes of queries."""

    def __init__(self, workspace: Workspace, routed: Routed) -> None:
        """Nothing is made yet.

        Args:
            workspace: the method's.
            routed: what the deployed router makes of the queries of a split.
        """
        self._workspace = workspace
        self._routed = routed

    @property
    def searched(self) -> list[str]:
        """Domains with a test split whose words are searched."""
        return [name for each in self._workspace.tested if self._workspace.lexical[name := each.name]]

    @property
    def calibrated(self) -> list[str]:
        """Domains whose dev queries say how much BM25 counts."""
        return [name for name in self._workspace.calibrated if self._workspace.lexical[name]]

    def steps(self) -> list[FuseSplit]:
        """Test queries with the base's vectors; a router's are known only when it is fitted."""
        return list(self._base_steps().values())

    def _base_steps(self) -> dict[str, FuseSplit]:
        workspace, base = self._workspace, [ScoredModel.base(self._workspace.encoder)]
        return {
            name: self._step(name, "test", QueryVectors(tuple(workspace.score_steps("test", base, [name]))))
            for name in self.searched
        }

    def _step(self, name: str, split: str, vectors: QueryVectors, *, others_words: bool = False) -> FuseSplit:
        workspace, lexical = self._workspace, self._workspace.lexical[name]
        assert lexical is not None
        return fuse_step(
            workspace.corpus_step(name),
            split,
            vectors,
            lexical,
            workspace.corpus.fusion,
            lambda: workspace.fusion.floor,
            workspace.scoring,
            others_words=others_words,
        )

    def _fused(self, steps: Mapping[str, FuseSplit]) -> dict[str, FusedScores]:
        self._workspace.build(steps.values())
        return {name: step.read(self._workspace.store) for name, step in steps.items()}

    @cached_property
    def _test(self) -> dict[str, RoutedQueries]:
        return dict(self._routed("test", self.searched))

    @cached_property
    def routed_scores(self) -> dict[str, FusedScores]:
        """Test queries with the router's vectors, at every weight."""
        return self._fused({name: self._step(name, "test", own.vectors) for name, own in self._test.items()})

    def with_others_words(self, name: str) -> FusedScores:
        """The same for one domain, with the words of another query: what the best weights gain is luck."""
        step = self._step(name, "test", self._test[name].vectors, others_words=True)
        return self._fused({name: step})[name]

    @cached_property
    def _dev_steps(self) -> dict[str, FuseSplit]:
        return self._routed_dev(self.calibrated)

    def _routed_dev(self, names: list[str]) -> dict[str, FuseSplit]:
        routed = self._routed("dev", names)
        return {name: self._step(name, "dev", own.vectors) for name, own in routed.items()}

    def build(self) -> None:
        """Make what the router's rows and weights need, test and dev together: workers take long to start."""
        test = [self._step(name, "test", own.vectors) for name, own in self._test.items()]
        self._workspace.build([*test, *self._dev_steps.values()])

    @cached_property
    def weights(self) -> FusionWeights:
        """How much BM25 helps the routed vectors on the dev queries of each domain."""
        fused = self._fused(self._dev_steps)
        curves = {name: each.curves for name, each in fused.items()}
        return FusionWeights.fit(curves, self._workspace.fusion)

    def calibrate(self, name: str) -> Calibration:
        """Learn the weight of one domain from its dev queries."""
        curves = self._fused(self._routed_dev([name]))[name].curves
        learned = FusionWeights.fit({name: curves}, self._workspace.fusion)
        means = dict(zip(GRID, curves.mean(axis=0).tolist(), strict=True))
        return Calibration(name, len(curves), means, learned.for_domain(name), learned.settings.prior)

    def _learned(self, name: str) -> Values:
        """The weight of BM25 [Q] for each test query of a domain."""
        own = self._test[name]
        return self.weights.of_queries(own.weights_QT, own.experts, name)

    def _rank(self, vectors: Callable[[str], QueryVectors], weights: Callable[[str], Values]) -> Rank:
        store = self._workspace.store
        return hybrid_rank(self._workspace, lambda name: vectors(name).read(store), weights)

    def systems(self) -> list[System]:
        """BM25, alone and beside vectors by fixed, learned and best weights; what is missing is made."""
        if not self.searched:
            return []
        prior = self._workspace.corpus.fusion.prior
        base = self._fused(self._base_steps())
        fused = self.routed_scores
        words = self._rank(
            lambda name: self._base_steps()[name].vectors, lambda name: np.ones(len(base[name].query_ids))
        )
        routed = self._rank(lambda name: self._test[name].vectors, self._learned)
        learned = {name: fused[name].at_each(self._learned(name)) for name in self._test}
        note = f"the best of {len(GRID)} weights for each query; a part of it is luck, as of any oracle"
        return [
            _system(BM25, {name: own.at(1.0) for name, own in base.items()}, words),
            _system(BASE_FIXED, {name: own.at(prior) for name, own in base.items()}),
            _system(ROUTED_FIXED, {name: own.at(prior) for name, own in fused.items()}),
            replace(_system(ROUTED_LEARNED, learned, routed), served=True),
            System(WEIGHT_ORACLE, Kind.ORACLE, {n: own.best() for n, own in fused.items()}, note=note),
        ]


def _system(name: str, measured: Mapping[str, Measured], rank: Rank | None = None) -> System:
    """One of those that matter most if it can show what it finds."""
    return System(name, Kind.HYBRID, measured, headline=rank is not None, rival=True, rank=rank)
