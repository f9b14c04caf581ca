"""Typed, frozen settings. A recipe (YAML) is checked here and nowhere else.

Every class refuses unknown keys and wrong types, so a typing mistake in a recipe stops at once with the
name of the field. Nothing heavy is imported here: ``routerretriever --help`` stays instant.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

BASE = "base"
"""Name under which the bare base encoder appears beside the experts."""
ROUTED_MODEL = "router"
"""In the service's API, the model that stands for routing."""
DOCUMENT_MODEL = "documents"
"""In the service's API, the model that embeds documents: the base, with its prompt and length for them."""

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
ResourceAmount = NonNegativeFloat
DomainName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


class RecipeError(ValueError):
    """A recipe or a setting is wrong; the message names the field and what was found."""


class Settings(BaseModel):
    """Base of all settings: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EncoderSettings(Settings):
    """The shared, frozen base encoder and how text becomes one vector.

    ``name`` is ``all-MiniLM-L6-v2`` (shipped by a package, works offline), any Hugging Face id, a local
    folder, or ``fake`` (a tiny random encoder for tests).
    """

    name: str = "all-MiniLM-L6-v2"
    revision: str | None = None
    pooling: Literal["mean", "cls"] = "mean"
    similarity: Literal["cosine", "dot"] = "cosine"
    query_prompt: str = ""
    document_prompt: str = ""
    query_max_length: PositiveInt = 256
    document_max_length: PositiveInt = 256
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    batch_size: PositiveInt = 64
    device: Literal["auto", "cpu", "cuda"] = "auto"
    general_prefix: str | None = None
    """A trained prefix that is part of the base, for queries and documents: where it lies. Dynamic Dense
    Retrieval makes one; see ``DdrSettings``."""

    def identity(self) -> dict[str, Any]:
        """The settings that change an expert's meaning; precision, device and batch size do not."""
        unused = {"general_prefix"} if self.general_prefix is None else set()
        return self.model_dump(exclude={"dtype", "batch_size", "device"} | unused)


class DomainSettings(Settings):
    """One collection: a BEIR folder (relative paths start at ``data_root``) or ``sample:<name>``.

    ``expert: false`` makes the collection evaluation-only (zero-shot): only its test split is used.
    """

    path: str
    expert: bool = True


class IndexSettings(Settings):
    """FAISS index of a corpus. ``exact`` is a flat inner-product index."""

    kind: Literal["exact", "ivf", "hnsw"] = "exact"
    ivf_lists: PositiveInt | None = None
    """Number of inverted lists; by default about 4 * sqrt(documents)."""
    ivf_probes: PositiveInt = 32
    hnsw_links: PositiveInt = 32
    hnsw_ef_construction: PositiveInt = 200
    hnsw_ef_search: PositiveInt = 128


class PoolSettings(Settings):
    """A pool of Ray Data actors."""

    workers: PositiveInt | None = None
    """Actors; by default as many as the cluster has room for, never more than there is work for."""
    cpus_per_worker: ResourceAmount = 1.0
    gpus_per_worker: ResourceAmount = 0.0


class CorpusSettings(PoolSettings):
    """How documents are turned into the corpus artifact by Ray Data."""

    shard_size: PositiveInt = 2048
    index: IndexSettings = IndexSettings()


class LoraSettings(Settings):
    """Low-rank adapter on the query tower (PEFT's LoRA)."""

    rank: PositiveInt = 8
    alpha: PositiveInt = 32
    dropout: Fraction = 0.1
    target_modules: tuple[str, ...] = ("query", "key", "value", "dense")


class PrefixSettings(Settings):
    """Trained keys and values for a query's tokens to attend to. See ``routerretriever.encoder.prefix``.

    They want a far higher learning rate than a LoRA: on dev queries of the sample 0.03 did best.
    """

    length: PositiveInt = 16
    """Prefix tokens in each layer."""
    layers: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = None
    """Transformer layers that have a prefix; by default all."""


class TrainingSettings(Settings):
    """One expert's training run; the same for every domain of a recipe.

    ``objective``:
      * ``corpus``: softmax over every document of the collection (documents are frozen, so this costs one
        matrix product);
      * ``sampled``: the batch's positives, ``hard_negatives`` per query from the base encoder's own
        results, and ``random_negatives`` shared by the batch;
      * ``in_batch``: the batch's other positives only (the paper's);
      * ``auto``: ``corpus`` up to ``corpus_objective_limit`` documents, ``sampled`` beyond.
    """

    objective: Literal["auto", "corpus", "sampled", "in_batch"] = "auto"
    corpus_objective_limit: PositiveInt = 200_000
    hard_negatives: NonNegativeInt = 16
    random_negatives: NonNegativeInt = 1024
    temperature: PositiveFloat = 0.05
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.01
    schedule: Literal["constant", "linear"] = "linear"
    warmup_fraction: Fraction = 0.1
    batch_size: PositiveInt = 32
    """Queries per optimiser step, over all workers of the expert."""
    max_steps: PositiveInt | None = 400
    max_epochs: PositiveInt | None = None
    evaluate_every: PositiveInt = 20
    """Steps between two looks at dev nDCG@10."""
    patience: PositiveInt = 5
    """Looks at dev without a new best before training stops."""
    dev_queries: PositiveInt = 400
    """At most this many dev queries are used for early stopping (a fixed sample): a look at dev should cost
    less than the steps between two looks."""
    max_gradient_norm: PositiveFloat = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    query_max_length: PositiveInt = 64
    """Tokens of a training query; longer ones are cut, to bound memory."""
    held_out_fraction: Fraction = 0.0
    """Share of the train queries that no expert trains on, so that they can be scored honestly."""
    seed: int = 0
    lora: LoraSettings = LoraSettings()
    prefix: PrefixSettings | None = None
    """If set, experts are prefixes of this size in place of LoRAs."""
    workers: PositiveInt = 1
    cpus_per_worker: ResourceAmount = 1.0
    gpus_per_worker: ResourceAmount = 0.0
    at_once: PositiveInt | None = None
    """Experts in training at a time; by default as many as the cluster has room for. Besides its workers each
    keeps two processes on the driver's machine (some 500 MB) and three small ones anywhere."""
    max_failures: NonNegativeInt = 2
    """How often a lost worker or machine is replaced before the domain is given up."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.max_steps is None and self.max_epochs is None:
            raise ValueError("set max_steps or max_epochs: a run needs an end")
        if self.batch_size % self.workers:
            raise ValueError(f"batch_size {self.batch_size} does not divide over workers {self.workers}")
        if self.objective == "sampled" and not (self.hard_negatives or self.random_negatives):
            raise ValueError("objective 'sampled' needs hard_negatives or random_negatives above 0")
        return self

    @property
    def adapter(self) -> LoraSettings | PrefixSettings:
        """What an expert is."""
        return self.prefix or self.lora

    def identity(self) -> dict[str, Any]:
        """The settings that change an expert's weights (resources and retries do not)."""
        unused = "prefix" if self.prefix is None else "lora"
        return self.model_dump(
            exclude={"cpus_per_worker", "gpus_per_worker", "at_once", "max_failures", unused}
        )


class JointSettings(Settings):
    """One adapter for all domains: the single model that a mixture of experts has to beat.

    It is trained as the experts are and shown in the evaluation; it is not deployed.
    """

    kind: Literal["joint", "average"] = "joint"
    """Trained on all domains in turns, or the plain mean of the experts' weights."""
    equal_data: bool = True
    """Joint: no more train queries of a domain than the smallest has (the paper's), or else all."""
    max_steps: PositiveInt | None = None
    """Joint: replaces ``training.max_steps``, which is meant for one domain."""


class GeneralPrefixSettings(Settings):
    """The general prefix of Dynamic Dense Retrieval, trained on queries and documents alike.

    What is not said here is as in ``training``. Documents are encoded in every step, so a step costs far more
    than one of an expert, and batches are small.
    """

    domains: Annotated[tuple[DomainName, ...], Field(min_length=1)] | None = None
    """Domains it is trained on, in turns; by default all that have an expert. A change of these makes another
    prefix, and all documents are encoded anew: name them if domains will be added."""
    learning_rate: PositiveFloat = 7e-3
    batch_size: PositiveInt = 8
    hard_negatives: PositiveInt = 5
    """For each query, from the base encoder's own results; the batch's other documents are negatives too."""
    max_steps: PositiveInt = 200
    evaluate_every: PositiveInt = 40
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
    labels: dict[DomainName, Annotated[tuple[DomainName, ...], Field(min_length=1)]] = {}
    """What each collection is about; there is a module for every label of a domain that is trained on. A
    domain that is not named has its own name as its label, a zero-shot collection any label."""
    top_k: PositiveInt = 2
    """Modules that DDR-topk keeps."""
    deployed: Literal["soft", "top_k", "prior"] = "soft"
    """What a service with ``deploy: ddr`` answers with. ``prior`` needs the collection's name as the model of
    a request, and answers others with all modules."""
    learning_rate: PositiveFloat = 0.03
    max_steps: PositiveInt | None = None
    """Replaces ``training.max_steps``, which is meant for one domain."""
    evaluate_every: PositiveInt | None = None
    """Replaces ``training.evaluate_every``: a look at dev is one at all domains here."""


class ScoringSettings(PoolSettings):
    """Which queries are scored with every expert, and how.

    ``source``: ``train`` (the paper's), ``dev``, or ``held_out`` (train queries that no expert saw; needs
    ``training.held_out_fraction`` above 0).
    """

    source: Literal["train", "dev", "held_out"] = "train"
    depth: Annotated[int, Field(ge=10, le=10_000)] = 100
    """Documents retrieved per query; the rank of the first relevant one is known up to here."""
    chunk_size: PositiveInt = 1024


class GateSettings(Settings):
    """The out-of-domain gate: how a query unlike all training queries is recognised and who then answers.

    Similarities are calibrated per dataset on its own training queries, each left out once.
    """

    fallback: Literal["uniform", "base"] = "base"
    """Who answers an unfamiliar query: all experts alike, or the bare base."""
    neighbours: PositiveInt = 8
    """Training queries that a query is compared with."""
    shut_quantile: Fraction = 0.01
    """A query less similar than this share of the training queries is unfamiliar."""
    open_quantile: Fraction = 0.5
    """A query more similar than this share of the training queries is familiar."""
    slack: Annotated[float, Field(ge=0)] = 1.0
    """Widens the way from unfamiliar to familiar, downwards, by this many of its lengths."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.shut_quantile >= self.open_quantile:
            raise ValueError("shut_quantile must be below open_quantile")
        return self


class RoutingSettings(Settings):
    """How a query is turned into weights over the experts. See ``routerretriever.routing``.

    The defaults were chosen by ``tune-router`` on dev queries of six collections. The paper's router is
    ``router: pilots, features: embedding, mixing: hard, gate: null``.
    """

    router: Literal[
        "pilots", "posterior", "neighbours", "utility", "centroids", "expert_classifier",
        "classification_head", "dataset", "fixed", "uniform",
    ] = "posterior"  # fmt: skip
    features: Literal["embedding"] | NonNegativeInt = 0
    """What the router reads: the base embedding, or the mean hidden state entering layer n (0: the input
    embeddings, no transformer layer is run)."""
    mixing: Literal["hard", "soft"] = "soft"
    temperature: PositiveFloat = 2.0
    """Sharpness of soft mixing: scores are divided by this before the softmax. Log-probabilities go with
    values around 1, similarities and utilities with values around 0.05."""
    mix: Literal["adapters", "vectors"] = "adapters"
    """What is mixed by weight. The experts' adapters, inside every layer: one encoding a query, however many
    experts it has. Or the vectors that each expert makes of the query: an encoding for each, which different
    processes can make. With all weight on one expert they are the same."""
    min_share: Fraction = 0.2
    """Experts with less than this share of the best one's weight are left out, and need not be run."""
    gate: GateSettings | None = GateSettings()
    """None: every query is routed as if it were of some domain."""
    ties: Literal["own", "drop", "first", "all"] = "own"
    """Pilots: who gets a query on which several experts are equally good."""
    clusters: PositiveInt = 1
    """Pilots: k-means centroids per (dataset, best expert) group; 1 is the paper's choice."""
    aggregate: Literal["mean", "nearest"] = "mean"
    """Pilots: mean similarity to an expert's pilots (the paper), or its nearest pilot."""
    neighbours: PositiveInt = 32
    """Neighbours: scored queries that a query's utilities are predicted from."""
    references: PositiveInt = 1000
    """Neighbours and gate: queries kept of each dataset; they are part of the bundle."""
    include_base: bool = False
    """Let the bare base encoder compete as if it were an expert."""
    expert: str | None = None
    """Fixed: the one expert that answers everything."""
    seed: int = 0

    def changed(self) -> dict[str, Any]:
        """The settings that are not the defaults, as a recipe would give them."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @model_validator(mode="after")
    def _fixed_names_its_expert(self) -> Self:
        if (self.router == "fixed") != (self.expert is not None):
            raise ValueError("expert is to be set with router 'fixed', and only then")
        return self


class RegistrySettings(Settings):
    """Where MLflow keeps experts and bundles. Without a URI: SQLite under the storage folder."""

    tracking_uri: str | None = None
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,80}$")] = "routerretriever"
    alias: str = "champion"


class ReplicaSettings(Settings):
    """Resources and autoscaling bounds of one Ray Serve deployment."""

    cpus: ResourceAmount = 0.5
    """Ray gives a replica as many threads, at least one. More replicas serve more than more threads do."""
    gpus: ResourceAmount = 0.0
    min_replicas: NonNegativeInt = 1
    """0 lets the deployment vanish when nobody asks. The next query waits for it to start, at most
    ``limits.seconds``; where the cluster has no CPUs or GPUs left for it, in vain."""
    max_replicas: PositiveInt = 1
    target_ongoing_requests: PositiveFloat = 8.0
    """Calls in progress per replica that autoscaling aims at."""
    upscale_delay_seconds: NonNegativeFloat = 10.0
    downscale_delay_seconds: NonNegativeFloat = 300.0
    max_batch_size: PositiveInt = 32
    """Queries in one pass."""
    max_queue: PositiveInt = 512
    """Queries that may wait in one replica; more are answered with 503 and Retry-After."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is below min_replicas {self.min_replicas}")
        return self


class SmallReplicaSettings(ReplicaSettings):
    """The same for what leaves a CPU alone most of the time."""

    cpus: ResourceAmount = 0.1


class LimitSettings(Settings):
    """What one HTTP request may ask for; more gets a 4xx that names the field."""

    texts: PositiveInt = 2048
    text_length: PositiveInt = 32_768
    """Characters of a query; the encoder reads its first ``query_max_length`` tokens."""
    documents: PositiveInt = 256
    document_length: PositiveInt = 262_144
    body_bytes: PositiveInt = 16_000_000
    requests: PositiveInt = 256
    """Requests in progress in one router replica; more are answered with 503 and Retry-After."""
    seconds: PositiveFloat = 30.0
    """A request that takes longer is given up (504), and what it waits for is cancelled."""


class ReleaseSettings(Settings):
    """How a running service takes over a release, and what it asks of it first."""

    poll_seconds: PositiveFloat = 5.0
    """How often the registry is asked which version is released."""
    canary_queries: PositiveInt = 20
    """Dev queries of each collection that a bundle carries, to be asked before it is let in."""
    max_canary_loss: Fraction = 0.02
    """A bundle whose mean nDCG@10 on canary queries is lower than the present one's by more is refused."""
    challenger_alias: str = "challenger"
    challenger_share: Fraction = 0.0
    """Share of the requests that the bundle under ``challenger_alias`` answers, if there is one."""
    shadow_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the searches that it answers too, once the answer has gone out, to be compared and dropped."""


class ServingSettings(Settings):
    """The HTTP service. ``port: 0`` takes a free port.

    ``placement``:
      * ``packed``: every router replica holds the base and all experts, and embeds a mixed batch in one pass;
      * ``per_expert``: an application for each expert, with its own replicas and its own share of a GPU;
        needs ``routing.mix: vectors``.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    placement: Literal["packed", "per_expert"] = "packed"
    collections: tuple[DomainName, ...] | None = None
    """Collections to search; by default all of the recipe."""
    tokens_file: str | None = None
    """YAML file of the bearer tokens that are let in; see ``routerretriever.serving.access``."""
    allow_anonymous: bool = False
    """Serve other machines without tokens, as behind a proxy that checks who asks."""
    limits: LimitSettings = LimitSettings()
    releases: ReleaseSettings = ReleaseSettings()
    router: ReplicaSettings = ReplicaSettings()
    expert: SmallReplicaSettings = SmallReplicaSettings()
    index: SmallReplicaSettings = SmallReplicaSettings()
    index_parts: PositiveInt = 1
    """Parts into which every collection is cut, each searched by a deployment of its own."""
    refresh_seconds: NonNegativeFloat = 1.0
    """Documents that were added or deleted show in searches after at most this long."""
    fold_changes: PositiveInt = 256
    """A collection's changes are folded into one file whenever so many have been made."""


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
    single_models: dict[DomainName, JointSettings] = {}
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
        if self.deploy == "ddr" and self.serving.placement != "packed":
            raise ValueError("deploy: 'ddr' is one model; set serving.placement to 'packed'")
        if self.ddr is not None:
            for field, names, there in (
                ("labels", self.ddr.labels, list(self.domains)),
                ("general.domains", self.general_domains, self.expert_domains),
            ):
                if unknown := sorted(set(names) - set(there)):
                    raise ValueError(
                        f"ddr.{field}: no such domain as {unknown[0]!r}; there are {sorted(there)}"
                    )
        if self.training.prefix is not None and self.routing.mix == "adapters":
            raise ValueError(
                "training.prefix: prefixes do not add up as LoRAs do; set routing.mix to 'vectors'"
            )
        if self.serving.placement == "per_expert" and self.routing.mix == "adapters":
            raise ValueError(
                "serving.placement 'per_expert' cannot serve routing.mix 'adapters', for which one process "
                "must hold all experts; set routing.mix to 'vectors', or serving.placement to 'packed'"
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


class ReproductionCase(Settings):
    """Figures that a recipe is to give. See ``routerretriever.reproduction``."""

    recipe: str
    """A recipe's path, relative to the file."""
    changes: tuple[str, ...] = ()
    """``dotted.key=value`` settings that replace the recipe's."""
    measure: Literal["ndcg_at_10", "recall_at_100", "average_precision", "reciprocal_rank_at_10"] = (
        "ndcg_at_10"
    )
    tolerance: PositiveFloat
    """A figure this close, up or down, is OK."""
    wide_tolerance: PositiveFloat
    """A figure this close is OKish; one further off fails."""
    expected: Annotated[
        dict[str, Annotated[dict[DomainName, float], Field(min_length=1)]], Field(min_length=1)
    ]
    """Way of answering, as the evaluation names them -> test set -> the measure times 100."""

    @model_validator(mode="after")
    def _wider(self) -> Self:
        if self.wide_tolerance < self.tolerance:
            raise ValueError("wide_tolerance must not be below tolerance")
        return self

    @property
    def needs_base_only(self) -> bool:
        """Whether no expert has a part in it."""
        return set(self.expected) == {BASE}


class _Reproduction(Settings):
    cases: Annotated[dict[DomainName, ReproductionCase], Field(min_length=1)]


Checked = TypeVar("Checked", bound=Settings)


def parse_recipe(values: dict[str, Any], source: str = "recipe") -> Recipe:
    """Check a recipe's values.

    Raises:
        RecipeError: a line for every field that is wrong, with what was found.
    """
    return _parse(Recipe, values, source)


def load_reproduction(path: Path) -> dict[str, ReproductionCase]:
    """Read and check a file of expected figures: cases by name.

    Raises:
        RecipeError: the file is missing, no YAML, or a setting is wrong.
    """
    return _parse(_Reproduction, _read_settings(path), str(path)).cases


def _parse(kind: type[Checked], values: dict[str, Any], source: str) -> Checked:
    try:
        # Through JSON, so that the strict check still takes a list where a tuple is meant.
        return kind.model_validate_json(json.dumps(values), strict=True)
    except TypeError as error:
        raise RecipeError(f"{source}: {error}") from None
    except ValidationError as error:
        lines = [_explain(dict(problem)) for problem in error.errors()]
        raise RecipeError(f"{source}: {len(lines)} wrong setting(s)\n" + "\n".join(lines)) from None


def _explain(problem: dict[str, Any]) -> str:
    field = ".".join(str(part) for part in problem["loc"] if part not in ("constrained-str", "[key]"))
    if problem["type"] == "extra_forbidden":
        return f"  {field}: unknown key"
    if problem["type"] == "missing":
        return f"  {field}: missing"
    message = problem["msg"].removeprefix("Value error, ")
    if not field or problem["type"] == "value_error":
        return f"  {field + ': ' if field else ''}{message}"
    return f"  {field}: {message} (found {problem['input']!r})"


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read and check a recipe file.

    Args:
        path: the YAML file.
        overrides: ``dotted.key=value`` settings that replace the file's; values are read as YAML.

    Raises:
        RecipeError: the file is missing, no YAML, or a setting is wrong.
    """
    values = _read_settings(Path(path))
    for override in overrides or []:
        _apply_override(values, override)
    return parse_recipe(values, source=str(path))


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        values = _read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not readable as YAML: {error}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: needs a mapping of settings, found {type(values).__name__}")
    return values


def _read_yaml(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def _apply_override(values: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise RecipeError(f"--set {override}: write it as dotted.key=value")
    *parents, last = dotted.split(".")
    node = values
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise RecipeError(f"--set {override}: {parent} is a value, not a group of settings")
    try:
        node[last] = _read_yaml(text)
    except YAMLError as error:
        raise RecipeError(f"--set {override}: the value is not readable as YAML: {error}") from None


def content_hash(*parts: Any) -> str:
    """Sixteen hex digits over JSON-serialisable parts, the same on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
