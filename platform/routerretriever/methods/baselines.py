"""Single models for all domains: what a mixture of experts has to beat.

``joint`` is the multi-task baseline of RouterRetriever (arXiv 2409.02685): one adapter on all domains, taken
in turns, with the experts' own objective. ``average`` is the plain mean of the experts' weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar, Literal

from pydantic import ConfigDict, PositiveInt, RootModel

from routerretriever.adapters.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, write_weights
from routerretriever.artifacts.step import Step
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.evaluation.system import Kind, System
from routerretriever.hashing import content_hash
from routerretriever.methods.base import Method, Workspace
from routerretriever.methods.experts import measured_by
from routerretriever.methods.ranking import dense_rank
from routerretriever.scoring.table import ScoredModel, ScoreSplit
from routerretriever.settings import DomainName, Settings
from routerretriever.training.expert import (
    Expert,
    TrainAdapter,
    expert_key,
    expert_step,
    open_expert,
    train_step,
)
from routerretriever.training.settings import TrainingSettings
from routerretriever.types import BASE, Vectors


class JointSettings(Settings):
    """One adapter for all domains. It is trained as the experts are and shown in the evaluation."""

    kind: Literal["joint", "average"] = "joint"
    """Trained on all domains in turns, or the plain mean of the experts' weights."""
    equal_data: bool = True
    """Joint: no more train queries of a domain than the smallest has (the paper's), or else all."""
    max_steps: PositiveInt | None = None
    """Joint: replaces ``training.max_steps``, which is meant for one domain."""


class BaselinesSettings(RootModel[dict[DomainName, JointSettings]]):
    """Baselines by name."""

    model_config = ConfigDict(frozen=True)


class Baselines(Method):
    """Single models, evaluated beside the experts."""

    name = "baselines"
    settings = BaselinesSettings
    deployable = False

    def __init__(self, settings: BaselinesSettings, workspace: Workspace) -> None:
        super().__init__(settings, workspace)
        self._models = settings.root

    @classmethod
    def problems(
        cls,
        settings: BaselinesSettings,
        domains: Mapping[str, bool],
        placement: str,
        training: TrainingSettings,
    ) -> Iterator[str]:
        """A baseline must not have a domain's name, nor the base's, nor be the mean of what has none."""
        if taken := sorted(settings.root.keys() & domains.keys()):
            yield f"methods.baselines: {', '.join(taken)}: a domain has this name"
        if BASE in settings.root:
            yield f"methods.baselines.{BASE}: this name is taken; it stands for another model"
        for name, model in settings.root.items():
            if model.kind == "average" and (reason := training.why_not_averaged):
                yield (
                    f"methods.baselines.{name}.kind: average, but {reason}; set it to joint, or "
                    "training.adapter.kind to lora or ia3"
                )

    @cached_property
    def train_steps(self) -> dict[str, Step]:
        """The steps that make the baselines, by name."""
        return {
            name: self._joint(name, model) if model.kind == "joint" else self._average(name)
            for name, model in self._models.items()
        }

    def _joint(self, name: str, model: JointSettings) -> TrainAdapter:
        workspace = self._workspace
        training = joint_training(workspace.training, model)
        parts = [expert_key(each, workspace.encoder, training) for each in workspace.trained_on]
        smallest = min(len(each.qrels("train")) for each in workspace.trained_on)
        return train_step(
            name,
            f"experts/{name}-{content_hash(parts, model.equal_data)}",
            [workspace.source(domain) for domain in workspace.expert_domains],
            workspace.encoder,
            training,
            queries_per_domain=smallest if model.equal_data else None,
            describe=f"joint of {len(workspace.expert_domains)} domains",
        )

    def _average(self, name: str) -> AverageExperts:
        workspace = self._workspace
        members = tuple(
            expert_step(workspace.source(domain), workspace.encoder, workspace.training)
            for domain in workspace.expert_domains
        )
        key = f"experts/{name}-{content_hash([member.key for member in members])}"
        return AverageExperts(name=name, key=key, inputs=members)

    def steps(self) -> list[Step]:
        """The models, and their scores on the test queries."""
        return [*self.train_steps.values(), *self._score_steps()]

    def _score_steps(self) -> list[ScoreSplit]:
        workspace = self._workspace
        base = ScoredModel.base(workspace.encoder)
        models = [base, *(ScoredModel.expert(name, step) for name, step in self.train_steps.items())]
        return workspace.score_steps("test", models, [each.name for each in workspace.tested])

    @cached_property
    def models(self) -> dict[str, Expert]:
        """The trained models."""
        return self._workspace.train(self.train_steps)

    @classmethod
    def system_names(cls, settings: BaselinesSettings, expert_domains: Sequence[str]) -> list[str]:
        """The baselines' names."""
        return list(settings.root)

    def systems(self) -> list[System]:
        """Each model."""
        scores = self._workspace.scores(self._score_steps())
        return [
            System(
                name, Kind.SINGLE, measured_by(scores, name), headline=True, rival=True,
                rank=dense_rank(self._workspace, partial(self._vectors, name)),
            )
            for name in self._models
        ]  # fmt: skip

    def _vectors(self, name: str, dataset: str) -> Vectors:
        """A model's vectors [Q, d] of the queries of a test set."""
        table = self._workspace.scores(self._score_steps())[dataset]
        return table.vectors_QEd[:, table.of(name)]


def joint_training(training: TrainingSettings, joint: JointSettings) -> TrainingSettings:
    """How a joint model is trained: as the experts, perhaps for longer."""
    return training.model_copy(update={"max_steps": joint.max_steps or training.max_steps}).plain()


@dataclass(frozen=True, kw_only=True, eq=False)
class AverageExperts(Step):
    """An adapter whose weights are the plain mean of the inputs' weights."""

    stage: ClassVar[str] = "average"

    def work(self) -> str:
        """How many are averaged."""
        return f"average of {len(self.inputs)} domains"

    def asks_for(self) -> str:
        """No worker."""
        return "the driver"

    @classmethod
    def build_all(cls, steps: Sequence[AverageExperts], store: ArtifactStore) -> None:
        """Average each."""
        from safetensors.torch import load_file

        from routerretriever.training.scaling import mean_weights

        for step in steps:
            members = [open_expert(store, each.key) for each in step.inputs]
            weights = [load_file(expert.folder(store) / ADAPTER_WEIGHTS) for expert in members]
            store.put(step.key, ADAPTER_WEIGHTS, partial(write_weights, mean_weights(weights)))
            source = members[0].folder(store) / ADAPTER_CONFIG
            store.put(step.key, ADAPTER_CONFIG, partial(shutil.copyfile, source))
            manifest = {"kind": "expert", "domain": step.name, "averaged": [e.key for e in members]}
            store.commit(step.key, manifest)
