"""One loaded bundle at work: queries that arrive together are routed and embedded together.

With packed placement a batch is one pass in this process. With experts as applications of their own, this
process routes and every expert that is needed gets its rows of the batch in a single call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ray.serve.handle import DeploymentHandle

from routerretriever.bundle.model import Dispatch, RouterRetriever, Vectors
from routerretriever.config.serving import ReplicaSettings
from routerretriever.errors import UnknownName
from routerretriever.routing.protocol import Explanation
from routerretriever.serving.batching import Batcher
from routerretriever.serving.deployments.calls import OneThread, ask
from routerretriever.serving.deployments.metrics import Metrics
from routerretriever.types import BASE, DOCUMENT_MODEL, ROUTED_MODEL

_DOCUMENTS_AT_ONCE = 4


@dataclass(frozen=True)
class Embedded:
    """One query's vector [d], who made it, and how many tokens were read."""

    vector: Vectors
    weights: dict[str, float]
    tokens: int


@dataclass(frozen=True)
class _Plan:
    """A batch, tokenised and routed."""

    rows: list[list[int]]
    weights: Vectors
    """[B, T] over the engine's columns, of which the router's experts are the first."""
    routed: list[int]
    """Rows that the router was asked about."""


class Engine:
    """Embeds queries by one bundle."""

    def __init__(
        self,
        bundle: RouterRetriever,
        thread: OneThread,
        experts: Mapping[str, DeploymentHandle] | None,
        sizes: ReplicaSettings,
        metrics: Metrics,
    ) -> None:
        """Put a bundle to work.

        Args:
            bundle: holds the experts too, unless they are applications of their own.
            thread: the encoder's. Features that stop at a layer would stop other passes too.
            experts: the experts' applications, None with packed placement.
            sizes: bounds of batches and queue.
            metrics: where batches are counted.
        """
        self.bundle = bundle
        self._thread = thread
        self._experts = experts
        self._metrics = metrics
        self._columns = list(dict.fromkeys([*bundle.router.experts, BASE, *bundle.experts]))
        # While experts embed one batch elsewhere, the next can be routed here.
        self._batcher = Batcher(
            self._run, sizes.max_batch_size, sizes.max_queue, passes=1 if experts is None else 4
        )
        self._routed_T = np.zeros(len(bundle.router.experts))
        self._encodings_T = np.zeros(len(self._columns), dtype=np.int64)
        self._entropies: list[float] = []

    @property
    def models(self) -> list[str]:
        """What a request may name as its model."""
        return [ROUTED_MODEL, BASE, DOCUMENT_MODEL, *self.bundle.experts]

    async def embed(self, texts: Sequence[str], model: str) -> list[Embedded]:
        """Route and embed queries, or embed them (or documents) by the one model named.

        Raises:
            UnknownName: there is no such model.
            Overloaded: too many queries are waiting.
        """
        if model not in self.models:
            raise UnknownName("model", model, self.models)
        if model == DOCUMENT_MODEL:
            return await self.embed_documents(texts)
        embedded = await self._batcher.submit([(text, model) for text in texts])
        self._metrics.waiting.set(self._batcher.waiting)
        return embedded

    @property
    def waiting(self) -> int:
        """Queries that wait for a pass."""
        return self._batcher.waiting

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

    async def drained(self) -> None:
        """Return when the last query is answered; until then it needs its experts."""
        while not self._batcher.idle:
            await asyncio.sleep(0.1)

    async def explain(self, texts: Sequence[str]) -> list[tuple[dict[str, float], Explanation]]:
        """Weights of all experts for each query, and the reasons."""
        return await self._thread.run(self._explain, texts)

    async def embed_documents(self, contents: Sequence[str]) -> list[Embedded]:
        """Embed documents by the base; a few at a time, so that queries get their turn between them."""
        embedded = []
        for start in range(0, len(contents), _DOCUMENTS_AT_ONCE):
            few = contents[start : start + _DOCUMENTS_AT_ONCE]
            embedded.extend(await self._thread.run(self._embed_documents, few))
        return embedded

    def _embed_documents(self, contents: Sequence[str]) -> list[Embedded]:
        encoder = self.bundle.encoder
        rows = encoder.tokenize_documents(contents)
        return [
            Embedded(vector, {BASE: 1.0}, len(row))
            for vector, row in zip(encoder.embed_tokens(rows), rows, strict=True)
        ]

    async def _run(self, batch: list[tuple[str, str]]) -> list[Embedded]:
        self._metrics.batch_size.observe(len(batch))
        if self._experts is None:
            plan, vectors = await self._thread.run(self._embed_here, batch)
        else:
            plan = await self._thread.run(self._plan, batch)
            with self._metrics.stage("experts"):
                vectors = await self._embed_there(plan, self._experts)
        self._count(plan)
        return [
            Embedded(
                vector,
                {self._columns[column]: float(own[column]) for column in np.flatnonzero(own)},
                len(tokens),
            )
            for vector, own, tokens in zip(vectors, plan.weights, plan.rows, strict=True)
        ]

    def _embed_here(self, batch: list[tuple[str, str]]) -> tuple[_Plan, Vectors]:
        plan = self._plan(batch)
        with self._metrics.stage("experts"):
            return plan, self.bundle.embed(plan.rows, plan.weights, self._columns)

    async def _embed_there(self, plan: _Plan, experts: Mapping[str, DeploymentHandle]) -> Vectors:
        shares = Dispatch.of(plan.weights)
        vectors = np.empty((len(shares.rows), self.bundle.encoder.dimension), dtype=np.float32)

        async def embed(column: int) -> None:
            own = shares.columns == column
            rows = [plan.rows[row] for row in shares.rows[own]]
            expert = self._columns[column]
            if expert == BASE:
                vectors[own] = await self._thread.run(self.bundle.encoder.embed_tokens, rows)
            else:
                vectors[own] = await ask(experts[expert].embed, rows)

        await asyncio.gather(*(embed(column) for column in np.unique(shares.columns).tolist()))
        return shares.mix(vectors)

    def _plan(self, batch: list[tuple[str, str]]) -> _Plan:
        with self._metrics.stage("routing"):
            rows = self.bundle.tokenize([text for text, _ in batch])
            weights = np.zeros((len(batch), len(self._columns)), dtype=np.float32)
            routed = [row for row, (_, model) in enumerate(batch) if model == ROUTED_MODEL]
            if routed:
                made = self.bundle.route([rows[row] for row in routed])
                weights[routed, : made.shape[1]] = made
            for row, (_, model) in enumerate(batch):
                if model != ROUTED_MODEL:
                    weights[row, self._columns.index(model)] = 1.0
            return _Plan(rows, weights, routed)

    def _count(self, plan: _Plan) -> None:
        names = self.bundle.router.experts
        weights_BT = plan.weights[plan.routed, : len(names)]
        self._encodings_T += (plan.weights > 0).sum(axis=0)
        self._routed_T += weights_BT.sum(axis=0)
        self._entropies.extend((-weights_BT * np.log2(np.maximum(weights_BT, 1e-12))).sum(axis=1).tolist())
        if BASE in names and (left := int((weights_BT[:, names.index(BASE)] > 0.5).sum())):
            self._metrics.fallback_queries.inc(left)

    def _explain(self, texts: Sequence[str]) -> list[tuple[dict[str, float], Explanation]]:
        router = self.bundle.router
        features = self.bundle.features(self.bundle.tokenize(texts))
        return [
            (dict(zip(router.experts, weights.tolist(), strict=True)), explanation)
            for weights, explanation in zip(router.weights(features), router.explain(features), strict=True)
        ]
