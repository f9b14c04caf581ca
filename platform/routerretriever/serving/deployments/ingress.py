"""The ingress deployment: takes HTTP requests and has the service answer them.

Each replica loads what the release controller desires, beside what it serves, and then switches.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.bundle.model import RouterRetriever
from routerretriever.config.recipe import Recipe
from routerretriever.datasets.feedback import FeedbackLog
from routerretriever.errors import ArtifactDamaged, ArtifactMissing
from routerretriever.serving.deployments.calls import call_with_retry
from routerretriever.serving.deployments.expert import ExpertClient
from routerretriever.serving.deployments.index import IndexShards
from routerretriever.serving.deployments.metrics import Metrics
from routerretriever.serving.deployments.sizes import replica_id
from routerretriever.serving.deployments.writer import WriterClient
from routerretriever.serving.engine import Engine
from routerretriever.serving.executor import SerialExecutor
from routerretriever.serving.http.api import build_api
from routerretriever.serving.http.auth import Authenticator, Token
from routerretriever.serving.ports import DesiredState, Heartbeat, Release
from routerretriever.serving.search import Searches
from routerretriever.serving.service import Replica
from routerretriever.serving.shadow import Shadows

if TYPE_CHECKING:
    from routerretriever.adapters.tower import QueryTower

log = logging.getLogger("ray.serve")

_HEARTBEAT_SECONDS = 1.0


class ControllerClient:
    """The release controller's deployment as a ``ControllerPort``."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def state(self) -> dict[str, Any]:
        """Fields of ``schemas.ServiceState``."""
        state: dict[str, Any] = await call_with_retry(self._handle.state)
        return state

    async def experts(self) -> list[dict[str, Any]]:
        """Fields of ``schemas.ExpertState``."""
        experts: list[dict[str, Any]] = await call_with_retry(self._handle.experts)
        return experts


@serve.deployment
@serve.ingress()
class Ingress:
    """A replica of the HTTP API with everything but the index."""

    async def __init__(  # type: ignore[misc]  # Ray awaits constructors
        self,
        recipe: Recipe,
        tokens: dict[str, Token],
        store: ArtifactStore,
        controller: DeploymentHandle,
        shards: Sequence[DeploymentHandle],
        writer: DeploymentHandle,
    ) -> None:
        """Load what is to be served and run it once, so that the first query finds it warm."""
        settings = recipe.serving
        self._recipe, self._store, self._controller = recipe, store, controller
        self._metrics = Metrics()
        self._authenticator = Authenticator(tokens, settings.allow_anonymous)
        self._thread = SerialExecutor()
        self._encoder: QueryTower | None = None
        index = IndexShards(shards)
        desired: DesiredState = await call_with_retry(controller.desired)
        self._replica = Replica(
            settings,
            index,
            WriterClient(writer),
            ControllerClient(controller),
            Searches(index, settings, self._metrics),
            Shadows(settings.releases.shadow_share, settings.limits.seconds, self._metrics),
            desired,
        )
        self._authenticator.replicas = desired.replicas
        await self._reconcile(desired)
        await self._replica.refresh()
        self._follower = asyncio.create_task(self._follow())
        self._refresher = asyncio.create_task(self._refresh())

    def __serve_build_asgi_app__(self) -> Any:
        """Ray's name for what makes the application once the constructor is done."""
        return build_api(
            self._replica.service, self._recipe.serving, self._authenticator, self._metrics,
            FeedbackLog(self._store.files),
        )  # fmt: skip

    async def _follow(self) -> None:
        """Tell the controller every second what is loaded, whatever else takes long.

        A replica that says nothing is forgotten, and experts that it still needs are stopped.
        """
        following: asyncio.Task[None] | None = None
        while True:
            await asyncio.sleep(_HEARTBEAT_SECONDS)
            try:
                desired = await self._controller.desired.remote(self._heartbeat())
                self._authenticator.replicas = desired.replicas
                if following is None or following.done():
                    following = asyncio.create_task(self._take_over(desired))
            except Exception:
                # What is loaded goes on serving while the controller is replaced.
                log.exception("could not learn what is to be served; asking again")

    async def _refresh(self) -> None:
        """Learn every second which collections there are, however long releases and the controller take."""
        while True:
            await asyncio.sleep(_HEARTBEAT_SECONDS)
            try:
                await self._replica.refresh()
            except Exception:
                log.exception("could not learn which collections were created; asking again")

    async def _take_over(self, desired: DesiredState) -> None:
        try:
            await self._reconcile(desired)
        except Exception:
            # What is loaded goes on serving.
            log.exception("could not take over what is to be served; trying again")

    async def _reconcile(self, desired: DesiredState) -> None:
        """Load what is new beside what is there, switch, and let go of what is old and idle.

        What is released does not wait for what is only tried, which may be slow to load or fail to.
        """
        engines, challenger = self._replica.engines, desired.challenger
        if desired.current.version not in engines:
            engines[desired.current.version] = await self._load(desired.current)
        if challenger is not None and challenger.version not in engines:
            self._replica.desired = replace(desired, challenger=None)
            engines[challenger.version] = await self._load(challenger)
        self._replica.desired = desired
        wanted = {release.version for release in (desired.current, challenger) if release}
        for version in engines.keys() - wanted:
            if engines[version].idle:  # else the next time: a roll-back must not wait for its last query
                del engines[version]

    async def _load(self, release: Release) -> Engine:
        settings = self._recipe.serving
        shared = settings.placement == "shared"

        def load() -> RouterRetriever:
            folder = self._store.fetch(release.bundle_key)
            return RouterRetriever(folder, self._encoder, shared, settings.engine)

        try:
            bundle = await asyncio.to_thread(load)
        except (ArtifactDamaged, ArtifactMissing) as error:
            log.warning("version %d: %s; fetching it from the registry again", release.version, error)
            await call_with_retry(self._controller.repair, release.version)
            bundle = await asyncio.to_thread(load)
        self._encoder = bundle.encoder  # later bundles share it
        experts = None
        if not shared:
            experts = {name: ExpertClient(serve.get_app_handle(app)) for name, app in release.experts.items()}
        engine = Engine(
            bundle,
            self._thread,
            experts,
            settings.router,
            self._metrics,
            settings.cached_vectors,
            self._recipe.corpus.fusion,
            settings.limits.seconds,
        )
        await engine.explain(["warm up"])
        if shared:
            await engine.embed(["warm up"], bundle.experts[0])
        return engine

    def _heartbeat(self) -> Heartbeat:
        engines = self._replica.engines
        weights = {version: engine.take_routed() for version, engine in engines.items()}
        return Heartbeat(replica_id(), tuple(engines), weights)
