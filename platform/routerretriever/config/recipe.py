"""Typed, frozen settings. A recipe (YAML) is checked here and nowhere else.

Every class refuses unknown keys and wrong types, so a typing mistake in a recipe stops at once with the
name of the field. Methods bring their own settings, and so NumPy, Arrow and FAISS; torch, Ray and MLflow are
not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, create_model, model_validator

from routerretriever.adapters.kinds import kind_named
from routerretriever.config.registry import RegistrySettings
from routerretriever.config.serving import ServingSettings
from routerretriever.config.tuning import TuningSettings
from routerretriever.datasets.settings import DomainSettings
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.generation.settings import GenerationSettings, JudgingSettings
from routerretriever.index.settings import CollectionSettings, LexicalSettings
from routerretriever.methods.known import DEFAULT, METHODS
from routerretriever.routing.settings import RoutingSettings
from routerretriever.scoring.settings import ScoringSettings
from routerretriever.settings import DomainName, PlaceName, PoolSettings, Settings
from routerretriever.training.settings import TrainingSettings
from routerretriever.types import BASE, DOCUMENT_MODEL, ROUTED_MODEL

_NOT_IN_BUNDLES = frozenset(
    {"storage", "data_root", "generation", "judging", "tuning", "registry", "serving", "question"}
)
_MACHINES = frozenset({*PoolSettings.model_fields, "at_once", "max_failures"})


def _methods_model() -> type[Settings]:
    """A setting for each known method; only the default one is on unless it is named."""
    fields: dict[str, Any] = {
        name: (
            method.settings | None,
            Field(
                default=method.settings() if name == DEFAULT else None,
                description=(method.settings.__doc__ or "").split("\n")[0],
            ),
        )
        for name, method in METHODS.items()
    }
    return create_model("Methods", __base__=_NamedMethods, **fields)


class _NamedMethods(Settings):
    def named(self) -> dict[str, Any]:
        """Settings of the methods that are on, by name."""
        found = {name: getattr(self, name) for name in METHODS}
        return {name: settings for name, settings in found.items() if settings is not None}


if TYPE_CHECKING:
    Methods = _NamedMethods
else:
    Methods = _methods_model()
    """The recipe's ``methods``."""


class RecipeDomain(DomainSettings):
    """One collection, and how its words are searched."""

    lexical: Literal["corpus"] | LexicalSettings | None = "corpus"
    """Replaces ``corpus.lexical`` here, as ``{language: code}`` does; null searches no words."""
    calibrate: bool | None = None
    """Learn from its dev queries how much BM25 counts; by default only where it has an expert."""


class Recipe(Settings):
    """A whole run: collections, base encoder and the settings of every step."""

    name: DomainName
    """Name of the run; reports carry it."""
    storage: PlaceName = "runs/default"
    """Folder or fsspec URI under which every artifact is stored."""
    data_root: PlaceName = "."
    """Folder at which relative collection paths start."""
    domains: Annotated[dict[DomainName, RecipeDomain], Field(min_length=1)]
    """Collections by name."""
    encoder: EncoderSettings = EncoderSettings()
    """The shared base encoder."""
    corpus: CollectionSettings = CollectionSettings()
    """How documents are encoded and indexed."""
    generation: GenerationSettings = GenerationSettings()
    """How queries are generated from documents."""
    judging: JudgingSettings = JudgingSettings()
    """How a language model grades what systems find."""
    training: TrainingSettings = TrainingSettings()
    """How experts are trained."""
    tuning: TuningSettings = TuningSettings()
    """Which training settings ``tune-training`` tries."""
    scoring: ScoringSettings = ScoringSettings()
    """Which queries are scored with every expert."""
    routing: RoutingSettings = RoutingSettings()
    """Which router is fitted."""
    methods: Methods = Methods()
    """Methods that are trained and evaluated, each with its settings."""
    deploy: Literal[tuple(METHODS)] = DEFAULT  # type: ignore[valid-type]
    """The method that is registered, released and served."""
    registry: RegistrySettings = RegistrySettings()
    """Where experts and bundles are registered."""
    serving: ServingSettings = ServingSettings()
    """The HTTP service."""
    question: str | None = None
    """What ``run`` asks the service at the end."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.registry.name:
            # Two recipes on one MLflow server must not take each other's alias over.
            registry = self.registry.model_copy(update={"name": self.name})
            object.__setattr__(self, "registry", registry)
        if not self.expert_domains:
            raise ValueError("domains: at least one domain must have expert: true")
        for name in (BASE, ROUTED_MODEL, DOCUMENT_MODEL):
            if name in self.domains:
                raise ValueError(f"domains.{name}: this name is taken; it stands for another model")
        if self.registry.alias == self.serving.releases.challenger_alias:
            raise ValueError(
                f"serving.releases.challenger_alias: {self.registry.alias!r} is registry.alias too; "
                "name another"
            )
        if self.scoring.source == "held_out" and self.training.held_out_fraction == 0:
            raise ValueError("scoring.source 'held_out' needs training.held_out_fraction above 0")
        known = {BASE, *self.expert_domains}
        if self.routing.expert is not None and self.routing.expert not in known:
            raise ValueError(f"routing.expert: no expert {self.routing.expert!r}; there are {sorted(known)}")
        if self.training.teacher_bm25:
            for name in self.expert_domains:
                if self.lexical(name) is None:
                    raise ValueError(
                        f"training.teacher_bm25: {self.training.teacher_bm25:g} needs the words of {name}, "
                        f"but domains.{name}.lexical or corpus.lexical is null; set a language there"
                    )
        if self.encoder.device == "cpu" and (asking := self.asks_for_gpus()):
            raise ValueError(f"encoder.device: cpu, and {asking[0]} asks for a GPU; set one of the two")
        if self.tuning.space is not None:
            self.tuning.draw(self.training)
        self._check_methods()
        kind = kind_named(self.training.adapter.kind)
        if self.routing.merge not in kind.merges:
            raise ValueError(
                f"training.adapter: experts of kind {kind.name!r} cannot be merged by their "
                f"{self.routing.merge}; set routing.merge to '{sorted(kind.merges)[0]}'"
            )
        if self.serving.placement == "dedicated" and self.routing.merge == "weights":
            raise ValueError(
                "serving.placement 'dedicated' cannot serve routing.merge 'weights', for which one process "
                "must hold all experts; set routing.merge to 'embeddings', or serving.placement to 'shared'"
            )
        for name in self.serving.collections or ():
            if name not in self.domains:
                raise ValueError(f"serving.collections: no domain {name!r}; there are {sorted(self.domains)}")
        return self

    def _check_methods(self) -> None:
        if self.deploy not in self.methods.named():
            raise ValueError(f"deploy: {self.deploy!r} needs settings under methods.{self.deploy}")
        if not METHODS[self.deploy].deployable:
            there = ", ".join(name for name, method in METHODS.items() if method.deployable)
            raise ValueError(f"deploy: {self.deploy!r} cannot be served, only evaluated; choose from {there}")
        domains = {name: domain.expert for name, domain in self.domains.items()}
        for name, settings in self.methods.named().items():
            placement = self.serving.placement if name == self.deploy else ""
            for problem in METHODS[name].problems(settings, domains, placement, self.training):
                raise ValueError(problem)

    @property
    def expert_domains(self) -> list[str]:
        """Names of the domains that get an expert, in the recipe's order."""
        return [name for name, domain in self.domains.items() if domain.expert]

    @property
    def calibrated_domains(self) -> list[str]:
        """Names of the domains whose dev queries say how much BM25 counts."""
        return [
            name
            for name, domain in self.domains.items()
            if (domain.expert if domain.calibrate is None else domain.calibrate)
        ]

    def lexical(self, name: str) -> LexicalSettings | None:
        """How the words of a domain are searched; None if they are not."""
        own = self.domains[name].lexical
        return self.corpus.lexical if own == "corpus" else own

    def searched(self, name: str) -> CollectionSettings:
        """How a collection is encoded and searched: as its domain says, if it is one of the recipe."""
        if name not in self.domains:
            return self.corpus
        return self.corpus.model_copy(update={"lexical": self.lexical(name)})

    def asks_for_gpus(self) -> list[str]:
        """The settings that ask Ray for GPUs."""
        teacher = self.training.teacher
        wishes = {
            "corpus.gpus_per_worker": self.corpus.gpus_per_worker,
            "training.gpus_per_worker": self.training.gpus_per_worker,
            "training.teacher.gpus_per_worker": teacher.gpus_per_worker if teacher else 0.0,
            "scoring.gpus_per_worker": self.scoring.gpus_per_worker,
            "serving.router.gpus": self.serving.router.gpus,
            "serving.expert.gpus": self.serving.expert.gpus,
        }
        return [name for name, wish in wishes.items() if wish > 0]

    def domain_path(self, name: str) -> str:
        """Where a domain's collection lies: ``sample:<name>`` or a folder."""
        return self.collection_path(self.domains[name].path)

    def collection_path(self, path: str) -> str:
        """Where a collection lies that is named as ``domains`` names its own."""
        if path.startswith("sample:"):
            return path
        return str(Path(self.data_root).expanduser() / Path(path).expanduser())


def bundle_settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a bundle is made by, out of a recipe as JSON.

    Places, the registry, the service, and the number and kind of machines change nothing in it. Collections
    are among them by the paths that ``domains`` names.
    """
    kept = {name: value for name, value in recipe.items() if name not in _NOT_IN_BUNDLES}
    # Domains have names that may be those of settings.
    return {name: value if name == "domains" else _without_machines(value) for name, value in kept.items()}


def _without_machines(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {name: _without_machines(inner) for name, inner in value.items() if name not in _MACHINES}
