"""Dynamic Dense Retrieval (arXiv 2602.22547) on a recipe's collections, beside the experts.

Queries and documents share a *general* prefix. To a query's is added a mixture of domain prefixes, weighed by
a router in each layer, so that one pass both routes and encodes. For all other steps the general prefix is
part of the base encoder: documents are encoded once more, with it, and everything else is as for experts. It
may be left out, and the base is then the experts' own.

Adding or removing a domain trains the domain prefixes and routers of all domains anew, since they are weighed
against each other; the general prefix and the encoded documents of the other domains are kept, provided that
``general.domains`` names what the general prefix was trained on (by default it is all of them).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt

from routerretriever.adapters.files import ADAPTER_WEIGHTS
from routerretriever.adapters.prefix import PrefixSettings
from routerretriever.adapters.prefix_shape import UNIFORM, PrefixShape, View
from routerretriever.artifacts.step import Step
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.errors import RecipeError
from routerretriever.evaluation.system import Kind, System
from routerretriever.hashing import content_hash
from routerretriever.measures import Measured
from routerretriever.methods.base import Deployment, Method, Workspace
from routerretriever.methods.ranking import dense_rank
from routerretriever.routing.constant import ConstantRouter
from routerretriever.routing.settings import RoutingSettings
from routerretriever.scoring.table import ScoredModel, ScoreSplit
from routerretriever.settings import DomainName, Settings
from routerretriever.training.expert import Expert, TrainAdapter, expert_key, open_expert, train_step
from routerretriever.training.settings import LearningRate, TrainingSettings
from routerretriever.types import BASE, Vectors

GENERAL_PREFIX, DDR, DDR_TOP_K = "general prefix", "DDR", "DDR-topk"
DDR_PRIOR, DDR_UNROUTED = "DDR-prior", "DDR without routing"
"""Systems: its base; all modules; the best few; those of a collection's labels; the same without weights."""
ALL, TOP_K, PRIOR = "ddr", "ddr-topk", "ddr-prior"
_UNROUTED = "{}-without-routing"
_UNUSED_ROUTER = RoutingSettings(router="uniform", features=0, fallback=None, merge="embeddings")


class GeneralPrefixSettings(Settings):
    """The general prefix of Dynamic Dense Retrieval, trained on queries and documents alike.

    All other settings are those of ``training``. Documents are encoded in every step, so a step costs far
    more than one of an expert, and batches are small.
    """

    domains: Annotated[tuple[DomainName, ...], Field(min_length=1)] | None = None
    """Domains it is trained on, in turns; by default all that have an expert. A change of these makes another
    prefix, and all documents are encoded anew: name them if domains will be added."""
    learning_rate: LearningRate = 7e-3
    """Of AdamW."""
    batch_size: PositiveInt = 8
    """Queries per optimiser step."""
    hard_negatives: PositiveInt = 5
    """For each query, from the base encoder's own results; the batch's other documents are negatives too."""
    max_steps: PositiveInt = 200
    """Optimiser steps, at most."""
    evaluate_every: PositiveInt = 40
    """Steps between two evaluations on dev."""
    dev_documents: PositiveInt = 1000
    """Documents of each domain that dev queries search while it is trained: the relevant ones, and others."""


class DdrSettings(Settings):
    """Dynamic Dense Retrieval (arXiv 2602.22547): prefixes by domain label, weighed in each layer.

    It is trained as the experts are, where nothing else is said, and evaluated beside them.
    """

    general: GeneralPrefixSettings | None = None
    """None leaves it out: domain prefixes are put before the bare base, and documents are encoded no second
    time. For a base that is a retriever already; the paper's is not."""
    prefix: PrefixSettings = PrefixSettings()
    """Size of every prefix."""
    labels: dict[DomainName, Annotated[tuple[DomainName, ...], Field(min_length=1)]] = Field(
        default_factory=dict
    )
    """What each collection is about; there is a module for every label of a domain that is trained on. A
    domain that is not named has its own name as its label, a zero-shot collection any label."""
    top_k: PositiveInt = 2
    """Modules that DDR-topk keeps."""
    deployed: Literal["soft", "top_k", "prior"] = "soft"
    """What a service with ``deploy: ddr`` answers with. ``prior`` needs the collection's name as the model of
    a request, and answers others with all modules."""
    learning_rate: LearningRate = 0.03
    """Of the domain prefixes and routers."""
    max_steps: PositiveInt | None = None
    """Replaces ``training.max_steps``, which is meant for one domain."""
    evaluate_every: PositiveInt | None = None
    """Replaces ``training.evaluate_every``: an evaluation on dev is one of all domains here."""


class Ddr(Method):
    """Domain prefixes with their own routers, perhaps over a general prefix."""

    name = "ddr"
    settings = DdrSettings

    def __init__(self, settings: DdrSettings, workspace: Workspace) -> None:
        super().__init__(settings, workspace)
        self._settings = settings
        self.modules = tuple(
            dict.fromkeys(label for name in workspace.expert_domains for label in self._labels(name))
        )
        for name in settings.labels:
            for label in self._labels(name):
                if label not in self.modules:
                    raise RecipeError(
                        f"methods.ddr.labels.{name}: no domain that is trained on has the label {label!r}; "
                        f"there are {', '.join(self.modules)}"
                    )

    @classmethod
    def problems(
        cls, settings: DdrSettings, domains: Mapping[str, bool], placement: str, training: TrainingSettings
    ) -> Iterator[str]:
        """Names that no domain has, or that stand for models of its own; a placement that one model cannot
        have."""
        own = {ALL, TOP_K, PRIOR, *map(_UNROUTED.format, domains)}
        for name in sorted(own & domains.keys()):
            yield f"domains.{name}: methods.ddr calls a model of its own so; rename the domain"
        trained = [name for name, is_trained in domains.items() if is_trained]
        general = (settings.general.domains or ()) if settings.general else ()
        for field, names, there in (
            ("labels", settings.labels, list(domains)),
            ("general.domains", general, trained),
        ):
            if unknown := sorted(set(names) - set(there)):
                yield f"methods.ddr.{field}: no such domain as {unknown[0]!r}; there are {sorted(there)}"
        if placement not in ("", "shared"):
            yield "deploy: 'ddr' is one model; set serving.placement to 'shared'"

    @cached_property
    def general_step(self) -> TrainAdapter | None:
        """The step that trains the general prefix, if there is to be one."""
        workspace, general = self._workspace, self._settings.general
        if general is None:
            return None
        domains = general.domains or workspace.expert_domains
        training = _general_training(workspace.training, general, self._settings.prefix)
        parts = [expert_key(workspace.collections[name], workspace.encoder, training) for name in domains]
        return train_step(
            "general-prefix",
            f"experts/general-prefix-{content_hash(parts, general.dev_documents)}",
            [workspace.source(name) for name in domains],
            workspace.encoder,
            training,
            both_towers=general.dev_documents,
            describe=f"at most {general.max_steps} steps on {', '.join(domains)}; then all documents again, "
            "with the prefix, domain prefixes and routers",
        )

    @cached_property
    def general(self) -> Expert | None:
        """The trained general prefix, if there is to be one."""
        step = self.general_step
        return None if step is None else self._workspace.train({step.name: step})[step.name]

    @cached_property
    def inner(self) -> Workspace:
        """The workspace with the general prefix, which must have been trained, under the base."""
        step, workspace = self.general_step, self._workspace
        if step is None:
            return workspace
        location = workspace.store.location(step.key)
        return workspace.with_encoder(workspace.encoder.model_copy(update={"adapter": location}))

    @property
    def allowed(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """The modules that each domain's train queries may use, by model."""
        names = self._workspace.expert_domains
        return {ALL: dict.fromkeys(names, self.modules), PRIOR: {name: self._labels(name) for name in names}}

    def steps(self) -> list[Step]:
        """The general prefix; once it is there, also corpora with it, domain prefixes and scores."""
        step = self.general_step
        if step is not None and not self._workspace.store.exists(step.key):
            return [step]
        before: list[Step] = [] if step is None else [step]
        inner = self.inner
        corpora = [inner.corpus_step(name) for name in inner.collections]
        return [*before, *corpora, *self._prefix_steps().values(), *self._score_steps()]

    def _prefix_steps(self) -> dict[str, TrainAdapter]:
        """The steps that train domain prefixes and routers: all allowed, and those of a domain's labels."""
        inner, training = self.inner, _ddr_training(self._workspace.training, self._settings)
        made = {}
        for name, labels in self.allowed.items():
            parts = [
                (expert_key(each, inner.encoder, training), labels[each.name]) for each in inner.trained_on
            ]
            made[name] = train_step(
                name,
                f"experts/{name}-{content_hash(parts, self.modules)}",
                [inner.source(domain, modules=labels[domain]) for domain in inner.expert_domains],
                inner.encoder,
                training,
                modules=self.modules,
                describe=f"{len(self.modules)} modules, {len(inner.expert_domains)} domains",
            )
        return made

    @cached_property
    def view_steps(self) -> dict[str, NameViews]:
        """The trained prefixes with names for the ways to use them, by model."""
        made = {}
        for name, step in self._prefix_steps().items():
            views = self._views(name)
            digest = content_hash(step.key, {name: asdict(view) for name, view in views.items()})
            made[name] = NameViews(name=name, key=f"experts/{name}-{digest}", inputs=(step,), views=views)
        return made

    @cached_property
    def models(self) -> dict[str, Expert]:
        """Domain prefixes with all of them allowed, and with those of a domain's labels only."""
        _ = self.general
        return self.inner.train(self.view_steps)

    @property
    def system(self) -> str:
        """What the evaluation calls the deployed model."""
        return {"soft": DDR, "top_k": DDR_TOP_K, "prior": DDR_PRIOR}[self._settings.deployed]

    def deployment(self) -> Deployment:
        """The one model under its names; the first answers unless a request names another."""
        if self._settings.deployed == "prior":
            experts = dict.fromkeys((PRIOR, *self._workspace.collections), self.models[PRIOR])
        else:
            experts = {ALL if self._settings.deployed == "soft" else TOP_K: self.models[ALL]}
        router = ConstantRouter(list(experts), np.eye(len(experts), dtype=np.float32)[0])
        inner = self.inner
        corpora = {name: inner.corpus_step(name).key for name in inner.collections}
        return Deployment(self.system, experts, router, inner.encoder, _UNUSED_ROUTER, corpora)

    def _ways(self) -> dict[str, dict[str, str]]:
        """Test set -> system -> view that it is."""
        shared = {} if self.general_step is None else {GENERAL_PREFIX: BASE}
        return {
            each.name: shared | {DDR: ALL, DDR_TOP_K: TOP_K, DDR_PRIOR: each.name,
                                 DDR_UNROUTED: _UNROUTED.format(each.name)}
            for each in self._workspace.tested
        }  # fmt: skip

    def _score_steps(self) -> list[ScoreSplit]:
        steps = []
        for name, ways in self._ways().items():
            models = [ScoredModel.base(self.inner.encoder)]
            for view in ways.values():
                if view != BASE:
                    step = self.view_steps[ALL if view in (ALL, TOP_K) else PRIOR]
                    models.append(ScoredModel.expert(view, step))
            steps += self.inner.score_steps("test", models, [name])
        return steps

    @classmethod
    def system_names(cls, settings: DdrSettings, expert_domains: Sequence[str]) -> list[str]:
        """The general prefix, and every way to use domain prefixes."""
        shared = [] if settings.general is None else [GENERAL_PREFIX]
        return [*shared, DDR, DDR_TOP_K, DDR_PRIOR, DDR_UNROUTED]

    def systems(self) -> list[System]:
        """The general prefix alone, and every way to use domain prefixes."""
        _ = self.general
        scores = self.inner.scores(self._score_steps())
        measured: dict[str, dict[str, Measured]] = {}
        for name, ways in self._ways().items():
            for system, view in ways.items():
                table = scores[name]
                measured.setdefault(system, {})[name] = table.measured[:, table.of(view)]
        return [
            System(
                name, Kind.SINGLE, own, headline=True, rival=True,
                rank=dense_rank(self.inner, partial(self._vectors, name)),
            )
            for name, own in measured.items()
        ]  # fmt: skip

    def _vectors(self, system: str, dataset: str) -> Vectors:
        """A system's vectors [Q, d] of the queries of a test set."""
        table = self.inner.scores(self._score_steps())[dataset]
        return table.vectors_QEd[:, table.of(self._ways()[dataset][system])]

    def _labels(self, collection: str) -> tuple[str, ...]:
        labels = self._settings.labels.get(collection)
        if labels is not None:
            return labels
        return (collection,) if collection in self._workspace.expert_domains else self.modules

    def _views(self, model: str) -> dict[str, View]:
        every = len(self.modules)
        if model == ALL:
            top_k = min(self._settings.top_k, every)
            return {ALL: View(self.modules, every), TOP_K: View(self.modules, top_k)}
        views = {PRIOR: View(self.modules, every)}
        for name in self._workspace.collections:
            views[name] = View(self._labels(name), every)
            views[_UNROUTED.format(name)] = View(self._labels(name), UNIFORM)
        return views


@dataclass(frozen=True, kw_only=True, eq=False)
class NameViews(Step):
    """The same prefixes with names for the ways to use them."""

    stage: ClassVar[str] = "name views"

    views: Mapping[str, View]

    def asks_for(self) -> str:
        """No worker."""
        return "the driver"

    @classmethod
    def build_all(cls, steps: Sequence[NameViews], store: ArtifactStore) -> None:
        """Copy the weights, with views in the settings."""
        for step in steps:
            expert = open_expert(store, step.inputs[0].key)
            folder = expert.folder(store)
            shape = PrefixShape.read(expert.domain, folder)
            assert shape is not None
            with tempfile.TemporaryDirectory() as scratch:
                replace(shape, views=step.views).write(Path(scratch))
                store.put_folder(step.key, Path(scratch))
            store.put(step.key, ADAPTER_WEIGHTS, partial(shutil.copyfile, folder / ADAPTER_WEIGHTS))
            card: dict[str, Any] = {name: value for name, value in expert.card.items() if name != "files"}
            store.commit(step.key, {**card, "prefixes_of": expert.key})


def _general_training(
    training: TrainingSettings, general: GeneralPrefixSettings, prefix: PrefixSettings
) -> TrainingSettings:
    own = general.model_dump(
        include={"learning_rate", "batch_size", "hard_negatives", "max_steps", "evaluate_every"}
    )
    fixed = {"objective": "sampled", "random_negatives": 0, "adapter": prefix}
    return training.model_copy(update=own | fixed).plain()


def _ddr_training(training: TrainingSettings, ddr: DdrSettings) -> TrainingSettings:
    """How domain prefixes are trained: as the experts are, perhaps for longer."""
    return training.model_copy(
        update={
            "adapter": ddr.prefix,
            "learning_rate": ddr.learning_rate,
            "max_steps": ddr.max_steps or training.max_steps,
            "evaluate_every": ddr.evaluate_every or training.evaluate_every,
        }
    ).plain()
