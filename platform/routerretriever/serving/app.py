"""The Serve application: router -> experts -> index.

Each expert is a deployment of its own, so that each has its own replicas, bounds and share of a GPU. The
index deployment holds the collections' FAISS indexes; documents are the base encoder's, whatever the
expert. ``build`` is what ``serve run`` and the command line both call.
"""

import asyncio
import base64
import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException
from numpy.typing import NDArray
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from routerretriever.config import (
    BASE,
    EncoderSettings,
    IndexSettings,
    Recipe,
    ReplicaSettings,
    content_hash,
    load_recipe,
)
from routerretriever.serving.schemas import (
    ROUTED_MODEL,
    Embedding,
    EmbeddingsRequest,
    EmbeddingsResponse,
    ExpertState,
    Hit,
    Route,
    RouteRequest,
    RouteResponse,
    SearchRequest,
    SearchResponse,
    Usage,
)
from routerretriever.storage import ArtifactStore

Vectors = NDArray[np.float32]
api = FastAPI(title="RouterRetriever", version="1")


def build(args: dict[str, Any]) -> Application:
    """Build the application for a recipe's released bundle.

    Args:
        args: ``recipe``, the path of a recipe file; ``set``, an optional list of ``key=value`` overrides.
    """
    from routerretriever.pipeline import Pipeline

    return build_application(Pipeline(load_recipe(args["recipe"], args.get("set"))))


def build_application(pipeline: Any) -> Application:
    """Bind the deployments of a pipeline's released bundle.

    Raises:
        LookupError: nothing has been registered yet, or a collection is not encoded.
    """
    from routerretriever.corpus import corpus_key, open_corpus
    from routerretriever.registry.bundle import read_manifest
    from routerretriever.registry.mlflow_registry import bundle_uri, fetch_bundle, tracking_uri

    recipe: Recipe = pipeline.recipe
    store: ArtifactStore = pipeline.store
    folder = fetch_bundle(bundle_uri(recipe), tracking_uri(recipe, store))
    manifest = read_manifest(folder)
    served = recipe.serving.collections or tuple(recipe.domains)
    encoder = EncoderSettings.model_validate(manifest["encoder"])
    corpora = {name: corpus_key(pipeline.collections[name], encoder) for name in served}
    for key in corpora.values():
        open_corpus(store, key)
    # Replicas read the bundle from storage, which every node reaches, not from this process's disk.
    bundle_key = _store_bundle(store, folder, manifest)
    experts = {
        expert["name"]: _sized(Expert, f"expert-{expert['name']}", recipe.serving.expert).bind(
            encoder, expert["name"], f"experts/{expert['name']}", bundle_key, store
        )
        for expert in manifest["experts"]
    }
    index = _sized(Index, "index", recipe.serving.index).bind(corpora, recipe.corpus.index, store)
    return _sized(Router, "router", recipe.serving.router).bind(
        bundle_key, store, experts, index, list(served)
    )


def _store_bundle(store: ArtifactStore, folder: Path, manifest: dict[str, Any]) -> str:
    key = f"bundles/{content_hash(manifest)}"
    if not store.exists(key):
        store.put_folder(key, folder)
        store.commit(key, {"kind": "bundle"})
    return key


def _sized(deployment: Any, name: str, replicas: ReplicaSettings) -> Any:
    return deployment.options(
        name=name,
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        autoscaling_config={
            "min_replicas": replicas.min_replicas,
            "max_replicas": replicas.max_replicas,
            "target_ongoing_requests": replicas.target_ongoing_requests,
        },
        max_queued_requests=replicas.max_queued_requests,
        user_config={
            "max_batch_size": replicas.max_batch_size,
            "batch_wait_seconds": replicas.batch_wait_seconds,
        },
    )


@serve.deployment(max_ongoing_requests=64)
class Expert:
    """One expert's query tower, its adapter folded into the weights."""

    def __init__(
        self, encoder: EncoderSettings, name: str, folder: str, bundle_key: str, store: ArtifactStore
    ) -> None:
        from routerretriever.encoder import load_encoder

        self._encoder = load_encoder(encoder)
        self._encoder.load_adapter(name, store.fetch(bundle_key) / folder)
        self._encoder.merge_adapter(name)
        self._encoder.encode_queries(["warm up"])

    def reconfigure(self, config: dict[str, Any]) -> None:
        """Take new batching bounds without a restart."""
        self.encode.set_max_batch_size(config["max_batch_size"])
        self.encode.set_batch_wait_timeout_s(config["batch_wait_seconds"])

    @serve.batch
    async def encode(self, texts: list[str]) -> list[Vectors]:
        """One vector [d] per query; calls that arrive together share a pass."""
        return list(await asyncio.to_thread(self._encoder.encode_queries, texts))


@serve.deployment(max_ongoing_requests=64)
class Index:
    """The FAISS indexes of all collections that are served."""

    def __init__(self, corpora: dict[str, str], settings: IndexSettings, store: ArtifactStore) -> None:
        from routerretriever.corpus import open_corpus, open_index

        self._corpora = {name: open_corpus(store, key) for name, key in corpora.items()}
        self._indexes = {name: open_index(corpus, settings, store) for name, corpus in self._corpora.items()}

    def reconfigure(self, config: dict[str, Any]) -> None:
        """Take new batching bounds without a restart."""
        self.search.set_max_batch_size(config["max_batch_size"])
        self.search.set_batch_wait_timeout_s(config["batch_wait_seconds"])

    @serve.batch
    async def search(
        self, collections: list[str], queries: list[Vectors], top_k: list[int]
    ) -> list[list[Hit]]:
        """The best documents of each query's collection; queries to one collection share a search."""
        found: list[list[Hit]] = [[] for _ in queries]
        for name in set(collections):
            rows = [row for row, collection in enumerate(collections) if collection == name]
            depth = max(top_k[row] for row in rows)
            scores, documents = await asyncio.to_thread(
                self._indexes[name].search, np.stack([queries[row] for row in rows]), depth
            )
            for row, hit_scores, hit_rows in zip(rows, scores, documents, strict=True):
                hits = [
                    (self._indexes[name].ids[hit], float(score))
                    for hit, score in zip(hit_rows[: top_k[row]], hit_scores[: top_k[row]], strict=True)
                    if hit >= 0
                ]
                texts = self._corpora[name].documents([document_id for document_id, _ in hits])
                found[row] = [
                    Hit(id=i, score=score, title=texts[i].title, text=texts[i].text) for i, score in hits
                ]
        return found


# Above the class: Serve pickles the ingress class where it is defined, with what is known by then.


def _encoded(vector: Vectors, encoding: str) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()


@serve.deployment(max_ongoing_requests=128)
@serve.ingress(api)
class Router:
    """Routes each query, has it embedded by the experts that matter, and searches."""

    def __init__(
        self,
        bundle_key: str,
        store: ArtifactStore,
        experts: dict[str, DeploymentHandle],
        index: DeploymentHandle,
        collections: list[str],
    ) -> None:
        from routerretriever.encoder import load_encoder
        from routerretriever.registry.bundle import read_manifest
        from routerretriever.routing import load_router

        folder = store.fetch(bundle_key)
        self._manifest = read_manifest(folder)
        self._router = load_router(folder / "router")
        self._encoder = load_encoder(EncoderSettings.model_validate(self._manifest["encoder"]))
        self._encoder.routing_features(["warm up"], self._manifest["features"])
        self._encoder_thread = ThreadPoolExecutor(max_workers=1)
        self._experts = experts
        self._index = index
        self._collections = collections

    def reconfigure(self, config: dict[str, Any]) -> None:
        """Take new batching bounds without a restart."""
        for method in (self._features, self._base_vectors):
            method.set_max_batch_size(config["max_batch_size"])
            method.set_batch_wait_timeout_s(config["batch_wait_seconds"])

    @api.post("/v1/search")
    async def search(self, request: SearchRequest) -> SearchResponse:
        """Route one query, embed it by the chosen expert or mixture, and search a collection."""
        collection = self._pick_collection(request.collection)
        weights, vector = await self._embed(request.query, request.model)
        results = await self._index.search.remote(collection, vector, request.top_k)
        expert = max(weights, key=lambda name: weights[name])
        return SearchResponse(collection=collection, expert=expert, weights=weights, results=results)

    @api.post("/v1/embeddings")
    async def embeddings(self, request: EmbeddingsRequest) -> EmbeddingsResponse:
        """Embed queries, routed or by a named expert. Compatible with OpenAI's clients."""
        texts = [request.input] if isinstance(request.input, str) else request.input
        embedded = await asyncio.gather(*(self._embed(text, request.model) for text in texts))
        tokens = sum(len(row) for row in await self._in_turn(self._encoder.tokenize_queries, texts))
        data = [
            Embedding(index=row, embedding=_encoded(vector, request.encoding_format))
            for row, (_, vector) in enumerate(embedded)
        ]
        usage = Usage(prompt_tokens=tokens, total_tokens=tokens)
        return EmbeddingsResponse(data=data, model=request.model, usage=usage)

    @api.post("/v1/route")
    async def route(self, request: RouteRequest) -> RouteResponse:
        """Say which experts would answer, and how sure the router is."""
        texts = [request.input] if isinstance(request.input, str) else request.input
        features_Bd = np.stack(await asyncio.gather(*(self._features(text) for text in texts)))
        names = self._router.experts
        weights_BT = self._router.weights(features_Bd)
        routes = [
            Route(
                expert=names[int(weights_T.argmax())],
                weights=dict(zip(names, weights_T.tolist(), strict=True)),
                **dataclasses.asdict(explanation),
            )
            for weights_T, explanation in zip(weights_BT, self._router.explain(features_Bd), strict=True)
        ]
        return RouteResponse(data=routes)

    @api.get("/v1/experts")
    async def experts(self) -> list[ExpertState]:
        """The experts of the bundle that is being served."""
        return [
            ExpertState(name=e["name"], version=e["version"], registered_version=e["registered_version"])
            for e in self._manifest["experts"]
        ]

    @api.get("/v1/collections")
    async def collections(self) -> list[str]:
        """The collections that can be searched."""
        return self._collections

    @api.get("/healthz")
    async def health(self) -> dict[str, str]:
        """Whether this replica can answer."""
        return {"status": "ok"}

    def _pick_collection(self, wanted: str | None) -> str:
        if wanted is None and len(self._collections) == 1:
            return self._collections[0]
        if wanted not in self._collections:
            found = "none was named" if wanted is None else f"found {wanted!r}"
            raise HTTPException(404, f"collection: {found}; there are {', '.join(self._collections)}")
        return wanted

    async def _embed(self, text: str, model: str) -> tuple[dict[str, float], Vectors]:
        """The weights that were used, and the query's vector [d]."""
        if model == BASE:
            return {BASE: 1.0}, await self._base_vectors(text)
        if model in self._experts:
            return {model: 1.0}, await self._experts[model].encode.remote(text)
        if model != ROUTED_MODEL:
            known = ", ".join([ROUTED_MODEL, BASE, *self._experts])
            raise HTTPException(404, f"model: found {model!r}; there are {known}")
        features_d = await self._features(text)
        weights_T = self._router.weights(features_d[None])[0]
        chosen = [
            (name, float(weight))
            for name, weight in zip(self._router.experts, weights_T, strict=True)
            if weight
        ]
        vectors = await asyncio.gather(*(self._embed(text, name) for name, _ in chosen))
        mixed: Vectors = np.sum([w * v for (_, w), (_, v) in zip(chosen, vectors, strict=True)], axis=0)
        return dict(chosen), mixed.astype(np.float32)

    @serve.batch
    async def _features(self, texts: list[str]) -> list[Vectors]:
        return list(await self._in_turn(self._encoder.routing_features, texts, self._manifest["features"]))

    @serve.batch
    async def _base_vectors(self, texts: list[str]) -> list[Vectors]:
        return list(await self._in_turn(self._encoder.encode_queries, texts))

    async def _in_turn(self, work: Callable[..., Any], *args: Any) -> Any:
        # The encoder is not thread-safe: features that stop at a layer would stop other passes too.
        return await asyncio.get_running_loop().run_in_executor(self._encoder_thread, work, *args)
