"""The steps of a run, each a function of a recipe. The command line, jobs and tests all call these.

Every step makes what it needs and is not there yet, and leaves alone what is: artifacts are found by the
hash of what they were made from, so running a step again costs seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.config.recipe import Recipe
from routerretriever.corpus.artifact import Corpus
from routerretriever.corpus.build import build_corpora
from routerretriever.datasets.collection import Collection, open_collection
from routerretriever.errors import BadInput, DatasetError, RecipeError
from routerretriever.evaluation.evaluate import PAPERS, RIVALS, ROUTED, Evaluation, RoutedBy, evaluate, mix
from routerretriever.hashing import content_hash
from routerretriever.index.dense import SearchIndex, open_index
from routerretriever.measures import Measured
from routerretriever.reports.page import write_reports
from routerretriever.reports.plots import Section, write_sections
from routerretriever.routing.data import RoutingData
from routerretriever.routing.fit import fit_router
from routerretriever.routing.protocol import Router, Vectors
from routerretriever.routing.settings import RoutingSettings
from routerretriever.runtime.cluster import connect, publish_seconds
from routerretriever.runtime.metrics import figures
from routerretriever.runtime.progress import StepClock, log
from routerretriever.scoring.mixtures import encode_mixtures
from routerretriever.scoring.table import ScoreTable, SplitScores, build_scores
from routerretriever.studies.analyses import (
    Analyses,
    LearningCurve,
    NoiseFloor,
    analyse,
    analyses_sections,
    learning_curve,
    learning_curve_section,
    noise_floor,
    noise_floor_section,
)
from routerretriever.studies.offline import RouterBench
from routerretriever.studies.tuning import Trial, tune
from routerretriever.training.experts import (
    Expert,
    average_experts,
    expert_key,
    train_copies,
    train_experts,
    train_general_prefix,
    train_joint,
    train_samples,
)
from routerretriever.types import BASE

if TYPE_CHECKING:
    from routerretriever.bundle.bundle import ServiceFacts
    from routerretriever.encoder.encoder import Encoder, Features
    from routerretriever.methods.ddr import DdrPipeline

_SHARE_QUERIES = 200
"""Dev queries of each domain that say what healthy routing looks like."""


@dataclass(frozen=True)
class Registered:
    """What ``register`` left in the registry."""

    uri: str
    version: int
    expert_versions: dict[str, int]
    tracking_uri: str
    verdict: str | None = None
    """What held-out queries say of an expert that was added, and what would help one that is not deployed."""


class Pipeline:
    """A recipe at work. Steps are properties, made once and in the order in which they need each other."""

    def __init__(self, recipe: Recipe) -> None:
        """Check that every collection is there before anything is computed.

        Raises:
            DatasetError: a domain's folder is missing or lacks a split that its part needs.
        """
        self.recipe = recipe
        self.clock = StepClock()
        self._published: dict[str, float] = {}
        self._texts: dict[tuple[str, str], dict[str, str]] = {}
        self._early_features: dict[tuple[str, str, Features], Vectors] = {}
        self.store = ArtifactStore.open(recipe.storage)
        self.collections = {name: open_collection(name, recipe.domain_path(name)) for name in recipe.domains}
        for name in recipe.expert_domains:
            if "train" not in self.collections[name].splits():
                raise DatasetError(
                    f"domains.{name}: {self.collections[name].folder} has no train split; "
                    "add qrels/train.tsv or set expert: false"
                )

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        """Time a step; one that is shown only at the end of a run may not be shown at all before Ray ends."""
        with self.clock.step(name):
            yield
        now, before = dict(self.clock.seconds), self._published
        publish_seconds(self.recipe.name, {step: now[step] - before.get(step, 0.0) for step in now})
        self._published.update(now)

    @property
    def expert_collections(self) -> list[Collection]:
        """Collections that get an expert."""
        return [self.collections[name] for name in self.recipe.expert_domains]

    @property
    def report_folder(self) -> Path:
        """Where tables for people are written."""
        root = Path(self.store.uri) if self.store.is_local else Path("runs") / self.recipe.name
        return root / "reports" / self.recipe.name

    @cached_property
    def corpora(self) -> dict[str, Corpus]:
        """Encode the documents of all collections."""
        connect()
        recipe = self.recipe
        with self._step("encode"):
            return build_corpora(list(self.collections.values()), recipe.encoder, recipe.corpus, self.store)

    @cached_property
    def experts(self) -> dict[str, Expert]:
        """Train the experts."""
        _ = self.corpora
        recipe = self.recipe
        with self._step("train"):
            return train_experts(self.expert_collections, recipe.encoder, recipe.training, self.store)

    @cached_property
    def single_models(self) -> dict[str, Expert]:
        """Train the recipe's baselines."""
        _ = self.corpora
        recipe = self.recipe
        joint = {name: model for name, model in recipe.single_models.items() if model.kind == "joint"}
        made: dict[str, Expert] = {}
        if joint:
            with self._step("train"):
                made = train_joint(
                    joint, self.expert_collections, recipe.encoder, recipe.training, self.store
                )
        for name in recipe.single_models.keys() - joint.keys():
            made[name] = average_experts(name, self.experts, self.store)
        return {name: made[name] for name in recipe.single_models}

    @cached_property
    def ddr(self) -> DdrPipeline | None:
        """Dynamic Dense Retrieval with its general prefix, if the recipe asks for them."""
        recipe = self.recipe
        if recipe.ddr is None:
            return None
        from routerretriever.methods.ddr import DdrPipeline

        general = None
        if recipe.ddr.general is not None:
            _ = self.corpora
            collections = [self.collections[name] for name in recipe.general_domains]
            with self._step("train"):
                general = train_general_prefix(
                    collections,
                    recipe.encoder,
                    recipe.training,
                    recipe.ddr.general,
                    recipe.ddr.prefix,
                    self.store,
                )
        made = DdrPipeline(recipe, general)
        made.clock, made._published = self.clock, self._published  # its work is part of this run's steps
        return made

    @cached_property
    def scores(self) -> ScoreTable:
        """Score the queries that routers learn from with every expert and the base."""
        source = self.recipe.scoring.source
        if source == "dev":
            return self._scores(self.expert_collections, "dev", self.experts)
        table = self._scores(self.expert_collections, "train", self.experts)
        fraction = self.recipe.training.held_out_fraction
        if source == "held_out":
            from routerretriever.datasets.splitting import split_train

            for name, scores in table.items():
                held = set(split_train(scores.query_ids, fraction)[1])
                table[name] = scores.subset([row for row, i in enumerate(scores.query_ids) if i in held])
        return table

    @cached_property
    def router(self) -> Router:
        """Build the pilot library, or whatever the recipe's router learns, and the router."""
        with self._step("route"):
            return self.fit(self.recipe.routing)

    def fit(self, settings: RoutingSettings) -> Router:
        """Fit a router, the recipe's or another, on the scored queries."""
        return fit_router(self.routing_data(settings), settings)

    def routing_data(self, settings: RoutingSettings) -> RoutingData:
        """What a router of these settings learns from."""
        names = list(self.recipe.expert_domains)
        if settings.include_base:
            names.append(BASE)
        split = self.source_split
        return RoutingData(
            names,
            {name: scores.utilities(names) for name, scores in self.scores.items()},
            self.features(self.scores, split, settings.features),
            {name: self.query_texts(scores, split) for name, scores in self.scores.items()},
        )

    def features(self, scores: ScoreTable, split: str, features: Features) -> dict[str, Vectors]:
        """Routing features of scored queries, in the score table's order."""
        if features == "embedding":
            return {name: table.base_vectors for name, table in scores.items()}
        made = {}
        for name, table in scores.items():
            key = (name, split, features)
            if key not in self._early_features:
                texts = self.query_texts(table, split)
                self._early_features[key] = self._base_encoder.routing_features(texts, features)
            made[name] = self._early_features[key]
        return made

    def query_texts(self, scores: SplitScores, split: str) -> list[str]:
        """Texts of scored queries, in the score table's order."""
        key = (scores.dataset, split)
        if key not in self._texts:
            self._texts[key] = self.collections[scores.dataset].queries(split)
        texts = self._texts[key]
        return [texts[query] for query in scores.query_ids]

    @cached_property
    def _base_encoder(self) -> Encoder:
        from routerretriever.encoder.encoder import load_encoder

        return load_encoder(self.recipe.encoder)

    @cached_property
    def evaluation(self) -> Evaluation:
        """Evaluate base, experts, router and oracles on every test split, and write the reports."""
        with self._step("evaluate"):
            return self._evaluate()

    def _evaluate(self) -> Evaluation:
        tested = self._tested()
        scores = self._scores(tested, "test", self.experts)
        singles: dict[str, dict[str, Measured]] = {name: {} for name in self.single_models}
        for dataset, table in (self._scores(tested, "test", self.single_models) if singles else {}).items():
            for name in singles:
                singles[name][dataset] = table.measured[:, table.of(name)]
        if self.ddr is not None:
            singles |= self.ddr.measured(tested)
        # The paper's routers are always beside the deployed one, so that nobody has to take our word.
        routers = {ROUTED: self._routed(self.router, self.recipe.routing, scores)}
        for name, settings in RIVALS.items():
            try:
                routers[name] = self._routed(self.fit(settings), settings, scores)
            except BadInput as error:
                log.warning("%s is left out of the evaluation: %s", name, error)
        result = evaluate(
            scores,
            singles,
            {name: self.query_texts(table, "test") for name, table in scores.items()},
            {collection.name: collection.qrels("test") for collection in tested},
            routers,
            {collection.name: self._index(collection.name) for collection in tested},
            self.recipe.scoring.depth,
            self.recipe.model_dump(mode="json"),
        )
        for path in write_reports(result, self.report_folder):
            log.info("wrote %s", path)
        return result

    def base_means(self, measure_name: str) -> dict[str, float]:
        """Test set -> mean of one of ``MEASURES`` with the bare base; no expert is trained for it."""
        scores = self._scores(self._tested(), "test", {})
        return {
            name: float(getattr(table.measured[:, table.of(BASE)], measure_name).mean())
            for name, table in scores.items()
        }

    def tune_router(self, unseen_share: float) -> list[Trial]:
        """Try routers on dev, write what was tried beside the reports; the best comes first.

        Raises:
            BadInput: routers would learn from the dev queries that they are measured on.
        """
        if self.recipe.scoring.source == "dev":
            raise BadInput("scoring.source: routers learn from dev; tuning needs 'train' or 'held_out'")
        bench = self._bench(self.expert_collections, "dev")
        layers = self._base_encoder.layers
        # The input embeddings, and the middle, where a query's domain is plainest.
        middle = sorted({0, layers // 2, 2 * layers // 3})
        trials = tune(bench, middle, unseen_share, self.recipe.routing.merge)
        self._write_json("router-tuning.json", [trial.as_dict() for trial in trials])
        return trials

    def analyse(self, order: list[str] | None, clusters: list[int]) -> Analyses:
        """The paper's analyses on the test sets, written beside the reports.

        Raises:
            RecipeError: the order does not name each expert once, or a number of centroids is not positive.
        """
        known, order = self.recipe.expert_domains, order or self.recipe.expert_domains
        if sorted(order) != sorted(known):
            raise RecipeError(f"order: found {', '.join(order)}; name each once of {', '.join(known)}")
        if not clusters or min(clusters) < 1:
            raise RecipeError(f"clusters: found {clusters}; give one or more numbers from 1 up")
        bench = self._bench(self._tested(), "test")
        analyses = analyse(self._portable(bench), self.recipe.routing, order, clusters, self.store)
        self._write_json("analyses.json", asdict(analyses))
        self._write_page("analyses", analyses_sections(analyses))
        return analyses

    def _portable(self, bench: RouterBench) -> RouterBench:
        """The same for workers, with the features of the deployed router and the paper's alone."""
        kinds = (self.recipe.routing, PAPERS)
        data = {(one.features, one.include_base): self.routing_data(one) for one in kinds}
        features = {one.features: bench.features(one) for one in kinds}
        return replace(
            bench,
            fit_data=lambda settings: data[settings.features, settings.include_base],
            features=lambda settings: features[settings.features],
        )

    def noise_floor(self, domain: str, copies: int) -> NoiseFloor:
        """Train one expert with several seeds, and see what an oracle gains by choosing among the copies.

        Raises:
            RecipeError: the domain has no expert or no test split, or fewer than two copies are asked for.
        """
        collection = self._studied(domain)
        if copies < 2:
            raise RecipeError(f"copies: {copies} is too few; an oracle needs 2 or more to choose from")
        recipe = self.recipe
        _ = self.corpora
        with self._step("train"):
            trained = train_copies(collection, recipe.encoder, recipe.training, copies, self.store)
        floor = noise_floor(
            self._scores([collection], "test", trained)[domain],
            self._scores([collection], "test", self.experts)[domain],
        )
        self._write_json(f"noise-floor-{domain}.json", asdict(floor))
        self._write_page(f"noise-floor-{domain}", [noise_floor_section(floor)])
        return floor

    def learning_curve(self, domain: str, sizes: list[int] | None) -> LearningCurve:
        """Train a domain's expert on samples of its train queries, and on all of them; measure all on test.

        Raises:
            RecipeError: the domain has no expert or no test split, or there are no samples of these sizes.
        """
        collection, recipe = self._studied(domain), self.recipe
        queries = len(collection.qrels("train"))
        sizes = sizes or [queries // 8, queries // 4, queries // 2]
        if min(sizes) < 1 or max(sizes) >= queries:
            raise RecipeError(
                f"sizes: found {sizes}; {domain} has {queries} train queries, and all of them are always "
                f"tried; give numbers from 1 to {queries - 1}"
            )
        _ = self.corpora
        with self._step("train"):
            trained = train_samples(
                collection, recipe.encoder, recipe.training, sorted(set(sizes)), self.store
            )
        experts = {expert.domain: expert for expert in trained.values()}
        curve = learning_curve(
            self._scores([collection], "test", experts)[domain],
            {size: expert.domain for size, expert in trained.items()},
        )
        self._write_json(f"learning-curve-{domain}.json", asdict(curve))
        self._write_page(f"learning-curve-{domain}", [learning_curve_section(curve)])
        return curve

    def _studied(self, domain: str) -> Collection:
        if domain not in self.recipe.expert_domains:
            there = ", ".join(self.recipe.expert_domains)
            raise RecipeError(f"domain: no expert {domain!r}; there are {there}")
        collection = self.collections[domain]
        if "test" not in collection.splits():
            raise RecipeError(f"domain: {collection.folder} has no test split to measure on; choose another")
        return collection

    def _write_page(self, name: str, sections: list[Section]) -> None:
        path = self.report_folder / f"{name}.html"
        log.info("wrote %s", write_sections(f"{self.recipe.name}: {name}", sections, path))

    def _write_json(self, name: str, content: Any) -> None:
        self.report_folder.mkdir(parents=True, exist_ok=True)
        path = self.report_folder / name
        path.write_text(json.dumps(content, indent=2), encoding="utf-8")
        log.info("wrote %s", path)

    def _tested(self) -> list[Collection]:
        tested = [collection for collection in self.collections.values() if "test" in collection.splits()]
        if not tested:
            raise DatasetError("no domain has a test split; nothing can be evaluated")
        return tested

    def _bench(self, collections: list[Collection], split: str) -> RouterBench:
        scores = self._scores(collections, split, self.experts)
        return RouterBench(
            fit_data=self.routing_data,
            scores=scores,
            features=lambda settings: self.features(scores, split, settings.features),
            qrels={name: self.collections[name].qrels(split) for name in scores},
            indexes={name: self._index(name) for name in scores},
            identity=content_hash(
                {name: expert.version for name, expert in self.experts.items()},
                {name: self.corpora[name].key for name in scores},
                [collection.split_hash(split) for collection in collections],
                [collection.split_hash(self.source_split) for collection in self.expert_collections],
                self.recipe.scoring.source,
                self.recipe.corpus.index.model_dump(),
            ),
        )

    def _index(self, name: str) -> SearchIndex:
        return open_index(self.corpora[name], self.recipe.corpus.index, self.store)

    def _routed(self, router: Router, settings: RoutingSettings, scores: ScoreTable) -> RoutedBy:
        features = self.features(scores, "test", settings.features)
        weights = {name: router.weights(features[name]) for name in scores}
        if settings.merge == "embeddings":
            vectors = {name: mix(table, router.experts, weights[name]) for name, table in scores.items()}
        else:
            vectors = encode_mixtures(
                [self.collections[name] for name in scores], "test", weights, router.experts,
                self.experts, self.recipe.encoder, self.recipe.scoring, self.store,
            )  # fmt: skip
        return RoutedBy(router.experts, settings.merge, weights, vectors)

    def register(self, release: bool = True) -> Registered:
        """Register experts and bundle in MLflow; ``release`` moves the alias to the new bundle."""
        from routerretriever.registry.registry import Registry

        deployed: Pipeline = self
        way = ROUTED
        if self.recipe.deploy == "ddr":
            assert self.ddr is not None
            deployed, way = self.ddr, self.ddr.deployed_as
        experts, evaluation, router = deployed.experts, self.evaluation, deployed.router
        registry = Registry(self.recipe, self.store)
        version, versions = registry.register_bundle(
            deployed.recipe,
            router,
            experts,
            evaluation,
            way,
            deployed._service_facts(),
            self.store,
            release,
            figures(self.clock.seconds, self.clock.counts),
        )
        log.info("registered %s version %d in %s", self.recipe.registry.name, version, registry.tracking_uri)
        return Registered(registry.bundle_uri, version, versions, registry.tracking_uri)

    def _service_facts(self) -> ServiceFacts:
        from routerretriever.bundle.bundle import ServiceFacts, ValidationQuery

        served = self.recipe.serving.collections or tuple(self.recipe.domains)
        canary, weights = {}, []
        for collection in self.expert_collections:
            texts, qrels = collection.queries("dev"), collection.qrels("dev")
            if collection.name in served:
                asked = list(texts)[: self.recipe.serving.releases.validation_queries]
                canary[collection.name] = [ValidationQuery(texts[query], qrels[query]) for query in asked]
            features = self._base_encoder.routing_features(
                list(texts.values())[:_SHARE_QUERIES], self.recipe.routing.features
            )
            weights.append(self.router.weights(features).mean(axis=0))
        shares = dict(zip(self.router.experts, np.mean(weights, axis=0).tolist(), strict=True))
        return ServiceFacts({name: self.corpora[name].key for name in served}, canary, shares)

    def untrained(self) -> list[str]:
        """Domains whose expert, under the recipe's present settings, has not been trained."""
        return [
            collection.name
            for collection in self.expert_collections
            if not self.store.exists(expert_key(collection, self.recipe.encoder, self.recipe.training))
        ]

    @property
    def source_split(self) -> str:
        """The split that routers learn from."""
        return "dev" if self.recipe.scoring.source == "dev" else "train"

    def _scores(
        self,
        collections: list[Collection],
        split: str,
        experts: dict[str, Expert],
        only: dict[str, list[str]] | None = None,
    ) -> ScoreTable:
        _ = self.corpora
        recipe = self.recipe
        with self._step("score"):
            return build_scores(
                collections,
                split,
                experts,
                recipe.encoder,
                recipe.corpus.index,
                recipe.scoring,
                self.store,
                only,
            )


def require_trained(pipeline: Pipeline, except_for: str | None) -> None:
    """Make sure that a change of domains retrains nobody else.

    Raises:
        RecipeError: other experts would be trained anew under the recipe's present settings or data.
    """
    others = [name for name in pipeline.untrained() if name != except_for]
    if others:
        raise RecipeError(
            f"the experts of {', '.join(others)} are not trained under this recipe's present settings and "
            "data; run `routerretriever run` with the recipe first, or undo the change"
        )
