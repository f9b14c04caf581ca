"""The HTTP service. Its settings lie here, since the recipe holds them and the service reads the recipe."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from routerretriever.config.registry import AliasName
from routerretriever.encoder.settings import EngineSettings
from routerretriever.settings import DomainName, Fraction, Labels, ResourceAmount, Settings


class ReplicaSettings(Settings):
    """Resources and autoscaling bounds of one Ray Serve deployment."""

    cpus: ResourceAmount = 0.5
    """Ray gives a replica as many threads, at least one. More replicas serve more than more threads do."""
    gpus: ResourceAmount = 0.0
    """GPUs that Ray reserves for each replica; a fraction lets several share one."""
    labels: Labels = Field(default_factory=dict)
    """Labels that a machine must have to hold a replica, as ``{ray.io/market-type: on-demand}``."""
    min_replicas: NonNegativeInt = 1
    """Lower bound of autoscaling. 0 stops an idle deployment; the next query waits for its start, at most
    ``limits.seconds``."""
    max_replicas: PositiveInt | None = None
    """Upper bound of autoscaling. By default the router's replicas may become as many as the cluster has CPUs
    or, with ``gpus``, such shares of GPUs when the service starts, 8 at most; of all others there are as many
    as ``min_replicas`` says, one at least."""
    target_ongoing_requests: PositiveFloat = 8.0
    """Calls in progress per replica that autoscaling aims at."""
    upscale_delay_seconds: NonNegativeFloat = 10.0
    """Seconds of high load before a replica is added."""
    downscale_delay_seconds: NonNegativeFloat = 300.0
    """Seconds of low load before a replica is removed."""
    max_batch_size: PositiveInt = 32
    """Texts in one pass."""
    max_batch_tokens: PositiveInt = 2048
    """Tokens in one pass, about; a single text may have more."""
    bulk_pass_seconds: PositiveFloat = 0.04
    """Seconds that a pass over texts of big requests takes, about, while small ones come: so long these may
    have to wait. Big is what takes longer. Where only big requests come, passes are full."""
    max_queue: PositiveInt = 512
    """Searches that may wait for the index in one replica; more are answered with 503 and Retry-After."""
    max_queue_tokens: PositiveInt = 32_768
    """Tokens that may have to be read in one replica before a new request is done; if there are more it is
    answered with 503 and Retry-After. Its own size and what comes after it do not count."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is below min_replicas {self.min_replicas}")
        return self


class SmallReplicaSettings(ReplicaSettings):
    """The same for what leaves a CPU alone most of the time."""

    cpus: ResourceAmount = 0.1
    """CPUs that Ray reserves for each replica."""


class LimitSettings(Settings):
    """What one HTTP request may ask for; more gets a 4xx that names the field."""

    texts: PositiveInt = 2048
    """Queries in one request."""
    text_length: PositiveInt = 32_768
    """Characters of a query; the encoder reads its first ``query_max_length`` tokens."""
    documents: PositiveInt = 256
    """Documents in one request."""
    document_length: PositiveInt = 262_144
    """Characters of a document, its title included."""
    passages: PositiveInt = 2048
    """Passages that the documents of one request are cut into, about."""
    metadata_bytes: PositiveInt = 16_384
    """Bytes of a document's metadata, as JSON."""
    body_bytes: PositiveInt = 16_000_000
    """Bytes of a request's body."""
    requests: PositiveInt = 256
    """Requests in progress in one router replica; more are answered with 503 and Retry-After, unless their
    client has less than its share of them."""
    seconds: PositiveFloat = 30.0
    """A request times out after so long (504). Queued work of timed-out or disconnected requests is
    cancelled."""
    seconds_per_token: NonNegativeFloat = 0.005
    """What every token of a request's texts, about, adds to ``seconds``."""
    refuse_truncated: bool = False
    """Refuse embeddings of texts that are longer than the encoder reads, instead of marking them."""


class ReleaseSettings(Settings):
    """How a running service takes over a release, and what it asks of it first."""

    poll_seconds: PositiveFloat = 5.0
    """How often the registry is asked which version is released."""
    validation_queries: PositiveInt = 20
    """Dev queries of each collection that a bundle carries and must answer before it is released."""
    max_validation_loss: Fraction = 0.02
    """A bundle whose mean nDCG@10 on validation queries is lower than the present one's by more is
    refused."""
    retry_seconds: PositiveFloat = 60.0
    """A bundle that was refused for a reason that may pass, as storage that cannot be reached, is tried again
    after so long. ``release --retry`` tries any refused bundle again at once."""
    challenger_alias: AliasName = "challenger"
    """MLflow alias of the version that is tried beside the released one."""
    challenger_share: Fraction = 0.0
    """Share of the requests that the bundle under ``challenger_alias`` answers."""
    shadow_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the searches that it repeats after the answer was sent, to be compared; nobody sees them."""


class FeedbackSettings(Settings):
    """What ``/v1/feedback`` takes, and what ``learn`` makes of it."""

    documents: PositiveInt = 200
    """Document ids in a list of one report."""
    query_length: PositiveInt = 2000
    """Characters of a query."""
    discount: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """A click at rank r counts ``1 - discount ** r``: results at the top are clicked for standing there."""
    least: PositiveFloat = 1.0
    """What the votes of users for a document must add up to before it counts as relevant; a mark counts 1."""
    passed_over: NonNegativeFloat = 1.0
    """What it counts against a document if a user passed it over to click one below it; 0 leaves it out."""


class ServingSettings(Settings):
    """The HTTP service. ``port: 0`` takes a free port.

    ``placement``:
      * ``shared``: every router replica holds the base and all experts, and embeds a mixed batch in one pass;
      * ``dedicated``: an application for each expert, with its own replicas and its own share of a GPU;
        needs ``routing.merge: embeddings``.
    """

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 takes a free one."""
    placement: Literal["shared", "dedicated"] = "shared"
    """Whether experts share every router replica or have replicas of their own."""
    collections: tuple[DomainName, ...] | None = None
    """Collections to search; by default all of the recipe."""
    tokens_file: str | None = None
    """YAML file of the bearer tokens that are let in: docs/how-to/tokens.md."""
    allow_anonymous: bool = False
    """Serve other machines without tokens, as behind a proxy that checks who asks."""
    limits: LimitSettings = LimitSettings()
    """Bounds on one request."""
    releases: ReleaseSettings = ReleaseSettings()
    """How a running service takes over a release."""
    engine: EngineSettings = EngineSettings()
    """What runs the encoder and its experts in every replica."""
    router: ReplicaSettings = ReplicaSettings()
    """Replicas that take requests and route queries."""
    expert: SmallReplicaSettings = SmallReplicaSettings()
    """Replicas of each expert, with ``placement: dedicated``."""
    index: SmallReplicaSettings = SmallReplicaSettings()
    """Replicas that search each collection."""
    cached_vectors: NonNegativeInt = 10_000
    """Query vectors that every router replica keeps by bundle, model and text; 0 keeps none. One takes about
    4 bytes a dimension and the text."""
    root_path: Annotated[str, Field(pattern=r"^(/[^/\s?#]+)*$")] = ""
    """Path prefix under which a proxy offers the service, as ``/retrieval``, if the proxy strips it and does
    not send ``X-Forwarded-Prefix``."""
    example_queries: NonNegativeInt = 3
    """Dev queries of each collection that the playground offers to whoever may read it; 0 shows none."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the service from a browser; ``*`` for all."""
    index_shards: PositiveInt = 1
    """Shards of every collection; each is searched by a deployment of its own."""
    refresh_seconds: NonNegativeFloat = 1.0
    """Documents that were added or deleted show in searches after at most this long."""
    compact_every: PositiveInt = 256
    """Changes to a collection after which they are compacted into one checkpoint."""
    feedback: FeedbackSettings | None = None
    """Keep what users click and mark, under ``feedback/`` of the storage; ``{}`` turns it on."""

    @field_validator("host")
    @classmethod
    def _of_ipv4(cls, host: str) -> str:
        if ":" in host:
            raise ValueError(
                f"{host!r} has a colon, but the service listens on IPv4 alone, and port is a setting of its "
                "own; name 127.0.0.1, or 0.0.0.0 for all addresses of this machine"
            )
        return host

    @field_validator("collections")
    @classmethod
    def _some(cls, collections: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if collections == ():
            raise ValueError("is an empty list; name collections, or leave it out to serve all of the recipe")
        return collections

    @field_validator("cors_origins")
    @classmethod
    def _as_browsers_send_them(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin in ("*", "null"):
                continue
            if "*" in origin:
                raise ValueError(
                    f"{origin!r}: a star stands for all origins, alone; name each origin in full"
                )
            if origin != (sent := _origin_of(origin)):
                raise ValueError(f"{origin!r} is what no browser sends as a page's origin; write {sent!r}")
        return origins


def _origin_of(address: str) -> str:
    """The origin that a browser tells of pages at an address; HTTPS if it names no scheme."""
    parts = urlsplit(address if "://" in address else f"https://{address}")
    host = parts.netloc.rpartition("@")[2].lower()
    default = {"http": ":80", "https": ":443"}.get(parts.scheme)
    return f"{parts.scheme}://{host.removesuffix(default) if default else host}"
