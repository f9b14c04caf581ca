"""Typed, frozen settings. A recipe (YAML) is checked here and nowhere else.

Every class refuses unknown keys and wrong types, so a typing mistake in a recipe stops at once with the
name of the field. Nothing heavy is imported here: ``routerretriever --help`` stays instant.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    model_validator,
)

from routerretriever.config.registry import RegistrySettings
from routerretriever.config.serving import ServingSettings
from routerretriever.corpus.settings import CorpusSettings
from routerretriever.datasets.settings import DomainSettings
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.methods.settings import DdrSettings, JointSettings
from routerretriever.routing.settings import RoutingSettings
from routerretriever.scoring.settings import ScoringSettings
from routerretriever.settings import DomainName, Settings
from routerretriever.training.settings import TrainingSettings
from routerretriever.types import BASE, DOCUMENT_MODEL, ROUTED_MODEL


class Recipe(Settings):
    """A whole run: collections, base encoder and the settings of every step."""

    name: DomainName
    storage: str = "runs/default"
    """Folder or fsspec URI under which every artifact is stored."""
    data_root: str = "."
    domains: Annotated[dict[DomainName, DomainSettings], Field(min_length=1)]
    encoder: EncoderSettings = EncoderSettings()
    corpus: CorpusSettings = CorpusSettings()
    training: TrainingSettings = TrainingSettings()
    single_models: dict[DomainName, JointSettings] = Field(default_factory=dict)
    """Baselines by name."""
    scoring: ScoringSettings = ScoringSettings()
    routing: RoutingSettings = RoutingSettings()
    ddr: DdrSettings | None = None
    """If set, Dynamic Dense Retrieval is trained too, and evaluated beside the experts."""
    deploy: Literal["experts", "ddr"] = "experts"
    """What is registered, released and served."""
    registry: RegistrySettings = RegistrySettings()
    serving: ServingSettings = ServingSettings()
    question: str | None = None
    """What ``run`` asks the service at the end."""

    @model_validator(mode="before")
    @classmethod
    def _name_model(cls, values: Any) -> Any:
        # Two recipes on one MLflow server must not take each other's alias over.
        if isinstance(values, dict) and isinstance(values.get("registry", {}), dict) and "name" in values:
            values = {**values, "registry": {"name": values["name"], **values.get("registry", {})}}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.expert_domains:
            raise ValueError("domains: at least one domain must have expert: true")
        for name in (BASE, ROUTED_MODEL, DOCUMENT_MODEL):
            if name in self.domains:
                raise ValueError(f"domains.{name}: this name is taken; it stands for another model")
        if taken := sorted(self.single_models.keys() & self.domains.keys()):
            raise ValueError(f"single_models: {', '.join(taken)}: a domain has this name")
        if self.scoring.source == "held_out" and self.training.held_out_fraction == 0:
            raise ValueError("scoring.source 'held_out' needs training.held_out_fraction above 0")
        known = {BASE, *self.expert_domains}
        if self.routing.expert is not None and self.routing.expert not in known:
            raise ValueError(f"routing.expert: no expert {self.routing.expert!r}; there are {sorted(known)}")
        if self.deploy == "ddr" and self.ddr is None:
            raise ValueError("deploy: 'ddr' needs settings under ddr")
        if self.deploy == "ddr" and self.serving.placement != "shared":
            raise ValueError("deploy: 'ddr' is one model; set serving.placement to 'shared'")
        if self.ddr is not None:
            for field, names, there in (
                ("labels", self.ddr.labels, list(self.domains)),
                ("general.domains", self.general_domains, self.expert_domains),
            ):
                if unknown := sorted(set(names) - set(there)):
                    raise ValueError(
                        f"ddr.{field}: no such domain as {unknown[0]!r}; there are {sorted(there)}"
                    )
        if self.training.prefix is not None and self.routing.merge == "weights":
            raise ValueError(
                "training.prefix: prefixes do not add up as LoRAs do; set routing.merge to 'embeddings'"
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

    @property
    def general_domains(self) -> list[str]:
        """Names of the domains that a general prefix is trained on; none if there is to be none."""
        if self.ddr is None or self.ddr.general is None:
            return []
        return list(self.ddr.general.domains or self.expert_domains)

    @property
    def expert_domains(self) -> list[str]:
        """Names of the domains that get an expert, in the recipe's order."""
        return [name for name, domain in self.domains.items() if domain.expert]

    def domain_path(self, name: str) -> str:
        """Where a domain's collection lies: ``sample:<name>`` or a folder."""
        path = self.domains[name].path
        if path.startswith("sample:"):
            return path
        return str(Path(self.data_root).expanduser() / Path(path).expanduser())
