"""RouterRetriever: an adapter a domain on the query tower, and a router over them (arXiv 2409.02685).

Documents are encoded once, by the frozen base, whatever the number of experts. Beside the deployed router
stand the paper's own routers, each as it describes them, the bare base, each expert alone, and two oracles.

Shapes: Q queries, T experts, d dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from routerretriever.artifacts.step import Step
from routerretriever.datasets.splitting import split_train
from routerretriever.errors import BadInput
from routerretriever.evaluation.system import Kind, Rank, Routing, System
from routerretriever.hashing import content_hash
from routerretriever.measures import Measured, measure
from routerretriever.methods.base import Calibration, Deployment, Method
from routerretriever.methods.hybrid import SYSTEMS as HYBRID_SYSTEMS
from routerretriever.methods.hybrid import Hybrid, RoutedQueries
from routerretriever.methods.ranking import dense_rank, search_test
from routerretriever.routing.calibration import CALIBRATION_VERSION
from routerretriever.routing.data import HeldOut, RoutingData
from routerretriever.routing.fit import calibrate, fit, with_chosen_fallback
from routerretriever.routing.protocol import Router
from routerretriever.routing.settings import FallbackSettings, RoutingSettings
from routerretriever.runtime.progress import log
from routerretriever.scoring.fusion import QueryVectors
from routerretriever.scoring.mixed_vectors import MixedVectors, mix
from routerretriever.scoring.mixtures import EncodeMixtures, mixture_step
from routerretriever.scoring.table import ScoredModel, ScoreSplit, ScoreTable
from routerretriever.settings import Settings
from routerretriever.training.expert import Expert, TrainAdapter, expert_step
from routerretriever.types import BASE, Values, Vectors

ROUTED = "RouterRetriever"
PAPER = "pilot library"
DATASET_ORACLE, INSTANCE_ORACLE = "DatasetOracle", "InstanceOracle"
OWN_EXPERT = "own expert"
PAPERS = RoutingSettings(features="embedding", mixing="hard", merge="embeddings", fallback=None)
"""What all of the paper's routers have in common."""
BASELINE_ROUTERS: dict[str, RoutingSettings] = {
    PAPER: PAPERS.model_copy(update={"router": "pilots"}),
    "ExpertClassifierRouter": PAPERS.model_copy(update={"router": "expert_classifier"}),
    "ClassificationHeadRouter": PAPERS.model_copy(update={"router": "classification_head"}),
    "DatasetRouter": PAPERS.model_copy(update={"router": "dataset"}),
    "uniform mixing": PAPERS.model_copy(update={"router": "uniform"}),
}
"""The paper's routers, each as it describes them, and mixing without routing."""


class ExpertsSettings(Settings):
    """No settings: ``training``, ``scoring`` and ``routing`` of the recipe are used."""


class Experts(Method):
    """Domain experts and a router over them."""

    name = "experts"
    settings = ExpertsSettings

    @property
    def system(self) -> str:
        """The deployed router's name."""
        return ROUTED

    def steps(self) -> list[Step]:
        """Corpora, experts, and scores of the queries that routers learn from and of the test queries."""
        workspace = self._workspace
        tested = [each.name for each in workspace.tested]
        return [
            *(workspace.corpus_step(name) for name in workspace.collections),
            *self.train_steps.values(),
            *self._source_steps(),
            *self._held_out_steps(),
            *workspace.score_steps("test", self.models, tested),
            *self._routed_steps("dev", self.hybrid.calibrated),
            *self.hybrid.steps(),
        ]

    @cached_property
    def train_steps(self) -> dict[str, TrainAdapter]:
        """The steps that train the experts, by domain."""
        workspace = self._workspace
        made = {}
        for collection in workspace.trained_on:
            source = workspace.source(collection.name)
            made[collection.name] = expert_step(source, workspace.encoder, workspace.training)
        return made

    @property
    def models(self) -> list[ScoredModel]:
        """The base and all experts."""
        experts = [ScoredModel.expert(name, step) for name, step in self.train_steps.items()]
        return [ScoredModel.base(self._workspace.encoder), *experts]

    @cached_property
    def experts(self) -> dict[str, Expert]:
        """The trained experts."""
        return self._workspace.train(self.train_steps)

    def untrained(self) -> list[str]:
        """Domains whose expert, under the present settings, has not been trained."""
        store = self._workspace.store
        return [name for name, step in self.train_steps.items() if not store.exists(step.key)]

    @property
    def source_split(self) -> str:
        """The split that routers learn from."""
        return "dev" if self._workspace.scoring.source == "dev" else "train"

    def _source_steps(self) -> list[ScoreSplit]:
        return self._workspace.score_steps(
            self.source_split, self.models, list(self._workspace.expert_domains)
        )

    def _held_out_steps(self) -> list[ScoreSplit]:
        """Scores of dev queries, to choose the fallback by, where the scored queries taught the experts."""
        workspace = self._workspace
        if workspace.scoring.source != "train" or not workspace.routing.chooses_fallback:
            return []
        return workspace.score_steps("dev", self.models, list(workspace.expert_domains))

    def _routed_steps(self, split: str, names: list[str]) -> list[ScoreSplit]:
        """Scores of queries that are to be routed: of the base, or of all models if vectors are merged."""
        merges_vectors = self._workspace.routing.merge == "embeddings"
        return self._workspace.score_steps(split, self.models if merges_vectors else self.models[:1], names)

    @cached_property
    def hybrid(self) -> Hybrid:
        """BM25 beside the routed vectors."""
        return Hybrid(self._workspace, self._route)

    @cached_property
    def scores(self) -> ScoreTable:
        """The queries that routers learn from, scored with every expert and the base."""
        workspace = self._workspace
        table = workspace.scores(self._source_steps())
        if workspace.scoring.source == "held_out":
            for name, scores in table.items():
                groups = workspace.collections[name].groups("train")
                held = set(split_train(scores.query_ids, workspace.training.held_out_fraction, groups)[1])
                table[name] = scores.subset([row for row, i in enumerate(scores.query_ids) if i in held])
        return table

    def test_scores(self) -> ScoreTable:
        """The test queries, scored with every expert and the base."""
        return self.split_scores("test", [each.name for each in self._workspace.tested])

    def split_scores(self, split: str, names: list[str]) -> ScoreTable:
        """A split of some domains, scored with every expert and the base."""
        return self._workspace.scores(self._workspace.score_steps(split, self.models, names))

    @property
    def router(self) -> Router:
        """The recipe's router, fitted."""
        return self._fitted[0]

    @property
    def routing(self) -> RoutingSettings:
        """The recipe's routing, with the fallback that ``auto`` has chosen."""
        return self._fitted[1]

    @cached_property
    def _fitted(self) -> tuple[Router, RoutingSettings]:
        with self._workspace.timed("route"):
            return self._fit(self._workspace.routing)

    def _fit(self, settings: RoutingSettings) -> tuple[Router, RoutingSettings]:
        data = self.routing_data(settings)
        router = fit(data, settings)
        chosen = self._with_chosen_fallback(router, data, settings)
        return calibrate(router, data, chosen), chosen

    def _with_chosen_fallback(
        self, router: Router, data: RoutingData, settings: RoutingSettings
    ) -> RoutingSettings:
        """The settings with the fallback that ``auto`` stands for: chosen once, and kept in storage."""
        if not settings.chooses_fallback:
            return settings
        steps = [*self._source_steps(), *self._held_out_steps()]
        store, scored = self._workspace.store, [step.key for step in steps]
        source = self._workspace.scoring.source
        key = (
            f"fallbacks/{content_hash(scored, source, settings.model_dump(mode='json'), CALIBRATION_VERSION)}"
        )
        if not store.exists(key):
            data = replace(data, held_out=self._held_out(settings))
            chosen = with_chosen_fallback(router, data, settings).fallback
            assert chosen is not None
            store.commit(key, {"kind": "fallback", "chosen": chosen.model_dump(mode="json")})
        kept = FallbackSettings.model_validate(store.manifest(key)["chosen"])
        return settings.model_copy(update={"fallback": kept})

    def fit(self, settings: RoutingSettings) -> Router:
        """Fit a router, the recipe's or another, on the scored queries.

        Raises:
            BadInput: the settings do not fit the data.
        """
        return self._fit(settings)[0]

    def routing_data(self, settings: RoutingSettings) -> RoutingData:
        """What a router of these settings learns from."""
        names = list(self._workspace.expert_domains)
        if settings.include_base:
            names.append(BASE)
        split = self.source_split
        return RoutingData(
            names,
            {name: scores.utilities(names) for name, scores in self.scores.items()},
            self._workspace.features(self.scores, split, settings.features),
            self._workspace.query_texts(self.scores, split),
            self._mixed.mixed_ndcg if settings.fallback is not None else None,
            background=self._background(settings),
        )

    def _background(self, settings: RoutingSettings) -> dict[str, Vectors]:
        """Features of the built-in sample's queries, which a single domain is compared with."""
        if settings.fallback is None or len(self._workspace.expert_domains) > 1:
            return {}
        return self._workspace.sample_features(settings.features)

    def _held_out(self, settings: RoutingSettings) -> HeldOut | None:
        """The dev queries, where the scored queries taught the experts."""
        steps = self._held_out_steps()
        if not steps:
            return None
        scores = self._workspace.scores(steps)
        features = self._workspace.features(scores, "dev", settings.features)
        return HeldOut(features, self.mixed_vectors(scores, "dev").mixed_ndcg)

    @cached_property
    def _mixed(self) -> MixedVectors:
        """Measures mixtures of experts on the queries that routers learn from."""
        return self.mixed_vectors(self.scores, self.source_split)

    def mixed_vectors(self, scores: ScoreTable, split: str) -> MixedVectors:
        """Measures mixtures of experts on scored queries of a split."""
        workspace = self._workspace
        own = {name: workspace.collections[name] for name in scores}
        return MixedVectors(
            scores=scores,
            qrels={name: each.qrels(split) for name, each in own.items()},
            indexes={name: workspace.open_index(name) for name in own},
            own_kept={name: each.own_kept(split) for name, each in own.items()},
            passages=[name for name, each in own.items() if each.settings.passages],
        )

    @classmethod
    def system_names(cls, settings: Any, expert_domains: Sequence[str]) -> list[str]:
        """The base, each expert, routers, oracles, and all of it with BM25."""
        routers = (ROUTED, *BASELINE_ROUTERS)
        oracles = (DATASET_ORACLE, INSTANCE_ORACLE)
        return [BASE, *expert_domains, OWN_EXPERT, *routers, *HYBRID_SYSTEMS, *oracles]

    def deployment(self) -> Deployment:
        """All experts and the recipe's router."""
        workspace = self._workspace
        return Deployment(
            ROUTED,
            self.experts,
            self.router,
            workspace.encoder,
            self.routing,
            {name: workspace.corpus_step(name).key for name in workspace.collections},
            self.hybrid.weights if any(workspace.lexical.values()) else None,
        )

    def calibrate(self, domain: str) -> Calibration:
        """Learn how much BM25 counts beside the routed vectors of a domain's dev queries."""
        return self.hybrid.calibrate(domain)

    def systems(self) -> list[System]:
        """The base, each expert, routers, oracles, and what BM25 adds."""
        scores = self.test_scores()
        self.hybrid.build()
        routed = {ROUTED: self._routed(self.router, self.routing, scores)}
        routed[ROUTED] = replace(routed[ROUTED], name=ROUTED, headline=True, rival=True)
        for name, settings in BASELINE_ROUTERS.items():
            try:
                system = self._routed(self.fit(settings), settings, scores)
            except BadInput as error:
                log.warning("%s is left out of the evaluation: %s", name, error)
                continue
            routed[name] = replace(system, name=name, headline=name == PAPER, rival=name == PAPER)
        ranks = {BASE: self._rank_by(lambda _: BASE), OWN_EXPERT: self._rank_by(lambda dataset: dataset)}
        singles = [replace(system, rank=ranks.get(system.name)) for system in single_systems(scores)]
        return [*singles, *routed.values(), *self.hybrid.systems(), *oracles(scores)]

    def _routed(self, router: Router, settings: RoutingSettings, scores: ScoreTable) -> System:
        """What a fitted router makes of the test queries, run as in service: one search a query."""
        workspace = self._workspace
        features = workspace.features(scores, "test", settings.features)
        weights = {name: router.weights(features[name]) for name in scores}
        if settings.merge == "embeddings":
            vectors = {name: mix(table, router.experts, weights[name]) for name, table in scores.items()}
            encodings = {name: float((own > 0).sum(axis=1).mean()) for name, own in weights.items()}

            def vectors_of(dataset: str) -> Vectors:
                return mix(self.split_scores("test", [dataset])[dataset], router.experts, weights[dataset])

        else:
            steps = self._mixture_steps(router, "test", weights)
            workspace.build(steps.values())
            vectors = {name: step.read(workspace.store) for name, step in steps.items()}
            encodings = dict.fromkeys(scores, 1.0)

            def vectors_of(dataset: str) -> Vectors:
                return steps[dataset].read(workspace.store)

        measured = {}
        for name, table in scores.items():
            run = search_test(workspace, name, table.query_ids, vectors[name], workspace.scoring.depth)
            measured[name] = measure(workspace.collections[name].qrels("test"), run, table.query_ids)
        rank = dense_rank(workspace, vectors_of)
        return System("", Kind.ROUTER, measured, Routing(router.experts, weights), encodings, rank=rank)

    def _rank_by(self, model_of: Callable[[str], str]) -> Rank:
        """What a model finds, for each test set one of the base and experts."""

        def vectors(dataset: str) -> Vectors:
            table = self.split_scores("test", [dataset])[dataset]
            return table.vectors_QEd[:, table.of(model_of(dataset))]

        return dense_rank(self._workspace, vectors)

    def _mixture_steps(
        self, router: Router, split: str, weights: Mapping[str, Vectors]
    ) -> dict[str, EncodeMixtures]:
        workspace = self._workspace
        return {
            name: mixture_step(
                workspace.collections[name], split, own, router.experts, self.experts,
                workspace.encoder, workspace.scoring,
            )
            for name, own in weights.items()
        }  # fmt: skip

    def _route(self, split: str, names: list[str]) -> dict[str, RoutedQueries]:
        """The queries of a split as the recipe's router has them encoded; vectors may be yet to be made."""
        workspace, router, settings = self._workspace, self.router, self._workspace.routing
        score_steps = {name: self._routed_steps(split, [name]) for name in names}
        scores = workspace.scores([step for own in score_steps.values() for step in own])
        features = workspace.features(scores, split, settings.features)
        weights = {name: router.weights(features[name]) for name in names}
        if settings.merge == "embeddings":
            by_model = {n: {step.model.name: step for step in own} for n, own in score_steps.items()}
            vectors = {
                name: QueryVectors(tuple(by_model[name][expert] for expert in router.experts), weights[name])
                for name in names
            }
        else:
            steps = self._mixture_steps(router, split, weights)
            vectors = {name: QueryVectors((steps[name],)) for name in names}
        return {name: RoutedQueries(router.experts, weights[name], vectors[name]) for name in names}


def single_systems(scores: ScoreTable) -> list[System]:
    """The base, each expert alone, and each domain's own expert, read from the score table."""
    names = next(iter(scores.values())).experts
    of = {
        name: {dataset: table.measured[:, table.of(name)] for dataset, table in scores.items()}
        for name in names
    }
    own = {dataset: of[dataset][dataset] for dataset in scores if dataset in names}
    return [
        System(BASE, Kind.BASE, of[BASE], headline=True, rival=True),
        *(System(name, Kind.EXPERT, of[name]) for name in names if name != BASE),
        System(OWN_EXPERT, Kind.OWN, own, headline=True, rival=True),
    ]


def oracles(scores: ScoreTable) -> list[System]:
    """The best expert for each test set, and for each query. The base is no candidate, as in the paper."""
    by_dataset: dict[str, Measured] = {}
    by_query: dict[str, Measured] = {}
    shares: dict[str, Vectors] = {}
    experts = [name for name in next(iter(scores.values())).experts if name != BASE]
    for dataset, table in scores.items():
        columns = np.array([table.of(name) for name in experts])
        ndcg_QT: Values = table.measured.ndcg_at_10[:, columns]
        by_dataset[dataset] = table.measured[:, columns[ndcg_QT.mean(axis=0).argmax()]]
        best_Q = columns[ndcg_QT.argmax(axis=1)]
        by_query[dataset] = table.measured[np.arange(len(best_Q)), best_Q]
        is_best_QT = ndcg_QT >= ndcg_QT.max(axis=1, keepdims=True) - 1e-9
        shares[dataset] = is_best_QT / is_best_QT.sum(axis=1, keepdims=True)
    return [
        System(DATASET_ORACLE, Kind.ORACLE, by_dataset, headline=True, rival=True),
        System(INSTANCE_ORACLE, Kind.ORACLE, by_query, Routing(experts, shares), headline=True),
    ]


def measured_by(scores: ScoreTable, model: str) -> Mapping[str, Measured]:
    """One model's measures by dataset."""
    return {name: table.measured[:, table.of(model)] for name, table in scores.items()}
