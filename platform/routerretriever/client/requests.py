"""What both clients send and make of answers; they differ in how they wait."""

from __future__ import annotations

import base64
import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypedDict
from urllib.parse import quote

import httpx
import numpy as np
from numpy.typing import NDArray

from routerretriever.client.schemas import EmbeddingsResponse, Hit
from routerretriever.types import Fusion, Mode, as_list

Vectors = NDArray[np.float32]
Document = Mapping[str, Any]
"""``id``, ``text`` and, if there are any, ``title`` and ``metadata``."""

_PASSING = (429, 502, 503)
_JSON = "application/json"
COLLECTIONS = "/v1/collections"
DEFAULT_LEXICAL: Mapping[str, Any] = MappingProxyType({})
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 2.0
_CUT = (
    "some texts are longer than the encoder reads, and their ends are not in the vectors; "
    "cut them into passages, or have them refused with truncate='NONE'"
)


class ServiceError(RuntimeError):
    """The service answered with an error, in its own words, or something else answered in its place."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(f"{response.status_code}: {_message(response)}")
        self.status = response.status_code


def _message(response: httpx.Response) -> str:
    if response.has_redirect_location:
        return f"redirected to {response.headers['Location']}; give the client the address where that leads"
    if response.is_success:
        kind = response.headers.get("Content-Type", "nothing")
        return f"found {kind} where the service sends JSON; check the client's address"
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]


LOST = (httpx.NetworkError, httpx.RemoteProtocolError)
"""A connection that was refused or broke. One that never was is an address to be corrected."""


class Attempts:
    """When one request is sent again."""

    def __init__(self, patience: float) -> None:
        self._until = time.monotonic() + patience
        self._next = _FIRST_PAUSE

    def pause_after(self, response: httpx.Response) -> float | None:
        """Seconds to wait before another attempt; None if this answer stands."""
        # A proxy that has just been started anew finds no route; our own 404s are JSON.
        lost = response.status_code == 404 and _JSON not in response.headers.get("Content-Type", "")
        if response.status_code not in _PASSING and not lost:
            return None
        told = response.headers.get("Retry-After", "")  # ours is in seconds; a proxy's may be a date
        return self.pause(float(told) if told.isdecimal() else None)

    def pause(self, seconds: float | None = None) -> float | None:
        """The same when there was no answer; so many seconds if they are given."""
        if not seconds:  # a proxy's 0 does not mean without end and without a pause
            seconds, self._next = self._next, min(2 * self._next, _LONGEST_PAUSE)
        return seconds if time.monotonic() + seconds <= self._until else None


class SearchOptions(TypedDict, total=False):
    """What a search may say besides; see ``SearchRequest``."""

    collections: list[str]
    mode: Mode | None
    weight: float
    fusion: Fusion
    filter: dict[str, Any] | None
    offset: int
    min_score: float
    fields: list[str]
    group_by_parent: bool | None
    highlight: bool


class EmbedOptions(TypedDict, total=False):
    """What a request for vectors may say besides; see ``EmbeddingsRequest``."""

    dimensions: int | None
    truncate: Literal["NONE", "END"] | None


def headers(token: str | None) -> dict[str, str]:
    """With the token, if there is one."""
    return {"Authorization": f"Bearer {token}"} if token else {}


def checked(response: httpx.Response) -> Any:
    """An answer's JSON.

    Raises:
        ServiceError: it is an error, or not the service's.
    """
    if not response.is_success:
        raise ServiceError(response)
    try:
        return response.json()
    except ValueError:
        raise ServiceError(response) from None


def search_body(
    query: str, collection: str | None, top_k: int, model: str, options: SearchOptions
) -> dict[str, Any]:
    """Of ``/v1/search``."""
    return {"query": query, "collection": collection, "top_k": top_k, "model": model, **options}


def route_body(texts: Sequence[str], collection: str | None) -> dict[str, Any]:
    """Of ``/v1/route``."""
    return {"input": as_list(texts), "collection": collection}


def embeddings_body(texts: Sequence[str], model: str, options: EmbedOptions) -> dict[str, Any]:
    """Of ``/v1/embeddings``."""
    return {"input": as_list(texts), "model": model, "encoding_format": "base64", **options}


def feedback_body(
    query: str, collection: str, shown: Sequence[str], marks: Mapping[str, Any]
) -> dict[str, Any]:
    """Of ``/v1/feedback``."""
    # An id of its own, so that a report that is sent again counts once.
    report = {"query": query, "collection": collection, "shown": as_list(shown), "id": uuid.uuid4().hex}
    return {**report, **marks}


def collection_body(
    name: str, lexical: Mapping[str, Any] | None, passages: Mapping[str, int] | None
) -> dict[str, Any]:
    """Of a collection that is created."""
    options = {"lexical": lexical, "passages": passages}
    return {"name": name, **{key: None if one is None else dict(one) for key, one in options.items()}}


def judged_body(queries: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Of a calibration."""
    return {"queries": [{"query": query, "relevant": as_list(ids)} for query, ids in queries.items()]}


def collection_path(name: str) -> str:
    """Where a collection is. Whatever a name holds, it names no other: ``a#b`` is not ``a``."""
    return f"{COLLECTIONS}/{quote(name, safe='')}"


def documents_path(collection: str) -> str:
    """Where a collection's documents are."""
    return f"{collection_path(collection)}/documents"


def vectors_of(answer: Any) -> Vectors:
    """The vectors [B, d] of an answer; warns if ends of texts are not in them."""
    read = EmbeddingsResponse.model_validate(answer)
    if read.truncated:
        warnings.warn(_CUT, stacklevel=3)
    return np.stack([np.frombuffer(base64.b64decode(str(one.embedding)), "<f4") for one in read.data])


def metadata_of(hit: Hit) -> dict[str, Any]:
    """A hit's metadata with its title. Where the document has none, one in the metadata stays."""
    metadata = hit.metadata or {}
    return {**metadata, "title": hit.title or metadata.get("title", "")}
