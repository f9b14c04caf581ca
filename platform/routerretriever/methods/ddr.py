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

from functools import cached_property

import numpy as np

from routerretriever.adapters.prefix_shape import UNIFORM, View
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.config.recipe import Recipe
from routerretriever.datasets.collection import Collection
from routerretriever.errors import RecipeError
from routerretriever.evaluation.evaluate import DDR, DDR_PRIOR, DDR_TOP_K, DDR_UNROUTED, GENERAL_PREFIX
from routerretriever.measures import Measured
from routerretriever.methods.settings import DdrSettings
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.routing.constant import ConstantRouter
from routerretriever.routing.protocol import Router
from routerretriever.routing.settings import RoutingSettings
from routerretriever.training.experts import Expert, name_views, train_ddr
from routerretriever.types import BASE

ALL, TOP_K, PRIOR = "ddr", "ddr-topk", "ddr-prior"
_UNROUTED = "{}-without-routing"
_UNUSED_ROUTER = RoutingSettings(router="uniform", features=0, gate=None)


class DdrPipeline(Pipeline):
    """The steps of a recipe with prefixes and their own routers in place of experts and a router."""

    def __init__(self, recipe: Recipe, general: Expert | None) -> None:
        """Put a trained general prefix, if there is one, under a recipe's encoder.

        Raises:
            RecipeError: a label is not that of any domain that is trained on.
        """
        assert recipe.ddr is not None
        self._ddr: DdrSettings = recipe.ddr
        self.general = general
        encoder = recipe.encoder
        if general is not None:
            location = ArtifactStore.open(recipe.storage).location(general.key)
            encoder = encoder.model_copy(update={"adapter": location})
        super().__init__(recipe.model_copy(update={"encoder": encoder, "routing": _UNUSED_ROUTER}))
        self.modules = tuple(
            dict.fromkeys(label for name in recipe.expert_domains for label in self._labels(name))
        )
        for name in self._ddr.labels:
            for label in self._labels(name):
                if label not in self.modules:
                    raise RecipeError(
                        f"ddr.labels.{name}: no domain that is trained on has the label {label!r}; "
                        f"there are {', '.join(self.modules)}"
                    )

    @property
    def allowed(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """The modules that each domain's train queries may use, by model."""
        names = self.recipe.expert_domains
        return {ALL: dict.fromkeys(names, self.modules), PRIOR: {name: self._labels(name) for name in names}}

    @cached_property
    def models(self) -> dict[str, Expert]:
        """Train domain prefixes with all of them allowed, and with those of a domain's labels only."""
        _ = self.corpora
        recipe = self.recipe
        with self._step("train"):
            trained = train_ddr(
                self.allowed,
                self.modules,
                self.expert_collections,
                recipe.encoder,
                recipe.training,
                self._ddr,
                self.store,
            )
        return {name: name_views(model, self._views(name), self.store) for name, model in trained.items()}

    @cached_property
    def experts(self) -> dict[str, Expert]:
        """What the service offers by name; the first answers unless a request names another."""
        if self._ddr.deployed == "soft":
            return {ALL: self.models[ALL]}
        if self._ddr.deployed == "top_k":
            return {TOP_K: self.models[ALL]}
        return dict.fromkeys((PRIOR, *self.recipe.domains), self.models[PRIOR])

    @cached_property
    def router(self) -> Router:
        """Always the one model: its routers are in its layers."""
        names = list(self.experts)
        return ConstantRouter(names, np.eye(len(names), dtype=np.float32)[0])

    @property
    def deployed_as(self) -> str:
        """What the evaluation calls the deployed model."""
        return {"soft": DDR, "top_k": DDR_TOP_K, "prior": DDR_PRIOR}[self._ddr.deployed]

    def measured(self, tested: list[Collection]) -> dict[str, dict[str, Measured]]:
        """The general prefix alone, and every way to use domain prefixes: way -> test set -> [Q]."""
        shared = {} if self.general is None else {GENERAL_PREFIX: BASE}
        ways = {
            each.name: shared | {DDR: ALL, DDR_TOP_K: TOP_K, DDR_PRIOR: each.name,
                                 DDR_UNROUTED: _UNROUTED.format(each.name)}
            for each in tested
        }  # fmt: skip
        views = {name: [view for view in own.values() if view != BASE] for name, own in ways.items()}
        experts = {
            view: self.models[ALL if view in (ALL, TOP_K) else PRIOR]
            for own in views.values()
            for view in own
        }
        scores = self._scores(tested, "test", experts, views)
        made: dict[str, dict[str, Measured]] = {}
        for name, own in ways.items():
            for way, view in own.items():
                made.setdefault(way, {})[name] = scores[name].measured[:, scores[name].of(view)]
        return made

    def _labels(self, collection: str) -> tuple[str, ...]:
        labels = self._ddr.labels.get(collection)
        if labels is not None:
            return labels
        return (collection,) if self.recipe.domains[collection].expert else self.modules

    def _views(self, model: str) -> dict[str, View]:
        every = len(self.modules)
        if model == ALL:
            return {ALL: View(self.modules, every), TOP_K: View(self.modules, min(self._ddr.top_k, every))}
        views = {PRIOR: View(self.modules, every)}
        for name in self.recipe.domains:
            views[name] = View(self._labels(name), every)
            views[_UNROUTED.format(name)] = View(self._labels(name), UNIFORM)
        return views
