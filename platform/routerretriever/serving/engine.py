"""One loaded bundle at work: texts that arrive together are routed and embedded together.

With shared placement a batch is one pass in this process. With dedicated placement this process routes, and
every expert has a queue of its own: one that does not answer keeps nobody waiting but those who need it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from routerretriever.bundle.model import Dispatch, RouterRetriever
from routerretriever.config.serving import ReplicaSettings
from routerretriever.errors import Unavailable, UnknownName
from routerretriever.index.settings import FusionSettings
from routerretriever.routing.protocol import Explanation
from routerretriever.serving.access import Access
from routerretriever.serving.batching import Batcher
from routerretriever.serving.executor import SerialExecutor
from routerretriever.serving.ports import ExpertPort, MetricsPort
from routerretriever.types import BASE, DOCUMENT_MODEL, ROUTED_MODEL, Vectors

_BYTES_PER_TOKEN = 4
"""About what English has. Only shares and bounds depend on it; usage is counted by the tokenizer."""

_ANYBODY = Access()
_FUSION = FusionSettings()
_NO_VECTOR = np.empty(0, dtype=np.float32)

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Embedded:
    """One text's vector [d], who made it, how many tokens were read, and whether the text was longer."""

    vector: Vectors
    weights: dict[str, float]
    tokens: int
    truncated: bool = False


@dataclass(frozen=True)
class _Routed:
    """One text, tokenised and routed."""

    tokens: list[int]
    weights: Vectors
    """[T] over the engine's columns."""
    truncated: bool
    vector: Vectors
    """[d], or [0] where experts run in processes of their own and are yet to be asked."""


@dataclass(frozen=True)
class _Plan:
    """A batch, tokenised and routed."""

    rows: list[list[int]]
    truncated: list[bool]
    weights: Vectors
    """[B, T] over the engine's columns, of which the router's experts are the first."""
    routed: list[int]
    """Rows that the router was asked about."""
    documents: list[int]

    def routed_texts(self, vectors: Sequence[Vectors]) -> list[_Routed]:
        """Each text by itself."""
        return [_Routed(*each) for each in zip(self.rows, self.weights, self.truncated, vectors, strict=True)]


class VectorCache:
    """The most recent results by model and text, at most ``size`` of them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[tuple[str, str], Embedded] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, text: str, model: str) -> Embedded | None:
        """A result, if it is kept."""
        if (found := self._entries.get((model, text))) is not None:
            self._entries.move_to_end((model, text))
        return found

    def put(self, text: str, model: str, embedded: Embedded) -> None:
        """Keep a result; the one that was not asked for longest makes room."""
        if self._size:
            # A view would keep the vectors of its whole pass.
            self._entries[model, text] = replace(embedded, vector=embedded.vector.copy())
            if len(self._entries) > self._size:
                self._entries.popitem(last=False)


class Engine:
    """Embeds texts by one bundle."""

    def __init__(
        self,
        bundle: RouterRetriever,
        thread: SerialExecutor,
        experts: Mapping[str, ExpertPort] | None,
        sizes: ReplicaSettings,
        metrics: MetricsPort,
        cached_vectors: int = 0,
        fusion: FusionSettings = _FUSION,
        seconds: float = 30.0,
    ) -> None:
        """Put a bundle to work.

        Args:
            bundle: holds the experts too, unless they run in processes of their own.
            thread: the encoder's. Features that stop at a layer would stop other passes too.
            experts: the experts' processes, None with shared placement.
            sizes: bounds of batches and queue.
            metrics: where batches are counted.
            cached_vectors: query vectors to keep.
            fusion: how words are weighed where the bundle does not say.
            seconds: that an expert in a process of its own may take for a pass.
        """
        self.bundle = bundle
        self._thread = thread
        self._metrics = metrics
        self._seconds = seconds
        self._columns = list(dict.fromkeys([*bundle.router.experts, BASE, *bundle.experts]))

        def batcher(work: Callable[[list[T]], Awaitable[Sequence[R]]], passes: int = 1) -> Batcher[T, R]:
            return Batcher(
                work,
                sizes.max_batch_size,
                sizes.max_queue_tokens,
                passes,
                sizes.max_batch_tokens,
                sizes.bulk_pass_seconds,
            )

        self._dedicated = experts is not None
        self._router = batcher(self._route if self._dedicated else self._route_and_embed)
        self._explainer = batcher(self._explain)
        # While an expert embeds one batch elsewhere, the next can be on its way.
        self._experts = {
            name: batcher(partial(self._ask, expert), passes=2) for name, expert in (experts or {}).items()
        }
        if self._dedicated:
            self._experts[BASE] = batcher(self._embed_by_base)
        self.cache = VectorCache(cached_vectors)
        self.fusion = fusion if bundle.fusion is None else bundle.fusion.settings
        """How words are weighed where nothing else is known."""
        self._routed_T = np.zeros(len(bundle.router.experts))
        self._encodings_T = np.zeros(len(self._columns), dtype=np.int64)
        self._entropies: list[float] = []

    @property
    def models(self) -> list[str]:
        """What a request may name as its model."""
        return [ROUTED_MODEL, BASE, DOCUMENT_MODEL, *self.bundle.experts]

    async def embed(self, texts: Sequence[str], model: str, access: Access = _ANYBODY) -> list[Embedded]:
        """Route and embed queries, or embed them (or documents) by the one model named.

        Raises:
            UnknownName: there is no such model.
            Overloaded: too much is waiting.
        """
        if model not in self.models:
            raise UnknownName("model", model, self.models)
        found = [self.cache.get(text, model) for text in texts]
        missing = [row for row, kept in enumerate(found) if kept is None]
        self._count_lookups(len(texts) - len(missing), len(missing))
        new_texts = [texts[row] for row in missing]
        with self._waiting_told():
            routed = await self._router.submit(
                [(text, model) for text in new_texts],
                self.costs(new_texts, model),
                access.client,
                access.weight,
            )
            made = await self._embedded(routed, access)
        new = iter(made)
        if model != DOCUMENT_MODEL:
            for row, embedded in zip(missing, made, strict=True):
                self.cache.put(texts[row], model, embedded)
        return [next(new) if kept is None else kept for kept in found]

    @property
    def waiting(self) -> int:
        """Texts that wait for a pass."""
        return sum(batcher.waiting for batcher in self._batchers())

    def take_routed(self) -> dict[str, float]:
        """Sum of the weights of each expert over the queries routed since this was last asked.

        Metrics are told of them here, so that no pass waits for it.
        """
        taken_T, self._routed_T = self._routed_T, np.zeros_like(self._routed_T)
        encodings_T, self._encodings_T = self._encodings_T, np.zeros_like(self._encodings_T)
        entropies, self._entropies = self._entropies, []
        routed = dict(zip(self.bundle.router.experts, taken_T.tolist(), strict=True))
        for expert, weight in routed.items():
            if weight:
                self._metrics.expert_weight.inc(weight, {"expert": expert})
        for expert, count in zip(self._columns, encodings_T.tolist(), strict=True):
            if count:
                self._metrics.expert_queries.inc(count, {"expert": expert})
        for entropy in entropies:
            self._metrics.routing_entropy.observe(max(entropy, 1e-9))
        return routed

    @property
    def idle(self) -> bool:
        """Whether no query is being answered; until then it needs its experts."""
        return all(batcher.idle for batcher in self._batchers())

    async def explain(
        self, texts: Sequence[str], access: Access = _ANYBODY
    ) -> list[tuple[dict[str, float], Explanation]]:
        """Weights of all experts for each query, and the reasons.

        Raises:
            Overloaded: too much is waiting.
        """
        costs = self.costs(texts, ROUTED_MODEL)
        with self._waiting_told():
            return await self._explainer.submit(texts, costs, access.client, access.weight)

    def lexical_weight(self, weights: Mapping[str, float], collection: str | None = None) -> float:
        """The weight of the words in a hybrid search.

        Args:
            weights: of the experts for the query.
            collection: what is searched, if it is a single one.
        """
        if self.bundle.fusion is None:
            return self.fusion.prior
        weights_1T = np.array([[weights.get(name, 0.0) for name in self._columns]], dtype=np.float32)
        return float(self.bundle.fusion_weights(weights_1T, self._columns, collection)[0])

    async def embed_documents(self, contents: Sequence[str], access: Access = _ANYBODY) -> list[Embedded]:
        """Embed documents by the base."""
        return await self.embed(contents, DOCUMENT_MODEL, access)

    def costs(self, texts: Sequence[str], model: str) -> list[int]:
        """About how many tokens will be read of each text."""
        most = self.bundle.encoder.limit(model == DOCUMENT_MODEL)
        return [min(most, 2 + len(text.encode()) // _BYTES_PER_TOKEN) for text in texts]

    @contextmanager
    def _waiting_told(self) -> Iterator[None]:
        """Tell what still waits after a block, also if that fails or its client hangs up."""
        try:
            yield
        finally:
            self._metrics.waiting.set(self.waiting)
            self._metrics.waiting_tokens.set(sum(batcher.waiting_cost for batcher in self._batchers()))

    def _count_lookups(self, hits: int, misses: int) -> None:
        for outcome, count in (("hit", hits), ("miss", misses)):
            if count:
                self._metrics.cache_lookups.inc(count, {"outcome": outcome})

    def _batchers(self) -> list[Batcher[Any, Any]]:
        return [self._router, self._explainer, *self._experts.values()]

    async def _route(self, batch: list[tuple[str, str]]) -> list[_Routed]:
        plan = await self._thread.run(self._plan, batch)
        self._count(plan)
        return plan.routed_texts([_NO_VECTOR] * len(batch))

    async def _route_and_embed(self, batch: list[tuple[str, str]]) -> list[_Routed]:
        plan, vectors = await self._thread.run(self._embed_here, batch)
        self._count(plan)
        return plan.routed_texts(vectors)

    async def _embedded(self, routed: Sequence[_Routed], access: Access) -> list[Embedded]:
        vectors = [one.vector for one in routed]
        if self._dedicated and routed:
            vectors = await self._embed_there(routed, access)
        return [
            Embedded(
                vector,
                {self._columns[column]: float(one.weights[column]) for column in np.flatnonzero(one.weights)},
                len(one.tokens),
                one.truncated,
            )
            for one, vector in zip(routed, vectors, strict=True)
        ]

    def _embed_here(self, batch: list[tuple[str, str]]) -> tuple[_Plan, list[Vectors]]:
        plan = self._plan(batch)
        with self._metrics.stage("experts"):
            if not plan.documents:
                return plan, list(self.bundle.embed(plan.rows, plan.weights, self._columns))
            vectors = np.empty((len(plan.rows), self.bundle.encoder.dimension), dtype=np.float32)
            documents = [plan.rows[row] for row in plan.documents]
            vectors[plan.documents] = self.bundle.encoder.embed_tokens(documents)
            queries = sorted(set(range(len(plan.rows))) - set(plan.documents))
            if queries:
                rows = [plan.rows[row] for row in queries]
                vectors[queries] = self.bundle.embed(rows, plan.weights[queries], self._columns)
            return plan, list(vectors)

    async def _embed_there(self, routed: Sequence[_Routed], access: Access) -> list[Vectors]:
        shares = Dispatch.of(np.stack([one.weights for one in routed]))
        vectors = np.empty((len(shares.rows), self.bundle.encoder.dimension), dtype=np.float32)

        async def embed(column: int) -> None:
            own = shares.columns == column
            rows = [routed[row].tokens for row in shares.rows[own]]
            costs = [len(row) for row in rows]
            expert = self._experts[self._columns[column]]
            vectors[own] = await expert.submit(rows, costs, access.client, access.weight)

        await asyncio.gather(*(embed(column) for column in np.unique(shares.columns).tolist()))
        return list(shares.mix(vectors))

    async def _ask(self, expert: ExpertPort, rows: list[list[int]]) -> list[Vectors]:
        try:
            with self._metrics.stage("experts"):
                async with asyncio.timeout(self._seconds):
                    return list(await expert.embed(rows))
        except TimeoutError:
            raise Unavailable(f"an expert did not answer within {self._seconds:g} seconds") from None

    async def _embed_by_base(self, rows: list[list[int]]) -> list[Vectors]:
        with self._metrics.stage("experts"):
            return list(await self._thread.run(self.bundle.encoder.embed_tokens, rows))

    def _plan(self, batch: list[tuple[str, str]]) -> _Plan:
        with self._metrics.stage("tokenizer"):
            rows, truncated = self._tokenize(batch)
        with self._metrics.stage("routing"):
            weights = np.zeros((len(batch), len(self._columns)), dtype=np.float32)
            routed = [row for row, (_, model) in enumerate(batch) if model == ROUTED_MODEL]
            if routed:
                made = self.bundle.route([rows[row] for row in routed])
                weights[routed, : made.shape[1]] = made
            for row, (_, model) in enumerate(batch):
                if model != ROUTED_MODEL:
                    column = BASE if model == DOCUMENT_MODEL else model
                    weights[row, self._columns.index(column)] = 1.0
            documents = [row for row, (_, model) in enumerate(batch) if model == DOCUMENT_MODEL]
            return _Plan(rows, truncated, weights, routed, documents)

    def _tokenize(self, batch: list[tuple[str, str]]) -> tuple[list[list[int]], list[bool]]:
        """Token ids of queries and documents, and which texts were longer than what is read of them."""
        rows: list[list[int]] = [[] for _ in batch]
        truncated = [False] * len(batch)
        encoder = self.bundle.encoder
        for documents, tokenize in ((False, encoder.tokenize_queries), (True, encoder.tokenize_documents)):
            own = [row for row, (_, model) in enumerate(batch) if (model == DOCUMENT_MODEL) is documents]
            if not own:
                continue
            texts = [batch[row][0] for row in own]
            tokens = tokenize(texts)
            cut = encoder.are_cut(texts, tokens, documents)
            for row, ids, is_cut in zip(own, tokens, cut, strict=True):
                rows[row], truncated[row] = ids, is_cut
        return rows, truncated

    def _count(self, plan: _Plan) -> None:
        self._metrics.batch_size.observe(len(plan.rows))
        self._metrics.batch_tokens.observe(sum(map(len, plan.rows)))
        names = self.bundle.router.experts
        # One text that the encoder makes no numbers of must not make the sums none.
        weights_BT = np.nan_to_num(plan.weights[plan.routed, : len(names)])
        queries_BT = np.delete(plan.weights, plan.documents, axis=0)
        self._encodings_T += (queries_BT > 0).sum(axis=0)
        self._routed_T += weights_BT.sum(axis=0)
        self._entropies.extend((-weights_BT * np.log2(np.maximum(weights_BT, 1e-12))).sum(axis=1).tolist())
        if BASE in names and (left := int((weights_BT[:, names.index(BASE)] > 0.5).sum())):
            self._metrics.fallback_queries.inc(left)

    async def _explain(self, texts: list[str]) -> list[tuple[dict[str, float], Explanation]]:
        return await self._thread.run(self._explain_here, texts)

    def _explain_here(self, texts: list[str]) -> list[tuple[dict[str, float], Explanation]]:
        router = self.bundle.router
        features = self.bundle.features(self.bundle.tokenize(texts))
        return [
            (dict(zip(router.experts, weights.tolist(), strict=True)), explanation)
            for weights, explanation in zip(router.weights(features), router.explain(features), strict=True)
        ]
