"""What the HTTP API offers: searches, embeddings, routes and changes, by one release."""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from routerretriever.client.schemas import (
    Calibrated,
    ChangeResponse,
    CollectionIn,
    CollectionState,
    ExpertState,
    JudgedQuery,
    LexicalOptions,
    Neighbour,
    PassageOptions,
    Route,
    SearchRequest,
    SearchResponse,
    ServiceState,
)
from routerretriever.config.serving import ServingSettings
from routerretriever.datasets.collection import Document
from routerretriever.datasets.settings import PassageSettings
from routerretriever.errors import Forbidden, NotFound, Refused, UnknownName, WrongField
from routerretriever.index.changes import changes_key
from routerretriever.index.documents import StoredDocument
from routerretriever.index.fusion_weights import GRID, FusionWeights
from routerretriever.index.live import Wanted
from routerretriever.index.settings import LexicalSettings
from routerretriever.serving.access import Access
from routerretriever.serving.calibration import Judged, measure_weights, require_documents
from routerretriever.serving.catalogue import empty_corpus
from routerretriever.serving.engine import Embedded, Engine
from routerretriever.serving.passages import texts_of
from routerretriever.serving.ports import (
    CollectionRef,
    Contents,
    ControllerPort,
    DesiredState,
    IndexPort,
    Release,
    WriterPort,
)
from routerretriever.serving.search import Find, Plan, Ranked, Refs, Searches
from routerretriever.serving.shadow import Shadows
from routerretriever.types import DOCUMENT_MODEL, ROUTED_MODEL, Mode, Vectors

log = logging.getLogger("ray.serve")

_WHY_NOT_TOLD = "tokens that may read all collections are told why"


@dataclass
class Replica:
    """What all releases in one ingress replica share, and the engines that are loaded."""

    settings: ServingSettings
    index: IndexPort
    writer: WriterPort
    controller: ControllerPort
    searches: Searches
    shadows: Shadows
    desired: DesiredState
    engines: dict[int, Engine] = field(default_factory=dict)
    """By bundle version."""
    created: dict[str, CollectionRef] = field(default_factory=dict)
    """Collections that were created over HTTP, as far as this replica has heard."""
    hidden: set[str] = field(default_factory=set)
    """Those of them whose names the current release has taken."""
    random: Callable[[], float] = random.random

    async def refresh(self) -> None:
        """Learn which collections were created or deleted."""
        bundle = self.engines[self.desired.current.version].bundle
        created = await self.writer.created(bundle.manifest["encoder_fingerprint"])
        hidden = created.keys() & self.desired.current.collections.keys()
        for name in sorted(hidden - self.hidden):
            log.warning(
                "the released bundle has a collection %s, which hides the one created over HTTP; release a "
                "bundle without it, or with another name for it, to reach its documents", name,
            )  # fmt: skip
        self.created, self.hidden = created, hidden

    def service(self, collections: Sequence[str] | None = ()) -> Service:
        """The release that answers the next request: the current one, or by its share the challenger.

        Args:
            collections: that it names; where one release alone has them all, that one answers. The current
                one does where a name is of a collection that was created, and of the challenger's own. None
                if it means the only one that there is.
        """
        current, challenger = self.current(), self.challenger()
        if challenger is None:
            return current
        if collections is None:
            may_answer = current.collections.keys() == challenger.collections.keys()
        else:
            may_answer = challenger.has(collections)
            if may_answer and not current.has(collections):
                return challenger
        drawn = self.random() < self.settings.releases.challenger_share
        if not (may_answer and drawn):
            return current
        names = current.collections if collections is None else collections
        return challenger if challenger.means_the_same(current, names) else current

    def current(self) -> Service:
        """The release that is served."""
        return Service(self, self.desired.current)

    def challenger(self) -> Service | None:
        """The release that is tried beside it."""
        return Service(self, self.desired.challenger) if self.desired.challenger else None

    @property
    def busy(self) -> bool:
        """Whether anything waits for its turn."""
        return bool(self.searches.waiting or any(engine.waiting for engine in self.engines.values()))


class Service:
    """One release at work; requests keep the one that they began with."""

    def __init__(self, replica: Replica, release: Release) -> None:
        self._replica = replica
        self._engine = replica.engines[release.version]
        self._release = release

    @property
    def version(self) -> int:
        """The bundle's number in the registry."""
        return self._release.version

    @property
    def models(self) -> list[str]:
        """What a request may name as its model."""
        return self._engine.models

    @property
    def collections(self) -> dict[str, CollectionRef]:
        """What can be searched: the bundle's collections, and those that were created."""
        return {**self._replica.created, **self._release.collections}

    def has(self, collections: Sequence[str]) -> bool:
        """Whether all of them can be searched."""
        return set(collections) <= self.collections.keys()

    def means_the_same(self, other: Service, collections: Iterable[str]) -> bool:
        """Whether these names, which both have, are of the same documents in the other release."""
        mine, theirs = self.collections, other.collections
        return all(mine[name].changes == theirs[name].changes for name in collections)

    @property
    def dimensions(self) -> tuple[int, ...]:
        """Lengths that a vector can have, its own first."""
        return self._engine.bundle.encoder.dimensions

    def cut(self, vector: Vectors, dimensions: int) -> Vectors:
        """A vector in one of these lengths."""
        return self._engine.bundle.encoder.cut(vector, dimensions)

    def tokens(self, texts: Sequence[str], model: str = ROUTED_MODEL) -> int:
        """About how many tokens will be read of all texts."""
        return sum(self._engine.costs(texts, model))

    async def embed(self, texts: Sequence[str], model: str, access: Access) -> list[Embedded]:
        """Route and embed queries; see ``Engine.embed``.

        Raises:
            WrongField: a text gets no vector.
        """
        embedded = await self._engine.embed(texts, model, access)
        _require_finite((one.vector for one in embedded), "input.{}".format)
        return embedded

    async def route(self, texts: Sequence[str], access: Access, collection: str | None = None) -> list[Route]:
        """Which experts would answer, and why; without queries of collections that a client may not read.

        Args:
            texts: the queries.
            access: who asks.
            collection: whose weight of words is told; None for that of a search in several.

        Raises:
            UnknownName: there is no such collection.
            WrongField: a text gets no vector.
            Overloaded: too many queries are waiting.
        """
        named = {} if collection is None else dict([await self._readable(collection, access)])
        explained = await self._engine.explain(texts, access)
        _require_finite((list(weights.values()) for weights, _ in explained), "input.{}".format)
        return [
            Route(
                expert=max(weights, key=weights.__getitem__),
                weights=weights,
                scores=why.scores,
                margin=why.margin,
                familiarity=why.familiarity,
                gate=why.familiarity,
                lexical_weight=self._lexical_weight(weights, named),
                nearest=[
                    Neighbour(**asdict(neighbour))
                    for neighbour in why.nearest
                    if access.reads(neighbour.dataset)
                ],
            )
            for weights, why in explained
        ]

    async def search(self, request: SearchRequest, access: Access) -> SearchResponse:
        """The best documents for a query, and who answered.

        Raises:
            UnknownName: there is no such collection or model.
            WrongField: something in the request does not fit.
            Overloaded: too many queries are waiting.
        """
        return await self._search(request, access, partial(self._replica.searches.find, access=access))

    async def shadow(
        self, request: SearchRequest, access: Access, response: SearchResponse, seconds: float
    ) -> None:
        """Perhaps have the challenger repeat a search that has been answered; returns at once."""
        challenger = self._replica.challenger()
        if challenger is not None and challenger.version != self.version:
            self._replica.shadows.offer(challenger, self._replica.busy, request, access, response, seconds)

    async def shadow_search(self, request: SearchRequest, access: Access) -> SearchResponse:
        """The same search; past the queue that users' searches wait in, and at no client's expense."""

        async def find(refs: Refs, mode: Mode, wanted: Wanted) -> Ranked:
            (found,) = await self._replica.index.find(refs, mode, [wanted])
            return found

        return await self._search(request, replace(access, client=""), find)

    async def _search(self, request: SearchRequest, access: Access, find: Find) -> SearchResponse:
        meant = await self._meant(request, access)
        plan = Plan(request, meant)
        (embedded,) = await self._engine.embed([request.query], request.model, access)
        _require_finite([embedded.vector], lambda _: "query")
        weight, floor = self._lexical_weight(embedded.weights, meant), self._engine.fusion.floor
        wanted = plan.wanted(embedded, weight, floor)
        found = await find(plan.refs, plan.mode, wanted)
        if request.highlight:  # texts may be long
            return await asyncio.to_thread(plan.answer, embedded, wanted, found)
        return plan.answer(embedded, wanted, found)

    def _lexical_weight(
        self, weights: Mapping[str, float], collections: Mapping[str, CollectionRef]
    ) -> float:
        """The weight of the words in a hybrid search; 0 where the only collection's are not indexed.

        Args:
            weights: of the experts for the query.
            collections: what is searched; none if that is not known.
        """
        if len(collections) != 1:
            return self._engine.lexical_weight(weights)
        ((name, ref),) = collections.items()
        if ref.lexical is None:
            return 0.0
        learned = ref.lexical_weight
        return self._engine.lexical_weight(weights, name) if learned is None else learned

    async def collection_states(self, access: Access) -> list[CollectionState]:
        """The collections that a client may read, those of the challenger's bundle too."""
        await self._replica.refresh()
        current, challenger = self._replica.current(), self._replica.challenger()
        found = {**(challenger.collections if challenger else {}), **current.collections}
        visible = [(name, ref) for name, ref in found.items() if access.reads(name)]
        return await asyncio.gather(*(self._state(name, ref, access) for name, ref in visible))

    async def collection_state(self, name: str, access: Access) -> CollectionState:
        """One of them."""
        return await self._state(*await self._readable(name, access), access)

    async def require_readable(self, name: str, access: Access) -> None:
        """Check that a collection is there for a client.

        Raises:
            UnknownName: it is not.
        """
        await self._readable(name, access)

    async def create(self, request: CollectionIn, access: Access) -> CollectionState:
        """Create a collection without documents.

        Raises:
            Forbidden: the client may not change a collection of this name.
            Refused: another has this name.
        """
        if not access.writes(request.name):
            raise Forbidden(f"name: this token may not create {request.name!r}")
        taken = Refused(f"name: there is a collection {request.name!r} already")
        taken.field = "name"
        lexical, passages = request.lexical, request.passages
        fingerprint = self._engine.bundle.manifest["encoder_fingerprint"]
        # Another one of this name, after this was deleted, must share nothing with it.
        unique = f"{request.name}-{uuid.uuid4().hex[:8]}"
        ref = CollectionRef(
            empty_corpus(self.dimensions[0]),
            changes_key(unique, fingerprint),
            None if lexical is None else LexicalSettings.model_validate(lexical.model_dump()),
            None if passages is None else PassageSettings.model_validate(passages.model_dump()),
            fingerprint,
        )
        if request.name in self._release.collections or not await self._replica.writer.create(
            request.name, ref, self.dimensions[0]
        ):
            raise taken
        await self._replica.refresh()
        return await self._state(request.name, ref, access)

    async def calibrate(self, name: str, queries: Sequence[JudgedQuery], access: Access) -> Calibrated:
        """Learn how much words count in a created collection; searches know it within a second.

        Raises:
            UnknownName: there is no such collection.
            Forbidden: the client may not change it.
            Refused: it belongs to the bundle, or its words are not indexed.
            WrongField: a document that is said to be relevant is not there, or a query gets no vector.
            NotFound: it was deleted meanwhile.
        """
        name, ref = await self._writable(name, access)
        if not ref.created_for:
            raise Refused(f"{name}: belongs to the bundle, which has learned its weight from dev queries")
        if ref.lexical is None:
            raise Refused(f"{name}: its words are not indexed, so they have no weight")
        index = self._replica.index
        await require_documents(index, ref, queries)
        embedded = await self._engine.embed([query.query for query in queries], ROUTED_MODEL, access)
        _require_finite((one.vector for one in embedded), "queries.{}.query".format)
        judged = [
            Judged(query.query, one.vector, frozenset(query.relevant))
            for query, one in zip(queries, embedded, strict=True)
        ]
        curves_QW = await measure_weights(index, ref, judged, self._engine.fusion.floor)
        weight = FusionWeights.fit({name: curves_QW}, self._engine.fusion).for_domain(name)
        if not await self._replica.writer.weigh(name, ref, weight):
            raise NotFound(f"collection: {name!r} has been deleted")
        await self._replica.refresh()
        means = dict(zip(map(str, GRID), curves_QW.mean(axis=0).tolist(), strict=True))
        return Calibrated(collection=name, queries=len(judged), lexical_weight=weight, ndcg_at_10=means)

    async def drop(self, name: str, access: Access) -> None:
        """Delete a created collection and its documents.

        Raises:
            UnknownName: there is no such collection.
            Forbidden: the client may not change it.
            Refused: it belongs to the bundle.
        """
        name, ref = await self._writable(name, access)
        if not ref.created_for:
            raise Refused(f"{name}: belongs to the bundle that is served; it goes with its domain")
        await self._replica.writer.drop(name, ref)
        await self._replica.refresh()

    async def upsert(
        self, collection: str, documents: list[Document], access: Access, allow: Callable[[int], None]
    ) -> ChangeResponse:
        """Add or replace documents of a collection.

        Args:
            collection: which.
            documents: whole, each id once.
            access: who asks.
            allow: told about how many tokens are read, once that is known.

        Raises:
            UnknownName: there is no such collection.
            Forbidden: the client may not change it.
            WrongField: they would be cut into too many passages, or one gets no vector.
            RateExceeded: by ``allow``.
        """
        name, ref = await self._writable(collection, access)
        most = self._replica.settings.limits.passages
        texts = await asyncio.to_thread(texts_of, documents, ref.passages, most)
        allow(self.tokens(texts.contents, DOCUMENT_MODEL))
        embedded = await self._engine.embed_documents(texts.contents, access)
        vectors = np.stack([one.vector for one in embedded])
        sizes = [1] * len(documents) if texts.passages is None else list(map(len, texts.passages))
        owners = np.repeat(np.arange(len(documents)), sizes)
        _require_finite(vectors, lambda row: f"documents.{owners[row]}", [documents[at].id for at in owners])
        number = await self._replica.writer.upsert(ref, documents, vectors, texts.passages)
        read = self._engine.bundle.encoder.limit(documents=True)
        return self._changed(name, number, **texts.told([one.truncated for one in embedded], read))

    async def delete(self, collection: str, ids: list[str], access: Access) -> ChangeResponse:
        """Delete documents of a collection."""
        name, ref = await self._writable(collection, access)
        return self._changed(name, await self._replica.writer.delete(ref, ids))

    async def document(self, collection: str, document_id: str, access: Access) -> StoredDocument:
        """One document, whole.

        Raises:
            UnknownName: there is no such collection.
            NotFound: it has no such document.
        """
        name, ref = await self._readable(collection, access)
        document = await self._replica.index.document(ref, document_id)
        if document is None:
            missing = NotFound(f"id: {name} has no document {document_id!r}")
            missing.field = "id"
            raise missing
        return document

    async def documents(
        self, collection: str, offset: int, limit: int, access: Access
    ) -> tuple[Contents, list[StoredDocument]]:
        """What a collection has, and a page of its documents, whole."""
        _, ref = await self._readable(collection, access)
        index = self._replica.index
        held, page = await asyncio.gather(index.contents(ref), index.documents(ref, offset, limit))
        return held, page

    async def state(self, access: Access) -> ServiceState:
        """What is served, by all replicas. Why a version was refused may name any collection."""
        state = ServiceState(**await self._replica.controller.state())
        state.feedback = self._replica.settings.feedback is not None
        if access.read is not None:
            state.refused = dict.fromkeys(state.refused, _WHY_NOT_TOLD)
            state.registry_error = state.registry_error and _WHY_NOT_TOLD
        return state

    async def experts(self) -> list[ExpertState]:
        """The experts, and how much of the traffic each gets."""
        return [ExpertState(**expert) for expert in await self._replica.controller.experts()]

    def _visible(self, access: Access) -> dict[str, CollectionRef]:
        return {name: ref for name, ref in self.collections.items() if access.reads(name)}

    async def _meant(self, request: SearchRequest, access: Access) -> dict[str, CollectionRef]:
        """The collections that a search means."""
        if request.collections is None:
            return dict([await self._readable(request.collection, access)])
        if request.collection is not None:
            raise WrongField("collections", "stands beside `collection`; name them all in one of the two")
        return dict([await self._readable(name, access, "collections") for name in request.collections])

    async def _readable(
        self, name: str | None, access: Access, field: str = "collection"
    ) -> tuple[str, CollectionRef]:
        """The collection named, or the only one. What a client may not read is not there for it."""
        visible = self._visible(access)
        if name is None and len(visible) == 1:
            (name,) = visible
        if name is not None and name not in self.collections:
            await self._replica.refresh()  # it may have been created a moment ago, by another replica
            visible = self._visible(access)
        if name is None or name not in visible:
            raise UnknownName(field, name, list(visible))
        return name, visible[name]

    async def _writable(self, name: str, access: Access) -> tuple[str, CollectionRef]:
        await self._replica.refresh()
        if not access.writes(name):
            await self._readable(name, access)
            raise Forbidden(f"collection: this token may not change {name!r}")
        if name not in self.collections:
            raise UnknownName("collection", name, list(self._visible(access)))
        return name, self.collections[name]

    async def _state(self, name: str, ref: CollectionRef, access: Access) -> CollectionState:
        held = await self._replica.index.contents(ref)
        return CollectionState(
            name=name,
            documents=held.documents,
            passage_count=None if ref.passages is None else held.rows,
            change=held.change,
            lexical=None if ref.lexical is None else LexicalOptions(**ref.lexical.model_dump()),
            passages=None if ref.passages is None else PassageOptions(**ref.passages.model_dump()),
            lexical_weight=ref.lexical_weight,
            examples=self._examples(name, ref),
            created=bool(ref.created_for),
            writable=access.writes(name),
        )

    def _examples(self, name: str, ref: CollectionRef) -> list[str]:
        if ref.created_for:  # another collection had this name when the bundle was made
            return []
        return self._engine.bundle.examples.get(name, [])[: self._replica.settings.example_queries]

    def _changed(self, name: str, number: int | None, **told: Any) -> ChangeResponse:
        if number is None:
            raise NotFound(f"collection: {name!r} has been deleted")
        seconds = self._replica.settings.refresh_seconds
        return ChangeResponse(change=number, searchable_within_seconds=seconds, **told)


def _require_finite(
    vectors: Iterable[Vectors | list[float]], field_of: Callable[[int], str], ids: Sequence[str] | None = None
) -> None:
    """Refuse what the encoder makes no numbers of, as fp16 may: JSON says null then, searches find anything.

    Raises:
        WrongField: by the field of the first such row, with its id if it has one.
    """
    for row, vector in enumerate(vectors):
        if not np.isfinite(vector).all():
            raise WrongField(
                field_of(row),
                f"{repr(ids[row]) if ids else 'it'} gets a vector that is not finite; change the text, or "
                "set encoder.dtype to bf16 or fp32 and release anew",
            )
