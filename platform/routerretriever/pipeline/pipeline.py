"""A recipe at work: the order of steps, the evaluation over all methods, and what is registered.

The command line, jobs and tests all call this. Every step makes what is missing and leaves alone what is
there: artifacts are found by the hash of what they were made from, so running again costs seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from routerretriever.adapters.check import check_encoder
from routerretriever.artifacts.step import Status, Step, in_order
from routerretriever.config.recipe import Recipe
from routerretriever.corpus.artifact import Corpus
from routerretriever.datasets.collection import Collection
from routerretriever.datasets.preflight import Report, preflight
from routerretriever.datasets.statistics import tokens_of
from routerretriever.encoder.card import read_card
from routerretriever.encoder.whole import require_whole
from routerretriever.errors import DatasetError, RecipeError, without_secrets
from routerretriever.evaluation.evaluation import Evaluation, assemble
from routerretriever.methods.base import Calibration, Deployment, Method, Workspace
from routerretriever.methods.known import METHODS
from routerretriever.pipeline.collections import open_collections, splits_read
from routerretriever.pipeline.places import open_storage
from routerretriever.reports.page import write_reports
from routerretriever.reports.tables import as_dict
from routerretriever.runtime.cluster import require_cluster
from routerretriever.runtime.metrics import figures
from routerretriever.runtime.progress import StepClock, at_work, log
from routerretriever.runtime.ray_metrics import publish_seconds
from routerretriever.scoring.table import ScoredModel
from routerretriever.training.rerankers import open_reranker
from routerretriever.types import BASE

if TYPE_CHECKING:
    from routerretriever.bundle.build import ServiceFacts
    from routerretriever.registry.registry import Registry

M = TypeVar("M", bound=Method)

_SHARE_QUERIES = 200
"""Dev queries of each domain that say what healthy routing looks like."""
_ROUNDS = 10
"""Steps can make others known this many times in a row."""


@dataclass(frozen=True)
class Registered:
    """What ``register`` left in the registry."""

    uri: str
    """Of the released bundle if that is this version, else of the version."""
    version: int
    expert_versions: dict[str, int]
    tracking_uri: str
    verdict: str | None = None
    """What held-out queries say of an expert that was added, and what would help one that is not deployed."""
    released: bool = True


class _PublishingClock(StepClock):
    """A clock whose seconds appear among Ray's metrics when a stage ends."""

    def __init__(self, recipe: str) -> None:
        super().__init__()
        self._recipe = recipe
        self._published: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a block; what it took is published at once, as Ray may end before anybody asks."""
        with super().step(name):
            yield
        now, before = dict(self.seconds), self._published
        publish_seconds(self._recipe, {step: now[step] - before.get(step, 0.0) for step in now})
        self._published.update(now)


class Pipeline:
    """A recipe at work. Nothing is made before it is asked for."""

    def __init__(self, recipe: Recipe) -> None:
        """Check that every collection is there before anything is computed.

        Raises:
            DatasetError: a domain's folder is missing or lacks a split that its part needs.
            RecipeError: a method's settings do not fit the domains.
        """
        self.recipe = recipe
        self.store = open_storage(recipe)
        self.collections = open_collections(recipe)
        self.clock = _PublishingClock(recipe.name)
        self.workspace = Workspace(
            self.store, self.collections, tuple(recipe.expert_domains), recipe.encoder, recipe.corpus,
            recipe.training, recipe.scoring, recipe.routing,
            {name: recipe.lexical(name) for name in self.collections}, tuple(recipe.calibrated_domains),
            self.clock,
        )  # fmt: skip
        self.methods: dict[str, Method] = {
            name: METHODS[name](settings, self.workspace) for name, settings in recipe.methods.named().items()
        }

    @property
    def expert_collections(self) -> list[Collection]:
        """Collections that get an expert."""
        return self.workspace.trained_on

    @property
    def deployed(self) -> Method:
        """The method that is registered and served."""
        return self.methods[self.recipe.deploy]

    def method(self, kind: type[M]) -> M:
        """The run's method of one kind.

        Raises:
            RecipeError: the recipe does not name it.
        """
        found = self.methods.get(kind.name)
        if not isinstance(found, kind):
            raise RecipeError(f"methods.{kind.name}: this needs it; name it in the recipe")
        return found

    @property
    def report_folder(self) -> Path:
        """Where tables for people are written."""
        root = Path(self.store.uri) if self.store.is_local else Path("runs") / self.recipe.name
        return root / "reports" / self.recipe.name

    def steps(self) -> list[Step]:
        """The steps of all methods that are known now, inputs first."""
        return in_order(step for method in self.methods.values() for step in method.steps())

    @cached_property
    def preflight(self) -> Report:
        """Read every split that the run will read, and load the encoder once, before any worker starts.

        Raises:
            BadInput: ``RAY_ADDRESS`` is no cluster's, and something has to be made.
            Unavailable: no cluster answers there, and something has to be made.
            DatasetError: a collection is flawed; the message names file and line.
            EncoderError: the base cannot be used as the recipe says.
            TeacherError: the experts' teacher cannot.
        """
        needs = splits_read(self.recipe, self.collections)
        require_whole(self.recipe.encoder)
        report = preflight(self.collections.values(), needs)
        if any(step.status(self.store) is not Status.PRESENT for step in self.steps()):
            require_cluster()
        card = check_encoder(
            self.recipe.encoder, (self.recipe.training.adapter,), self.recipe.routing.features
        )
        if (teacher := self.recipe.training.teacher) is not None:
            open_reranker(teacher).check()
        log.info("encoder %s: %s", self.recipe.encoder.name, "; ".join(card.lines()))
        for warning in card.warnings:
            log.warning("encoder %s: %s", self.recipe.encoder.name, warning)
        report = report.with_reading(self.collections.values(), tokens_of(self.recipe.encoder))
        for name in self.collections:
            for note in report.notes(name):
                log.warning("%s: %s", name, note)
        return report

    def build(self, stages: Sequence[str] | None = None) -> None:
        """Make what is missing.

        Args:
            stages: only steps of these stages, and their inputs; by default all.

        Raises:
            DatasetError: a collection is flawed, or has changed since it was checked.
        """
        self.preflight.require_unchanged(self.collections.values())
        seen: set[str] = set()
        for _ in range(_ROUNDS):
            wanted = [step for step in self.steps() if stages is None or step.stage in stages]
            if {step.key for step in wanted} <= seen:
                return
            self.workspace.build(wanted)
            seen |= {step.key for step in wanted}
        raise AssertionError("methods name new steps without end")

    @cached_property
    def corpora(self) -> dict[str, Corpus]:
        """The encoded documents of all collections."""
        self.workspace.build([self.workspace.corpus_step(name) for name in self.collections])
        return {name: self.workspace.open_corpus(name) for name in self.collections}

    def require_test_sets(self) -> list[Collection]:
        """The collections that are evaluated.

        Raises:
            DatasetError: no domain has a test split.
        """
        if not self.workspace.tested:
            raise DatasetError(
                "no domain has a test split; nothing can be evaluated. Add qrels/test.tsv to one"
            )
        return self.workspace.tested

    def open_registry(self) -> Registry:
        """The recipe's registry, once it has answered: what it would refuse is told before anything is made.

        Raises:
            RegistryError: it cannot be reached.
            Refused: its database was made by another version of MLflow.
        """
        from routerretriever.registry.registry import Registry

        registry = Registry.of(self.recipe, self.store)
        registry.require_answer()
        return registry

    @cached_property
    def evaluation(self) -> Evaluation:
        """Evaluate the systems of all methods on every test split, and write the reports.

        Raises:
            DatasetError: no domain has a test split.
        """
        tested = self.require_test_sets()
        self.build()
        with self.clock.step("evaluate"):
            systems = [system for method in self.methods.values() for system in method.systems()]
            result = assemble(
                systems,
                self.deployed.system,
                self.recipe.expert_domains,
                {each.name: self.workspace.test_queries(each.name) for each in tested},
                self.recipe.model_dump(mode="json"),
                {name: self.preflight.notes(name) for name in self.collections},
                read_card(self.recipe.encoder).stated(),
            )
            for path in write_reports(result, self.report_folder):
                log.info("wrote %s", path)
        return result

    def base_means(self, measure_name: str) -> dict[str, float]:
        """Test set -> mean of one of ``MEASURES`` with the bare base; no expert is trained for it."""
        workspace = self.workspace
        names = [each.name for each in workspace.tested]
        scores = workspace.scores(workspace.score_steps("test", [ScoredModel.base(workspace.encoder)], names))
        return {
            name: float(getattr(table.measured[:, table.of(BASE)], measure_name).mean())
            for name, table in scores.items()
        }

    def register(self, release: bool = True) -> Registered:
        """Register experts and bundle in MLflow; ``release`` moves the alias to the new bundle."""
        from routerretriever.bundle.build import BundleParts
        from routerretriever.registry.recording import RunRecord

        registry = self.open_registry()
        evaluation, deployment = self.evaluation, self.deployed.deployment()
        # The recipe as the bundle tells it: with the encoder and the routing that are served.
        served = {"encoder": deployment.encoder, "routing": deployment.routing}
        parts = BundleParts(
            self.recipe.model_copy(update=served).model_dump(mode="json"),
            deployment.encoder,
            deployment.routing,
            deployment.router,
            deployment.experts,
            as_dict(evaluation),
            self._service_facts(deployment),
            deployment.fusion,
        )
        metrics = _headline(evaluation) | figures(self.clock.seconds, self.clock.counts)
        with TemporaryDirectory() as scratch:
            write_reports(evaluation, Path(scratch))
            record = RunRecord(metrics, evaluation.mean(deployment.system), Path(scratch))
            with at_work("registering"):
                version, versions = registry.register_bundle(parts, record, release)
        place = without_secrets(registry.tracking_uri)
        log.info("registered %s version %d in %s", self.recipe.registry.name, version, place)
        released = version == registry.released()  # the same content may have been released before
        uri = registry.bundle_uri if released else registry.version_uri(version)
        return Registered(uri, version, versions, place, released=released)

    def _service_facts(self, deployment: Deployment) -> ServiceFacts:
        from routerretriever.adapters.tower import load_tower
        from routerretriever.bundle.build import ServiceFacts
        from routerretriever.bundle.manifest import ValidationQuery

        served = self.recipe.serving.collections or tuple(self.recipe.domains)
        own = self.workspace
        tower = own.base if deployment.encoder == own.encoder else load_tower(deployment.encoder)
        validation, weights = {}, []
        for collection in self.expert_collections:
            texts, qrels = collection.queries("dev"), collection.qrels("dev")
            if collection.name in served:
                asked = list(texts)[: self.recipe.serving.releases.validation_queries]
                validation[collection.name] = [ValidationQuery(texts[query], qrels[query]) for query in asked]
            features = tower.routing_features(
                list(texts.values())[:_SHARE_QUERIES], deployment.routing.features
            )
            weights.append(deployment.router.weights(features).mean(axis=0))
        shares = dict(zip(deployment.router.experts, np.mean(weights, axis=0).tolist(), strict=True))
        return ServiceFacts({name: deployment.corpora[name] for name in served}, validation, shares)

    def calibrate(self, domain: str) -> Calibration:
        """Learn how much BM25 counts in a domain from its dev queries, as ``register`` does for its bundle.

        Raises:
            RecipeError: the recipe has no such domain, or its words are not searched.
            DatasetError: it has no dev queries.
            Refused: the deployed method learns no such weight.
        """
        if domain not in self.collections:
            raise RecipeError(f"domains.{domain}: no such domain; there are {', '.join(self.collections)}")
        if self.recipe.lexical(domain) is None:
            raise RecipeError(f"domains.{domain}.lexical: null, so no words are searched; set a language")
        self.collections[domain].require("dev")
        self.preflight.require_unchanged(self.collections.values())
        return self.deployed.calibrate(domain)

    def untrained(self) -> list[str]:
        """Domains whose expert, under the recipe's present settings, has not been trained."""
        return self.deployed.untrained()


def _headline(evaluation: Evaluation) -> dict[str, float]:
    """The few figures that MLflow's tables show; the evaluation's page has all."""
    by_set = evaluation.ndcg_at_10
    shown = {"ndcg_at_10": evaluation.deployed, "base_ndcg_at_10": BASE}
    figures = {
        f"{name}/{dataset}": value
        for name, system in shown.items()
        for dataset, value in by_set.get(system, {}).items()
    }
    means = {f"mean_ndcg_at_10/{system}": evaluation.mean(system) for system in by_set}
    return figures | {name: value for name, value in means.items() if value is not None}


def require_trained(pipeline: Pipeline, except_for: Sequence[str] = ()) -> None:
    """Make sure that a change of domains retrains nobody else.

    Raises:
        RecipeError: other experts would be trained anew under the recipe's present settings or data.
    """
    others = [name for name in pipeline.untrained() if name not in except_for]
    if others:
        raise RecipeError(
            f"the experts of {', '.join(others)} are not trained under this recipe's present settings and "
            "data; run `routerretriever run` with the recipe first, or undo the change"
        )
