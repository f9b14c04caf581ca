"""What goes over HTTP. Unknown fields, wrong types and out-of-range values get a 422 that names the field."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

ROUTED_MODEL = "router"
"""The model name that stands for routing; any expert's name stands for that expert alone."""

Text = Annotated[str, StringConstraints(min_length=1, max_length=32_768)]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SearchRequest(_Schema):
    """A query to one collection."""

    query: Text
    collection: str | None = None
    """May be left out if only one collection is served."""
    top_k: Annotated[int, Field(ge=1, le=1000, strict=True)] = 10
    model: str = ROUTED_MODEL


class Hit(_Schema):
    """One document found."""

    id: str
    score: float
    title: str
    text: str


class SearchResponse(_Schema):
    """Documents, best first, and who answered."""

    collection: str
    expert: str
    """The expert with the largest weight."""
    weights: dict[str, float]
    results: list[Hit]


class RouteRequest(_Schema):
    """Queries to route without searching."""

    input: Text | Annotated[list[Text], Field(min_length=1, max_length=2048)]


class Neighbour(_Schema):
    """A training query near to the one that was routed."""

    dataset: str
    query: str
    similarity: float


class Route(_Schema):
    """Who would answer one query, and how sure the router is."""

    expert: str
    weights: dict[str, float]
    scores: dict[str, float]
    """What the weights are made from; an expert that the router cannot choose is left out."""
    margin: float | None
    """Score of the best expert minus that of the second."""
    gate: float | None
    """How familiar the query is, 0 to 1; below 1 the fallback has a share. Null without a gate."""
    nearest: list[Neighbour]
    """The most similar training queries; empty without a gate."""


class RouteResponse(_Schema):
    """A route for every query, in order."""

    data: list[Route]


class EmbeddingsRequest(_Schema):
    """As OpenAI's embeddings API; ``model`` is ``router`` or an expert's name."""

    input: Text | Annotated[list[Text], Field(min_length=1, max_length=2048)]
    model: str = ROUTED_MODEL
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: None = None
    user: str | None = None


class Embedding(_Schema):
    """One vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(_Schema):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(_Schema):
    """As OpenAI's embeddings API."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class ExpertState(_Schema):
    """One expert of the bundle that is being served."""

    name: str
    version: str
    registered_version: int
