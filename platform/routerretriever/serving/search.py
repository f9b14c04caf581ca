"""Searches: what a request asks of the index, searches that arrive together, and what is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from routerretriever.client.schemas import Hit, SearchRequest, SearchResponse, Snippet
from routerretriever.config.serving import ServingSettings
from routerretriever.datasets.collection import Document
from routerretriever.errors import WrongField
from routerretriever.index.filters import Filter, parse_filter
from routerretriever.index.live import Found, Wanted
from routerretriever.index.settings import LexicalSettings
from routerretriever.index.snippets import snippet
from routerretriever.index.words import Analyzer
from routerretriever.serving.access import Access
from routerretriever.serving.batching import Batcher
from routerretriever.serving.engine import Embedded
from routerretriever.serving.ports import CollectionRef, IndexPort, MetricsPort
from routerretriever.types import Mode

Refs = tuple[CollectionRef, ...]
Ranked = list[tuple[int, Found]]
"""Documents, best first, each with its collection's position."""


class Searches:
    """Searches that arrive together; those of the same collections become one call of the index."""

    def __init__(self, index: IndexPort, settings: ServingSettings, metrics: MetricsPort) -> None:
        self._index = index
        self._metrics = metrics
        sizes = settings.router
        self._batcher: Batcher[tuple[Refs, Mode, Wanted], Ranked] = Batcher(
            self._run, sizes.max_batch_size, sizes.max_queue, passes=2
        )

    @property
    def waiting(self) -> int:
        """Searches that wait for the index."""
        return self._batcher.waiting

    async def find(self, collections: Refs, mode: Mode, wanted: Wanted, access: Access) -> Ranked:
        """The best documents, each with its collection's position."""
        (found,) = await self._batcher.submit(
            [(collections, mode, wanted)], client=access.client, weight=access.weight
        )
        return found

    async def _run(self, batch: list[tuple[Refs, Mode, Wanted]]) -> list[Ranked | BaseException]:
        found: list[Ranked | BaseException] = [[] for _ in batch]
        rows_of: dict[tuple[Refs, Mode], list[int]] = {}
        for row, (collections, mode, _) in enumerate(batch):
            rows_of.setdefault((collections, mode), []).append(row)
        with self._metrics.stage("search"):
            calls = (
                self._index.find(*what, [batch[row][2] for row in rows]) for what, rows in rows_of.items()
            )
            answers = await asyncio.gather(*calls, return_exceptions=True)
        for rows, answer in zip(rows_of.values(), answers, strict=True):
            for place, row in enumerate(rows):
                found[row] = answer if isinstance(answer, BaseException) else answer[place]
        return found


Find = Callable[[Refs, Mode, Wanted], Awaitable[Ranked]]


class Plan:
    """A request, checked, with the collections that it means."""

    def __init__(self, request: SearchRequest, collections: Mapping[str, CollectionRef]) -> None:
        """Check what the request's own types cannot.

        Raises:
            WrongField: the filter is none, words are asked for where none are indexed, or a weight or a kind
                of fusion where none is used; ``limit`` and ``top_k`` differ.
        """
        self.request = request
        self.names = list(collections)
        self.refs = tuple(collections.values())
        self.mode = self._mode(collections)
        self.filter: Filter | None = None if request.filter is None else parse_filter(request.filter)
        if "top_k" in request.model_fields_set and request.wanted != request.top_k:
            found = f"found {request.limit}, but top_k is {request.top_k}"
            raise WrongField("limit", f"{found}; both mean the same, so send one of them")
        if request.weight is not None and self.mode != "hybrid":
            raise WrongField("weight", f"is for mode 'hybrid'; this search is {self.mode!r}")
        if request.fusion == "rrf" and self.mode != "hybrid":
            raise WrongField("fusion", f"'rrf' is for mode 'hybrid'; this search is {self.mode!r}")
        if request.fusion == "rrf" and request.weight is not None:
            raise WrongField("weight", "reciprocal ranks have none; leave it out, or take fusion 'convex'")

    def _mode(self, collections: Mapping[str, CollectionRef]) -> Mode:
        without = [name for name, ref in collections.items() if ref.lexical is None]
        if self.request.mode is None:
            return "dense" if without else "hybrid"
        if without and self.request.mode != "dense":
            raise WrongField(
                "mode", f"found {self.request.mode!r}, but the words of {without[0]} are not indexed"
            )
        return self.request.mode

    @property
    def collection(self) -> str | None:
        """The collection that is searched, if it is a single one."""
        return self.names[0] if len(self.names) == 1 else None

    @property
    def is_weighted(self) -> bool:
        """Whether words have a weight in this search."""
        return self.mode == "hybrid" and self.request.fusion == "convex"

    def wanted(self, embedded: Embedded, lexical_weight: float, floor: float) -> Wanted:
        """What is asked of the index.

        Args:
            embedded: the query.
            lexical_weight: for it, where the request names none.
            floor: the least cosine that fusing reckons with.
        """
        request = self.request
        weight = lexical_weight if request.weight is None else request.weight
        depth = request.offset + request.wanted
        return Wanted(
            request.query,
            embedded.vector,
            depth,
            weight,
            self.filter,
            request.group_by_parent,
            request.fusion,
            floor,
        )

    def answer(self, embedded: Embedded, wanted: Wanted, found: Ranked) -> SearchResponse:
        """What is answered."""
        request, weights = self.request, embedded.weights
        least = -float("inf") if request.min_score is None else request.min_score
        kept = [each for each in found[request.offset :] if each[1].score >= least]
        return SearchResponse(
            collection=self.collection,
            expert=max(weights, key=weights.__getitem__),
            weights=weights,
            mode=self.mode,
            lexical_weight=wanted.weight if self.is_weighted else None,
            results=[self._hit(self.names[place], self.refs[place], hit) for place, hit in kept],
        )

    def _hit(self, name: str, ref: CollectionRef, found: Found) -> Hit:
        document, fields = found.document, self.request.fields
        return Hit(
            id=document.id,
            passage=found.passage,
            score=found.score,
            dense_score=found.cosine,
            lexical_score=found.bm25,
            title=document.title if fields is None or "title" in fields else "",
            text=document.text if fields is None or "text" in fields else "",
            metadata=_chosen(document, fields),
            collection=name,
            snippet=self._snippet(document, ref.lexical) if self.request.highlight else None,
        )

    def _snippet(self, document: Document, lexical: LexicalSettings | None) -> Snippet:
        part = snippet(document.text, self.request.query, Analyzer(lexical or LexicalSettings()))
        return Snippet(text=part.text, highlights=list(part.highlights))


def _chosen(document: Document, fields: Sequence[str] | None) -> dict[str, Any] | None:
    if fields is None or document.metadata is None:
        return document.metadata
    return {name: value for name, value in document.metadata.items() if name in fields}
