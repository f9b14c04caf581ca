"""Experts on both towers: queries *and* documents are encoded with the adapter (arXiv 2409.02685, Table 6).

What the frozen documents cost in quality, and save in encoding. Documents change with every expert, so each
expert has an index of its own: D collections and T experts ask for D x T encodings of documents where the
frozen base asks for D, documents are encoded anew in every training step, and vectors of two experts cannot
be merged. It is evaluated and cannot be served.

Which expert answers a query is chosen by a classifier of its domain: the paper's pilot library would want all
training queries scored on every expert's own index too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from pydantic import PositiveInt

from routerretriever.artifacts.step import Step
from routerretriever.evaluation.system import Kind, Routing, System
from routerretriever.hashing import content_hash
from routerretriever.measures import Measured
from routerretriever.methods.base import Method, Workspace
from routerretriever.routing.data import RoutingData
from routerretriever.routing.fit import fit_router
from routerretriever.routing.settings import RoutingSettings
from routerretriever.scoring.table import ScoredModel, ScoreSplit
from routerretriever.scoring.worker import MEASURED_COLUMNS
from routerretriever.settings import Settings
from routerretriever.training.expert import TrainAdapter, expert_key, train_step
from routerretriever.training.settings import LearningRate
from routerretriever.types import BASE, Vectors

OWN, ROUTED = "both towers, own expert", "both towers, routed"
DATASET_ORACLE, INSTANCE_ORACLE = "both towers, DatasetOracle", "both towers, InstanceOracle"


class BothTowersSettings(Settings):
    """Experts on both towers. All other settings are those of ``training``.

    Documents are encoded in every step, so a step costs far more than one over frozen documents.
    """

    learning_rate: LearningRate = 1e-3
    """Of AdamW."""
    batch_size: PositiveInt = 8
    """Queries per optimiser step."""
    hard_negatives: PositiveInt = 5
    """For each query, from the base encoder's own results; the batch's other documents are negatives too."""
    max_steps: PositiveInt = 200
    """Optimiser steps of an expert, at most."""
    evaluate_every: PositiveInt = 40
    """Steps between two evaluations on dev."""
    dev_documents: PositiveInt = 1000
    """Documents that dev queries search while an expert is trained: the relevant ones, and others."""


class BothTowers(Method):
    """One adapter a domain, on queries and documents alike."""

    name = "both_towers"
    settings = BothTowersSettings
    deployable = False

    def __init__(self, settings: BothTowersSettings, workspace: Workspace) -> None:
        super().__init__(settings, workspace)
        self._settings = settings

    @cached_property
    def train_steps(self) -> dict[str, TrainAdapter]:
        """The steps that train the experts, by domain."""
        workspace, settings = self._workspace, self._settings
        own = settings.model_dump(exclude={"dev_documents"})
        fixed = {"objective": "sampled", "random_negatives": 0}
        training = workspace.training.model_copy(update=own | fixed).plain()
        made = {}
        for collection in workspace.trained_on:
            digest = content_hash(
                expert_key(collection, workspace.encoder, training), "both towers", settings.dev_documents
            )
            made[collection.name] = train_step(
                f"both-towers-{collection.name}",
                f"experts/both-towers-{collection.name}-{digest}",
                [workspace.source(collection.name)],
                workspace.encoder,
                training,
                both_towers=settings.dev_documents,
                describe=f"{len(collection.qrels('train'))} queries, their documents encoded in every step; "
                f"then {len(workspace.tested)} test sets' documents again",
            )
        return made

    def steps(self) -> list[Step]:
        """The experts; of those that are trained also corpora and scores, each by the expert's own tower."""
        trained = [
            domain for domain, step in self.train_steps.items() if self._workspace.store.exists(step.key)
        ]
        scores = [step for domain in trained for step in self._score_steps(domain)]
        return [*self.train_steps.values(), *scores]

    def _tower(self, domain: str) -> Workspace:
        """The workspace with an expert, which must have been trained, as part of the base."""
        workspace = self._workspace
        location = workspace.store.location(self.train_steps[domain].key)
        return workspace.with_encoder(workspace.encoder.model_copy(update={"adapter": location}))

    def _score_steps(self, domain: str) -> list[ScoreSplit]:
        tower = self._tower(domain)
        tested = [each.name for each in tower.tested]
        return tower.score_steps("test", [ScoredModel.base(tower.encoder)], tested)

    @classmethod
    def system_names(cls, settings: BothTowersSettings, expert_domains: Sequence[str]) -> list[str]:
        """Each domain's own expert, the routed one, and the two oracles."""
        return [OWN, ROUTED, DATASET_ORACLE, INSTANCE_ORACLE]

    def systems(self) -> list[System]:
        """Each domain's own expert, the routed one, and the two oracles."""
        self._workspace.train(self.train_steps)
        by_expert: dict[str, dict[str, Measured]] = {}
        query_ids: dict[str, list[str]] = {}
        for domain in self.train_steps:
            scores = self._tower(domain).scores(self._score_steps(domain))
            by_expert[domain] = {name: table.measured[:, table.of(BASE)] for name, table in scores.items()}
            query_ids = {name: table.query_ids for name, table in scores.items()}
        weights = self._weights(query_ids)
        experts = list(by_expert)
        own = {name: by_expert[name][name] for name in query_ids if name in by_expert}
        routed, best, each_best = {}, {}, {}
        for name in query_ids:
            stacked = _stack([by_expert[expert][name] for expert in experts])
            rows = np.arange(len(query_ids[name]))
            routed[name] = stacked[rows, weights[name].argmax(axis=1)]
            best[name] = stacked[:, stacked.ndcg_at_10.mean(axis=0).argmax()]
            each_best[name] = stacked[rows, stacked.ndcg_at_10.argmax(axis=1)]
        note = f"documents encoded {len(experts)} times, once for each expert's own index"
        return [
            System(OWN, Kind.OWN, own, headline=True, rival=True, note=note),
            System(ROUTED, Kind.ROUTER, routed, Routing(experts, weights), headline=True, rival=True),
            System(DATASET_ORACLE, Kind.ORACLE, best),
            System(INSTANCE_ORACLE, Kind.ORACLE, each_best),
        ]

    def _weights(self, query_ids: dict[str, list[str]]) -> dict[str, Vectors]:
        """One-hot weights [Q, T] by a classifier of domains over the bare base's routing features."""
        workspace = self._workspace
        domains = list(workspace.expert_domains)
        features = workspace.routing.features
        settings = RoutingSettings(router="posterior", features=features, mixing="hard", fallback=None)
        base = workspace.base
        train = {name: list(workspace.collections[name].queries("train").values()) for name in domains}
        data = RoutingData(
            domains,
            {name: np.zeros((len(texts), len(domains))) for name, texts in train.items()},
            {name: base.routing_features(texts, features) for name, texts in train.items()},
        )
        router = fit_router(data, settings)
        made = {}
        for name, ids in query_ids.items():
            texts = workspace.collections[name].queries("test")
            made[name] = router.weights(base.routing_features([texts[i] for i in ids], features))
        return made


def _stack(measured: list[Measured]) -> Measured:
    """Arrays [Q] of several experts as [Q, T]."""
    return Measured(
        *(np.stack([getattr(one, name) for one in measured], axis=1) for name in MEASURED_COLUMNS)
    )
