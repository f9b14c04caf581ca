"""What the pure modules ask of the world: small protocols, and the values that pass through them.

Deployments implement the protocols with Ray Serve, tests with plain objects.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from routerretriever.bundle.manifest import ValidationQuery
from routerretriever.datasets.collection import Document
from routerretriever.datasets.settings import PassageSettings
from routerretriever.index.changes import changes_key
from routerretriever.index.documents import StoredDocument
from routerretriever.index.live import Found, Wanted
from routerretriever.index.settings import LexicalSettings
from routerretriever.types import Mode, Vectors

Clock = Callable[[], float]
"""Seconds that only ever grow, like ``time.monotonic``."""


@dataclass(frozen=True)
class CollectionRef:
    """Where a collection lies: its corpus artifact, and the changes made since."""

    corpus: str
    changes: str
    lexical: LexicalSettings | None = None
    """How its words are indexed; None where only vectors are searched."""
    passages: PassageSettings | None = None
    """How its documents are cut; None where they are whole."""
    created_for: str = ""
    """Of a collection that was created over HTTP, the fingerprint of its base encoder; else empty."""
    lexical_weight: float | None = field(default=None, compare=False)
    """The weight of words that was learned for it over HTTP. It is the same collection with another."""

    @classmethod
    def of(
        cls,
        collection: str,
        corpus: str,
        encoder_fingerprint: str,
        lexical: LexicalSettings | None = None,
        passages: PassageSettings | None = None,
    ) -> CollectionRef:
        """The reference of a collection in a bundle."""
        return cls(corpus, changes_key(collection, encoder_fingerprint), lexical, passages)


@dataclass(frozen=True)
class Release:
    """A bundle that may be served."""

    version: int
    bundle_key: str
    collections: dict[str, CollectionRef]
    experts: dict[str, str]
    """The application of each expert; none with shared placement."""


@dataclass(frozen=True)
class DesiredState:
    """What every ingress replica should serve."""

    current: Release
    challenger: Release | None
    replicas: int = 1
    """How many ingress replicas there are."""


@dataclass(frozen=True)
class Heartbeat:
    """What an ingress replica serves, and what it has routed since its last heartbeat."""

    replica: str
    versions: tuple[int, ...]
    weights: dict[int, dict[str, float]]
    """Sum of the weights of each expert, by bundle version."""


@dataclass(frozen=True)
class ValidatedBundle:
    """A bundle that is whole and fits its base, with the vectors of its validation queries."""

    bundle_key: str
    manifest: dict[str, Any]
    validation: dict[str, tuple[list[ValidationQuery], Vectors]]
    """By collection: queries and their vectors [n, d]."""
    dimension: int


@dataclass(frozen=True)
class Rejection:
    """Why a bundle is not served."""

    reason: str
    transient: bool = False
    """Whether the cause may go away by itself, as when storage cannot be reached."""


@dataclass(frozen=True)
class Contents:
    """How far a collection has come."""

    documents: int
    change: int
    """Number of the last change that is searched."""
    rows: int
    """Documents, or the passages that they are cut into."""


class IndexPort(Protocol):
    """Searches collections, over all their shards."""

    async def search(
        self, collection: CollectionRef, queries: Vectors, depths: list[int]
    ) -> list[list[Found]]:
        """The best documents for each query [B, d], by vectors."""
        ...

    async def find(
        self, collections: tuple[CollectionRef, ...], mode: Mode, wanted: list[Wanted]
    ) -> list[list[tuple[int, Found]]]:
        """The best documents of several collections together, each with its collection's position.

        Of a document that is cut, it is the best passage, unless the query wants all of them. Scores are as
        if all documents lay in one collection: fused with the greatest cosine and BM25 of all, or by ranks
        among all.
        """
        ...

    async def document(self, collection: CollectionRef, document_id: str) -> StoredDocument | None:
        """A whole document as it is now, if there is one."""
        ...

    async def contents(self, collection: CollectionRef) -> Contents:
        """How many documents a collection has."""
        ...

    async def documents(self, collection: CollectionRef, offset: int, limit: int) -> list[StoredDocument]:
        """Whole documents by page."""
        ...


class WriterPort(Protocol):
    """Writes changes of collections; each gets a number. Knows which collections were created over HTTP."""

    async def created(self, encoder_fingerprint: str) -> dict[str, CollectionRef]:
        """The created collections of a base encoder, by name."""
        ...

    async def create(self, name: str, ref: CollectionRef, dimension: int) -> bool:
        """Create a collection without documents; False if another has its name."""
        ...

    async def weigh(self, name: str, ref: CollectionRef, weight: float) -> bool:
        """Set the weight of words in a created collection; False if it was dropped."""
        ...

    async def drop(self, name: str, ref: CollectionRef) -> None:
        """Delete a created collection and its documents."""
        ...

    async def upsert(
        self,
        collection: CollectionRef,
        documents: list[Document],
        vectors: Vectors,
        passages: list[list[str]] | None = None,
    ) -> int | None:
        """Add or replace documents; None if the collection was dropped.

        Args:
            collection: which.
            documents: whole.
            vectors: of the documents, or of all passages in their order [n, d].
            passages: the texts that each document was cut into, if they are cut.
        """
        ...

    async def delete(self, collection: CollectionRef, ids: list[str]) -> int | None:
        """Delete documents; None if the collection was dropped."""
        ...


class ExpertPort(Protocol):
    """An expert in a process of its own."""

    async def embed(self, rows: list[list[int]]) -> Vectors:
        """Vectors [B, d] of tokenised queries."""
        ...


class ControllerPort(Protocol):
    """Knows what is served over all replicas."""

    async def state(self) -> dict[str, Any]:
        """Fields of ``schemas.ServiceState``."""
        ...

    async def experts(self) -> list[dict[str, Any]]:
        """Fields of ``schemas.ExpertState``."""
        ...


class RegistryPort(Protocol):
    """Which versions the registry's aliases point at."""

    def released(self) -> int | None:
        """The released version."""
        ...

    def challenger(self) -> int | None:
        """The version that is tried beside it."""
        ...

    def require_released(self) -> None:
        """Raise ``NotFound`` if there is no released version."""
        ...


class ApplicationsPort(Protocol):
    """Experts that run as applications of their own."""

    async def replicas(self) -> dict[str, dict[str, int]]:
        """Replicas by state of every expert's application; without those that are ending."""
        ...

    async def start(self, applications: dict[str, str], bundle: ValidatedBundle) -> Rejection | None:
        """Start applications (by expert) and wait until they run; gives the reason if one does not, and stops
        all of them."""
        ...

    async def stop(self, application: str) -> None:
        """Stop one."""
        ...


class PointersPort(Protocol):
    """Small named notes that outlive the process; the artifact store has them."""

    def read_pointer(self, name: str) -> dict[str, Any] | None:
        """A note, if there is one."""
        ...

    def write_pointer(self, name: str, content: dict[str, Any]) -> None:
        """Write or replace a note."""
        ...


class CounterPort(Protocol):
    """A number that grows."""

    def inc(self, value: float = ..., tags: dict[str, str] | None = ...) -> None:
        """Add to it."""
        ...


class GaugePort(Protocol):
    """A number that is set."""

    def set(self, value: float, tags: dict[str, str] | None = ...) -> None:
        """Set it."""
        ...


class HistogramPort(Protocol):
    """A distribution."""

    def observe(self, value: float, tags: dict[str, str] | None = ...) -> None:
        """Add an observation."""
        ...


class MetricsPort(Protocol):
    """The metrics of a replica; ``deployments.metrics`` says what each one is."""

    requests: CounterPort
    request_seconds: HistogramPort
    stage_seconds: HistogramPort
    batch_size: HistogramPort
    batch_tokens: HistogramPort
    waiting: GaugePort
    waiting_tokens: GaugePort
    expert_weight: CounterPort
    expert_queries: CounterPort
    routing_entropy: HistogramPort
    fallback_queries: CounterPort
    cache_lookups: CounterPort
    drift: GaugePort
    releases: CounterPort
    registry_away: GaugePort
    shadows: CounterPort
    shadow_documents: CounterPort
    shadow_seconds: HistogramPort

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time and trace a stage."""
        ...
