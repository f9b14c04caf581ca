"""The real service in this process: HTTP, service, index and writer, around a bundle without an encoder."""

from __future__ import annotations

import asyncio
import json
import zlib
from types import SimpleNamespace
from typing import Any

import numpy as np
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.config.serving import LimitSettings, ServingSettings
from routerretriever.index.settings import IndexSettings
from routerretriever.routing.protocol import Explanation, Neighbour
from routerretriever.serving.deployments.index import Index, IndexShards
from routerretriever.serving.deployments.metrics import Metrics
from routerretriever.serving.deployments.writer import Writer, WriterClient
from routerretriever.serving.engine import Engine
from routerretriever.serving.executor import SerialExecutor
from routerretriever.serving.http.api import build_api
from routerretriever.serving.http.auth import Authenticator
from routerretriever.serving.ports import CollectionRef, DesiredState, Release
from routerretriever.serving.search import Searches
from routerretriever.serving.service import Replica
from routerretriever.serving.shadow import Shadows

from support.corpora import PLAIN, make_corpus
from support.service import caller


def local(actor: Any) -> Any:
    """An actor's methods as a deployment's handle offers them."""
    names = [name for name in dir(actor) if not name.startswith("_")]
    return SimpleNamespace(**{name: SimpleNamespace(remote=getattr(actor, name)) for name in names})


def open_shards(store: ArtifactStore, shards: int) -> IndexShards:
    """All shards of an index."""
    shard = Index.func_or_class
    return IndexShards([local(shard(IndexSettings(), store, 0, part, shards)) for part in range(shards)])


class WordsEncoder:
    """A text's vector [4] is made of its words."""

    dimension = 4
    dimensions = (4,)

    def limit(self, documents: bool) -> int:
        return 1000

    def tokenize_queries(self, texts: list[str]) -> list[list[int]]:
        return [[zlib.crc32(word.encode()) for word in text.split()] or [0] for text in texts]

    tokenize_documents = tokenize_queries

    def are_cut(self, texts: list[str], rows: list[list[int]], documents: bool) -> list[bool]:
        return [False] * len(texts)

    def embed_tokens(self, rows: list[list[int]]) -> np.ndarray:
        vectors = np.stack(
            [sum(np.random.default_rng(token).normal(size=4) for token in row) for row in rows]
        ).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class WordsBundle:
    """Routes every query to fruit and embeds it as the base does."""

    experts = ("fruit", "metal")
    fusion = None
    examples = {"fruit": ["what is a fig?", "which fruit has one stone?", "are figs sweet?", "a fourth"]}  # noqa: RUF012
    manifest = {"encoder_fingerprint": "abc", "features": "last"}  # noqa: RUF012

    def __init__(self) -> None:
        self.encoder = WordsEncoder()
        near = tuple(Neighbour(name, f"a query of {name}", 0.5) for name in self.experts)
        self.router = SimpleNamespace(
            experts=["fruit", "metal", "base"],
            weights=self.route,
            explain=lambda rows: [Explanation({}, 0.5, 0.5, near) for _ in rows],
        )

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        return self.encoder.tokenize_queries(texts)

    def features(self, rows: list[list[int]]) -> list[list[int]]:
        return rows

    def route(self, rows: list[list[int]]) -> np.ndarray:
        return np.tile(np.array([1.0, 0, 0], np.float32), (len(rows), 1))

    def embed(self, rows: list[list[int]], weights: np.ndarray, experts: list[str]) -> np.ndarray:
        return self.encoder.embed_tokens(rows)


class Controller:
    """What the release controller tells."""

    async def state(self) -> dict[str, Any]:
        return {
            "version": 1, "encoder": "words", "placement": "shared", "challenger": None,
            "challenger_share": 0, "shadow_share": 0, "routed_queries": 0, "drift": None,
            "refused": {2: "mean nDCG@10 on validation queries of fruit, metal is 0.1000"},
        }  # fmt: skip

    async def experts(self) -> list[dict[str, Any]]:
        return []


class WholeService:
    """A service with the collections fruit and metal; opened anew on the same folder, it is restarted."""

    def __init__(self, folder: Any, tokens: Any = None, shards: int = 2, **limits: Any) -> None:
        self.store = ArtifactStore.open(str(folder))
        refs = {}
        for seed, name in enumerate(("fruit", "metal")):
            if not self.store.exists(f"corpora/{name}"):
                make_corpus(folder, key=f"corpora/{name}", seed=seed)
            refs[name] = CollectionRef(f"corpora/{name}", f"changes/{name}", PLAIN)
        settings = ServingSettings(limits=LimitSettings(**limits), refresh_seconds=0)
        metrics, index = Metrics(), open_shards(self.store, shards)
        writer = WriterClient(local(Writer.func_or_class(self.store, 4, "tiny")))
        bundle: Any = WordsBundle()
        engine = Engine(bundle, SerialExecutor(), None, settings.router, metrics)
        self.replicas = [
            Replica(
                settings, index, writer, Controller(), Searches(index, settings, metrics),
                Shadows(0, 1, metrics), DesiredState(Release(1, "", refs, {}), None), {1: engine},
            )
            for _ in range(2)
        ]  # fmt: skip
        self._turn = 0
        self.app = build_api(self._next, settings, Authenticator(tokens or {}), metrics)

    def _next(self, collections: Any) -> Any:
        self._turn += 1  # as behind a proxy: never the same replica twice
        return self.replicas[self._turn % 2].service(collections)

    def heartbeat(self) -> None:
        """What happens in every replica once a second."""
        for replica in self.replicas:
            asyncio.run(replica.refresh())

    def ask(self, method: str, path: str, body: Any = None, token: str | None = None) -> Any:
        """An answer's status and JSON."""
        return self.ask_raw(method, path, "" if body is None else json.dumps(body), token)

    def ask_raw(self, method: str, path: str, content: str | bytes, token: str | None = None) -> Any:
        """The same, of a body as it is."""
        headers = {"Content-Type": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"

        async def once() -> Any:
            async with caller(self.app) as http:
                return await http.request(method, path, content=content, headers=headers)

        response = asyncio.run(once())
        return response.status_code, response.json() if "json" in response.headers["content-type"] else None
