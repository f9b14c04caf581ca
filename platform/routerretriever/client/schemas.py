"""What goes over HTTP. Unknown fields, wrong types and out-of-range values get a 422 that names the field."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, field_validator

from routerretriever.types import ROUTED_MODEL, Fusion, Language, Mode, is_encodable


def _whole(number: object) -> object:
    # To JSON 3.0 is an integer; "3" and true are not.
    return int(number) if isinstance(number, float) and number.is_integer() else number


HALF_PAIR = "holds half a surrogate pair, which is no character"
"""What is wrong with a text that cannot be written as UTF-8."""

Text = Annotated[str, StringConstraints(min_length=1)]
DocumentId = Annotated[str, StringConstraints(min_length=1, max_length=512)]


def _texts_only(given: object) -> object:
    """Say what is wrong with texts in words that name the text, and what to change about token ids."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise ValueError("expected a text, or a list of one or more")
    for place, text in enumerate(texts):
        ids = text if isinstance(text, list) and text else [text]
        if place == 0 and all(map(_is_token_id, ids)):
            raise ValueError(
                "token ids are of another tokenizer than ours; send text "
                "(in LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False)"
            )
        if not isinstance(text, str):
            raise ValueError(f"text {place} is no text")
        if not text:
            raise ValueError(f"text {place} is empty")
        if not is_encodable(text):
            raise ValueError(f"text {place} {HALF_PAIR}")
    return given


def _is_token_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


InputType = Literal["query", "document", "search_query", "search_document", "passage"]


class _Answer(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class _Schema(_Answer):
    """What is sent to the service: as JSON means it, so that "3" is no number."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @field_validator("*")
    @classmethod
    def _holds_characters_only(cls, value: Any) -> Any:
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not is_encodable(text):
                raise ValueError(HALF_PAIR)
        return value


class Problem(_Answer):
    """What was wrong, in OpenAI's form."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(_Answer):
    """The body of every answer with a status of 400 or above."""

    error: Problem


Count = Annotated[int, Field(ge=1, le=1000), BeforeValidator(_whole)]


class SearchRequest(_Schema):
    """A query to one collection, or to several."""

    query: Text
    collection: str | None = None
    """May be left out if only one collection is served."""
    collections: Annotated[list[str], Field(min_length=1, max_length=16)] | None = None
    """Several collections, ranked together."""
    model: str = ROUTED_MODEL
    mode: Mode | None = None
    """Compare words and vectors, vectors alone, or words alone. By default both, where words are indexed."""
    weight: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of the words in a hybrid search, 0 to 1. By default a collection has one for all queries; in several
    collections it is chosen for each query."""
    fusion: Fusion = "convex"
    """How a hybrid search makes one score of both sides. ``convex``: a weighted sum of the two scores.
    ``rrf``: reciprocal rank fusion, 1 / (60 + rank) of each side, added up, which takes no ``weight``. A rank
    is 1 + the number of documents that score higher. Ranks beyond 1,000 count nothing; documents without one
    that counts are not found."""
    filter: dict[str, Any] | None = None
    """A condition on metadata, as ``{"field": "year", "gte": 2001}``; only documents that pass are ranked."""
    top_k: Count = 10
    """How many documents are wanted."""
    limit: Count | None = None
    """The same, by its other name; send one of them."""
    offset: Annotated[int, Field(ge=0, le=1000), BeforeValidator(_whole)] = 0
    """How many of the best documents are passed over."""
    min_score: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Documents below this score are left out. It is compared with ``score``, so with ``rrf`` it is at most
    0.033."""
    fields: list[str] | None = None
    """What is told of each document: ``title``, ``text`` and fields of its metadata; by default all."""
    group_by_parent: bool | None = None
    """Whether only the best passage of each document is told; by default it is. ``false`` ranks all passages.
    ``true`` also takes the documents ``a#1`` and ``a#2`` of collections without ``passages`` for passages of
    one document."""
    highlight: bool = False
    """Whether each document comes with the part that has most words of the query, out of its first 20,000
    characters."""

    @property
    def wanted(self) -> int:
        """How many documents are wanted."""
        return self.top_k if self.limit is None else self.limit


class Snippet(_Answer):
    """A part of a document's text."""

    text: str
    highlights: list[tuple[int, int]]
    """First and last + 1 character of each word of the query, counted from the start of the part in Unicode
    characters; words that overlap are one."""


class Hit(_Answer):
    """One document found."""

    id: str
    passage: int | None = None
    """Of a document that is cut into passages, the number of the one found, from 1. ``text`` and ``snippet``
    are the passage's; all else is the document's."""
    score: float
    """What the documents are ordered by: fused, 0 to 1, or with ``rrf`` to 2/61; or with one side alone that
    side's score."""
    dense_score: float | None = None
    """Inner product of the vectors."""
    lexical_score: float | None = None
    """BM25; null where words were not compared."""
    title: str
    text: str
    metadata: dict[str, Any] | None = None
    collection: str = ""
    snippet: Snippet | None = None


class SearchResponse(_Answer):
    """Documents, best first, and who answered."""

    collection: str | None
    """Null where several were searched."""
    expert: str
    """The expert with the largest weight."""
    weights: dict[str, float]
    mode: Mode = "dense"
    """What was compared."""
    lexical_weight: float | None = None
    """The weight of the words; null where only one side was compared, and with ``rrf``."""
    results: list[Hit]
    request: str | None = None
    """The answer's ``x-request-id``, by which feedback can name it and the service's log has it."""


class FeedbackRequest(_Schema):
    """What a user did with the results of a query."""

    query: Text
    collection: Annotated[Text, StringConstraints(max_length=128)]
    shown: list[DocumentId] = []
    """Ids of the results, best first."""
    clicked: list[DocumentId] = []
    """Those of them that the user opened."""
    relevant: list[DocumentId] = []
    """Those that the user marked as what they were looking for."""
    not_relevant: list[DocumentId] = []
    """Those that the user marked as useless."""
    user: Annotated[str, StringConstraints(max_length=128)] = ""
    """The sender's name for the user; `/v1/feedback/delete` deletes all reports under it."""
    id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{0,64}$")] = ""
    """Of two reports of a client with the same id, one counts; by default each is new."""
    request: Annotated[str, StringConstraints(max_length=128)] = ""
    """The search's, as its answer says; kept with the report, so that it is found in the logs."""


class FeedbackResponse(_Answer):
    """The report is kept."""

    id: str


class ForgetRequest(_Schema):
    """Whose reports are to be deleted."""

    user: Annotated[Text, StringConstraints(max_length=128)]


class ForgetResponse(_Answer):
    """How many reports of a user were deleted."""

    deleted: int


Texts = Annotated[list[Text], Field(min_length=1)]


class RouteRequest(_Schema):
    """Queries to route without searching."""

    input: Annotated[Text | Texts, BeforeValidator(_texts_only)]
    """One text or several."""
    collection: str | None = None
    """Whose ``lexical_weight`` is told; by default that of a search in several collections."""


class Neighbour(_Answer):
    """A training query near to the one that was routed."""

    dataset: str
    query: str
    similarity: float


class Route(_Answer):
    """Who would answer one query, and how sure the router is."""

    expert: str
    weights: dict[str, float]
    scores: dict[str, float]
    """What the weights are made from; an expert that the router cannot choose is left out."""
    margin: float | None
    """Score of the best expert minus that of the second."""
    familiarity: float | None = None
    """How familiar the query is, 0 to 1; below 1 the out-of-domain fallback has a share. Null without a
    fallback."""
    gate: float | None
    """The same, by its older name."""
    lexical_weight: float = 0.0
    """The weight of the words in a hybrid search for this query, in the collection named or in several; 0
    where the collection's words are not indexed."""
    nearest: list[Neighbour]
    """The most similar training queries; empty without a fallback."""


class RouteResponse(_Answer):
    """A route for every query, in order."""

    data: list[Route]


class EmbeddingsRequest(_Schema):
    """As OpenAI's embeddings API.

    ``model``: ``router``, ``base`` or an expert's name for queries; ``documents`` for documents.
    """

    input: Annotated[Text | Texts, BeforeValidator(_texts_only)]
    """One text or several."""
    model: str = ROUTED_MODEL
    input_type: InputType | None = None
    """What the texts are, in Cohere's and NVIDIA's words. Documents are embedded as by the model
    ``documents``."""
    truncate: Literal["NONE", "END"] | None = None
    """Whether a text that is longer than the encoder reads is refused (``NONE``) or its end cut (``END``), as
    NVIDIA's clients say it. By default ``serving.limits.refuse_truncated`` decides."""
    encoding_format: Literal["float", "base64"] | None = None
    """How vectors are written; by default as numbers."""
    dimensions: Annotated[int, Field(ge=1), BeforeValidator(_whole)] | None = None
    """Length of the vectors: the encoder's own, or one that it was trained to be cut to."""
    user: str | None = None
    drop_params: bool | None = None
    """Changes nothing. RAGFlow sends it to every endpoint, since LiteLLM knows it."""


class Embedding(_Answer):
    """One vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(_Answer):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(_Answer):
    """As OpenAI's embeddings API."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage
    truncated: list[int] = []
    """Indexes of the texts that were longer than the encoder reads; their ends are not in the vectors."""


class Model(_Answer):
    """As OpenAI's models API."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["routerretriever"] = "routerretriever"


class ModelsResponse(_Answer):
    """The router, the base and every expert."""

    object: Literal["list"] = "list"
    data: list[Model]


class ExpertState(_Answer):
    """One expert of the bundle that is being served."""

    name: str
    version: str
    registered_version: int
    expected_share: float
    """Its mean weight on dev queries, when the bundle was registered."""
    live_share: float | None
    """Its mean weight on the queries routed since; null before the first."""
    replicas: dict[str, int] | None = None
    """Of an expert with replicas of its own, how many there are by state: none while it sleeps, RUNNING, and
    STARTING, which lasts where the cluster has no CPUs or GPUs left for one."""


class ServiceState(_Answer):
    """What is being served, and what was refused."""

    version: int
    """The bundle's number in the registry."""
    encoder: str
    placement: str
    challenger: int | None
    challenger_share: float
    shadow_share: float
    routed_queries: int
    """Queries that the live shares are made of, over all replicas."""
    drift: float | None
    """Jensen-Shannon distance of the live shares from the expected ones, 0 to 1; null with few queries."""
    refused: dict[int, str]
    """Released versions that were not let in, and why."""
    registry_error: str | None = None
    """Why the registry did not answer when it was last asked; null if it did."""
    feedback: bool = False
    """Whether it keeps what users click and mark."""


class DocumentIn(_Schema):
    """A document to add; one with the same id is replaced."""

    id: DocumentId
    title: str = ""
    text: Text
    metadata: dict[str, Any] | None = None
    """JSON fields that searches can filter by and return."""


class DocumentOut(DocumentIn):
    """A document as it is stored."""

    model_config = ConfigDict(extra="ignore")

    passage_count: int | None = None
    """How many passages it is cut into; left out if it is not."""


class UpsertRequest(_Schema):
    """Documents to add or replace."""

    documents: Annotated[list[DocumentIn], Field(min_length=1)]


class DeleteRequest(_Schema):
    """Documents to delete; ids that are not there are passed over."""

    ids: Annotated[list[DocumentId], Field(min_length=1)]


class DocumentsResponse(_Answer):
    """A page of a collection's documents. One that is replaced moves to the end of its shard."""

    total: int
    """Documents in the whole collection."""
    data: list[DocumentOut]


class LexicalOptions(_Schema):
    """How a collection's words are indexed."""

    language: Language = "english"
    """Whose stemmer is used; ``none`` stems nothing, ``code`` also counts the parts of identifiers."""
    stop_words: bool = True
    """Leave out words without content."""
    k1: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.9
    """BM25: how much repeated words count."""
    b: Annotated[float, Field(ge=0, le=1)] = 0.4
    """BM25: how much long documents are marked down."""


class PassageOptions(_Schema):
    """How documents are cut into passages. The best passage is its document's score (MaxP)."""

    tokens: Annotated[int, Field(ge=8, le=8192), BeforeValidator(_whole)] = 200
    """Longest passage, in words and punctuation marks; the encoder's word pieces are a few more."""
    overlap: Annotated[int, Field(ge=0), BeforeValidator(_whole)] = 40
    """What two neighbouring passages share at most, in the same units; below ``tokens``."""


class CollectionIn(_Schema):
    """A collection to create, without documents."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"name": "notes", "lexical": {"language": "german"}},
                {"name": "manuals", "passages": {"tokens": 200, "overlap": 40}},
            ]
        }
    )

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
    lexical: LexicalOptions | None = LexicalOptions()
    """Index of words; null for none."""
    passages: PassageOptions | None = None
    """Cut documents into passages; by default each is read whole, as far as the encoder reads. It cannot be
    changed later."""


class CollectionState(_Answer):
    """A collection that can be searched."""

    name: str
    documents: int
    passage_count: int | None = None
    """Passages that these documents are cut into; null where they are whole."""
    change: int
    """Number of the last change that is searched; 0 before the first."""
    lexical: LexicalOptions | None
    """How its words are indexed; null where only vectors are searched."""
    passages: PassageOptions | None = None
    """How its documents are cut into passages; null where they are whole."""
    lexical_weight: float | None = None
    """The weight of words that was learned for it over HTTP."""
    examples: list[str] = []
    """Some of its dev queries, to try a search with."""
    created: bool
    """Whether it was created over HTTP, and can be deleted so."""
    writable: bool
    """Whether this token may change it."""


class JudgedQuery(_Schema):
    """A query, and the ids of the documents that answer it."""

    query: Annotated[str, Field(min_length=1)]
    relevant: Annotated[list[DocumentId], Field(min_length=1)]


class CalibrateRequest(_Schema):
    """Queries of a collection from which the weight of its words is learned."""

    queries: Annotated[list[JudgedQuery], Field(min_length=1)]


class Calibrated(_Answer):
    """What was learned."""

    collection: str
    queries: int
    lexical_weight: float
    """The weight that hybrid searches of this collection have from now on."""
    ndcg_at_10: dict[str, float]
    """Mean of the queries by weight. Few queries move the weight less than many."""


class ChangeResponse(_Answer):
    """A change that is in storage."""

    change: int
    """Its number in the collection."""
    searchable_within_seconds: float
    passage_count: int | None = None
    """Passages that added documents were cut into; null where they are whole."""
    truncated: int = 0
    """Added documents that are longer than the encoder reads: what is behind that is not in their vectors."""
    hint: str | None = None
    """What to do about those."""


class Status(_Answer):
    """``ok``, or what is missing."""

    status: str
    details: dict[str, Any] = {}
