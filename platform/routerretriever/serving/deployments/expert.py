"""An expert as an application of its own: its own replicas, bounds and share of a GPU."""

from __future__ import annotations

import numpy as np
from ray import serve
from ray.serve.handle import DeploymentHandle

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.bundle.manifest import expert_folder
from routerretriever.config.serving import ReplicaSettings
from routerretriever.encoder.settings import EncoderSettings, EngineSettings
from routerretriever.serving.batching import Batcher
from routerretriever.serving.deployments.calls import call_with_retry
from routerretriever.serving.executor import SerialExecutor
from routerretriever.types import Vectors


@serve.deployment
class Expert:
    """One expert's query tower, its adapter folded into the weights."""

    def __init__(
        self,
        encoder: EncoderSettings,
        name: str,
        bundle_key: str,
        store: ArtifactStore,
        sizes: ReplicaSettings,
        engine: EngineSettings,
    ) -> None:
        """Load the expert, and run it once, so that it is warm before it is asked.

        Args:
            encoder: the base.
            name: the expert's name.
            bundle_key: a bundle in storage that holds it.
            store: where bundles lie; every node reaches it.
            sizes: bounds of batches and queue.
            engine: what runs it.
        """
        from routerretriever.adapters.kinds import merge_adapter
        from routerretriever.adapters.tower import load_tower

        self._encoder = load_tower(encoder)
        merge_adapter(self._encoder, name, expert_folder(store.fetch(bundle_key), name))
        self._encoder.use(engine)
        self._encoder.encode_queries(["warm up"])
        self._thread = SerialExecutor()
        self._batcher: Batcher[list[int], Vectors] = Batcher(
            self._run,
            sizes.max_batch_size,
            sizes.max_queue_tokens,
            max_cost=sizes.max_batch_tokens,
            bulk_seconds=sizes.bulk_pass_seconds,
        )

    async def embed(self, rows: list[list[int]]) -> Vectors:
        """Vectors [B, d] of tokenised queries; calls that arrive together share a pass."""
        return np.stack(await self._batcher.submit(rows, [len(row) for row in rows]))

    async def _run(self, rows: list[list[int]]) -> list[Vectors]:
        return list(await self._thread.run(self._encoder.embed_tokens, rows))


class ExpertClient:
    """An expert's deployment as an ``ExpertPort``."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def embed(self, rows: list[list[int]]) -> Vectors:
        """Vectors [B, d] of tokenised queries."""
        vectors: Vectors = await call_with_retry(self._handle.embed, rows)
        return vectors
