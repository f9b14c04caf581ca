"""What a method is: the door for a new one. See ``docs/how-to/write-a-method.md``.

A method says which artifacts it needs (steps), what its models reach on the test sets (systems), and what of
it can be served (a deployment). Methods share a workspace and know nothing of each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from routerretriever.artifacts.step import Step, build_missing
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.corpus.artifact import Corpus, open_corpus
from routerretriever.corpus.build import EncodeCorpus, corpus_step
from routerretriever.datasets.collection import Collection, open_collection, sample_domains
from routerretriever.datasets.judgements import judgements_step, load_judgements
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.errors import Refused
from routerretriever.evaluation.system import System
from routerretriever.index.dense import SearchIndex, open_index
from routerretriever.index.fusion_weights import FusionWeights
from routerretriever.index.settings import CollectionSettings, FusionSettings, LexicalSettings
from routerretriever.routing.protocol import Router
from routerretriever.routing.settings import RoutingSettings
from routerretriever.runtime.progress import StepClock
from routerretriever.scoring.settings import ScoringSettings
from routerretriever.scoring.table import ScoredModel, ScoreSplit, ScoreTable, read_scores, score_steps
from routerretriever.training.expert import Expert, Source, open_expert
from routerretriever.training.settings import TrainingSettings
from routerretriever.types import Vectors

if TYPE_CHECKING:
    from routerretriever.adapters.tower import QueryTower
    from routerretriever.encoder.encoder import Features


@dataclass(frozen=True)
class Workspace:
    """What the methods of a run share: settings, collections, storage, and what was read from it."""

    store: ArtifactStore
    collections: Mapping[str, Collection]
    """By domain, in the recipe's order."""
    expert_domains: tuple[str, ...]
    """Domains that are trained on."""
    encoder: EncoderSettings
    corpus: CollectionSettings
    training: TrainingSettings
    scoring: ScoringSettings
    routing: RoutingSettings
    lexical: Mapping[str, LexicalSettings | None]
    """How the words of each domain are searched; None where they are not."""
    calibrated: tuple[str, ...]
    """Domains whose dev queries say how much BM25 counts."""
    clock: StepClock = field(default_factory=StepClock)
    _texts: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    _features: dict[tuple[str, str, Any], Vectors] = field(default_factory=dict)

    def with_encoder(self, encoder: EncoderSettings) -> Workspace:
        """The same with another base encoder; the clock is shared."""
        return replace(self, encoder=encoder, _features={})

    @property
    def trained_on(self) -> list[Collection]:
        """Collections that are trained on."""
        return [self.collections[name] for name in self.expert_domains]

    @property
    def tested(self) -> list[Collection]:
        """Collections that have a test split."""
        return [each for each in self.collections.values() if "test" in each.splits()]

    def timed(self, stage: str) -> AbstractContextManager[None]:
        """Count the time of a block as a stage's."""
        return self.clock.step(stage)

    def build(self, steps: Iterable[Step]) -> None:
        """Make what is missing of these steps and of their inputs."""
        build_missing(steps, self.store, self.timed)

    def corpus_step(self, name: str) -> EncodeCorpus:
        """The step that encodes a domain's documents."""
        return corpus_step(self.collections[name], self.encoder, self.corpus)

    def source(self, name: str, **options: Any) -> Source:
        """A domain to train on; see ``Source``."""
        return Source(self.corpus_step(name), lexical=self.lexical[name], **options)

    def open_corpus(self, name: str) -> Corpus:
        """A domain's encoded documents; they are encoded if they have not been."""
        step = self.corpus_step(name)
        self.build([step])
        return open_corpus(self.store, step.key)

    def open_index(self, name: str) -> SearchIndex:
        """What searches a domain's documents."""
        return open_index(self.open_corpus(name), self.corpus.index, self.store)

    def score_steps(
        self, split: str, models: Sequence[ScoredModel], names: Sequence[str]
    ) -> list[ScoreSplit]:
        """The steps that score a split of some domains with some models."""
        return [
            step
            for name in names
            for step in score_steps(self.corpus_step(name), split, models, self.corpus.index, self.scoring)
        ]

    def scores(self, steps: Sequence[ScoreSplit]) -> ScoreTable:
        """What these steps made; they are made if they have not been."""
        self.build(steps)
        return read_scores(self.store, steps)

    def train(self, steps: Mapping[str, Step]) -> dict[str, Expert]:
        """The experts that these steps make; they are made if they have not been."""
        self.build(steps.values())
        return {name: open_expert(self.store, step.key) for name, step in steps.items()}

    def query_texts(self, scores: ScoreTable, split: str) -> dict[str, list[str]]:
        """Texts of scored queries by domain, in the score table's order."""
        made = {}
        for name, table in scores.items():
            if (name, split) not in self._texts:
                self._texts[name, split] = self.collections[name].queries(split)
            texts = self._texts[name, split]
            made[name] = [texts[query] for query in table.query_ids]
        return made

    def features(self, scores: ScoreTable, split: str, features: Features) -> dict[str, Vectors]:
        """Routing features of scored queries by domain, in the score table's order."""
        if features == "embedding":
            return {name: table.base_vectors for name, table in scores.items()}
        texts = self.query_texts(scores, split)
        made = {}
        for name, table in scores.items():
            key = (name, f"{split}-{len(table.query_ids)}", features)
            if key not in self._features:
                self._features[key] = self.base.routing_features(texts[name], features)
            made[name] = self._features[key]
        return made

    def test_queries(self, name: str) -> dict[str, str]:
        """Query id -> text of a domain's test queries, in the order of all that was measured on them.

        The files may have another since: only what they say is part of a key.
        """
        step = judgements_step(self.collections[name], "test")
        self.build([step])
        return load_judgements(self.store, step.key).queries

    def sample_features(self, features: Features) -> dict[str, Vectors]:
        """Routing features of the built-in sample's training queries, without domains that the recipe has."""
        trained = [self.collections[name] for name in self.expert_domains]
        own = {text for each in trained for text in each.queries("train").values()}
        made = {}
        for name in sample_domains():
            key = (f"sample:{name}", "train", features)
            if key not in self._features:
                texts = list(open_collection(name, f"sample:{name}").queries("train").values())
                if own.intersection(texts):
                    continue
                self._features[key] = self.base.routing_features(texts, features)
            made[name] = self._features[key]
        return made

    @cached_property
    def base(self) -> QueryTower:
        """The base encoder, loaded in this process."""
        from routerretriever.adapters.tower import load_tower

        return load_tower(self.encoder)

    @cached_property
    def fusion(self) -> FusionSettings:
        """How words and vectors are fused, with the encoder's least cosine."""
        return self.corpus.fusion.for_encoder(self.base)


@dataclass(frozen=True)
class Deployment:
    """What of a method is registered, released and served."""

    system: str
    """The evaluation's name for it."""
    experts: dict[str, Expert]
    router: Router
    encoder: EncoderSettings
    routing: RoutingSettings
    """Which features the router reads, and what is merged by its weights."""
    corpora: dict[str, str]
    """Domain -> key of its corpus, encoded by this encoder."""
    fusion: FusionWeights | None = None
    """How much BM25 counts beside the vectors; None if it was not learned."""


@dataclass(frozen=True)
class Calibration:
    """What a domain's dev queries say of the weight of BM25."""

    domain: str
    queries: int
    ndcg_at_10: dict[float, float]
    """Mean by weight."""
    weight: float
    """What was chosen."""
    prior: float
    """What it would be without dev queries."""


class Method(ABC):
    """One method, with its settings, on a workspace."""

    name: ClassVar[str]
    """By which a recipe asks for it."""
    settings: ClassVar[type[Any]]
    """Its settings class: frozen pydantic."""
    deployable: ClassVar[bool] = True
    """Whether a service can answer with it."""

    def __init__(self, settings: Any, workspace: Workspace) -> None:
        """Nothing is made yet.

        Raises:
            RecipeError: the settings do not fit the domains.
        """
        self._workspace = workspace

    @classmethod
    def problems(
        cls, settings: Any, domains: Mapping[str, bool], placement: str, training: TrainingSettings
    ) -> Iterator[str]:
        """What is wrong with settings, each with its field.

        Args:
            settings: of this method.
            domains: of the recipe; whether each is trained on.
            placement: ``serving.placement``, if the method is to be deployed; else empty.
            training: of the recipe.
        """
        yield from ()

    @abstractmethod
    def steps(self) -> list[Step]:
        """The steps that are known now. Some are known only when others are made: ask again then."""

    @abstractmethod
    def systems(self) -> list[System]:
        """Its systems on the test sets; what is missing is made."""

    @classmethod
    @abstractmethod
    def system_names(cls, settings: Any, expert_domains: Sequence[str]) -> list[str]:
        """The names of its systems, before anything is made; one may be missing in the end.

        Args:
            settings: of this method.
            expert_domains: domains that are trained on.
        """

    @property
    def system(self) -> str:
        """What the evaluation calls what is deployed.

        Raises:
            Refused: nothing of it can be.
        """
        raise Refused(f"deploy: {self.name!r} cannot be served")

    def deployment(self) -> Deployment:
        """What is to be served; what is missing is made.

        Raises:
            Refused: nothing of it can be.
        """
        raise Refused(f"deploy: {self.name!r} cannot be served")

    def calibrate(self, domain: str) -> Calibration:
        """Learn how much BM25 counts in a domain; what is missing is made.

        Raises:
            Refused: this method learns no such weight.
        """
        raise Refused(f"deploy: {self.name!r} learns no weight of BM25")

    def untrained(self) -> list[str]:
        """Domains whose own model, under the present settings, has not been trained."""
        return []
