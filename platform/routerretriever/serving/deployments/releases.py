"""The release controller as a deployment, and how it validates bundles and runs experts.

One replica watches the registry. Ingress replicas ask it what to serve, so that a release changes no
application's arguments and restarts nothing.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus, ReplicaState

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.bundle.manifest import read_validation_queries
from routerretriever.bundle.model import RouterRetriever
from routerretriever.config.recipe import Recipe
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.errors import RegistryError, RouterRetrieverError, Unavailable
from routerretriever.hashing import content_hash
from routerretriever.serving.deployments.index import IndexShards
from routerretriever.serving.deployments.metrics import Metrics
from routerretriever.serving.deployments.sizes import sized
from routerretriever.serving.ports import DesiredState, Heartbeat, Rejection, ValidatedBundle
from routerretriever.serving.releases import ReleaseController

_STARTING_SECONDS = 900.0


@serve.deployment
class ReleaseControllerDeployment:
    """Watches the registry's aliases, and says what is to be served."""

    async def __init__(  # type: ignore[misc]  # Ray awaits constructors
        self, recipe: Recipe, store: ArtifactStore, indexes: Sequence[DeploymentHandle]
    ) -> None:
        """Make the released bundle ready; see ``ReleaseController.start``."""
        from routerretriever.registry.registry import Registry

        async def validated(version: int, stored: str | None) -> ValidatedBundle | Rejection:
            result: ValidatedBundle | Rejection = await ray.remote(num_cpus=0)(validate).remote(
                recipe, store, version, stored
            )
            return result

        self._controller = ReleaseController(
            recipe,
            Registry.of(recipe, store),
            store,
            IndexShards(indexes),
            ExpertApplications(recipe, store),
            validated,
            Metrics(),
        )
        await self._controller.start()
        self._follower = asyncio.create_task(self._controller.follow())

    async def desired(self, heartbeat: Heartbeat | None = None) -> DesiredState:
        """What is to be served."""
        return self._controller.desired(heartbeat)

    async def repair(self, version: int) -> None:
        """Have a served bundle's copy in storage checked, and fetched again if it is damaged."""
        await self._controller.repair(version)

    async def state(self) -> dict[str, Any]:
        """Fields of ``schemas.ServiceState``."""
        return await self._controller.state()

    async def experts(self) -> list[dict[str, Any]]:
        """Fields of ``schemas.ExpertState``."""
        return await self._controller.experts()


class ExpertApplications:
    """Experts as Serve applications of their own."""

    def __init__(self, recipe: Recipe, store: ArtifactStore) -> None:
        self._sizes = recipe.serving.expert
        self._engine = recipe.serving.engine
        self._store = store

    async def replicas(self) -> dict[str, dict[str, int]]:
        """Replicas by state of every expert's application, without those that are ending."""
        return await asyncio.to_thread(_expert_replicas)

    async def start(self, applications: dict[str, str], bundle: ValidatedBundle) -> Rejection | None:
        """Start applications (by expert) and wait until they run; gives the reason if one does not."""
        try:
            async with asyncio.timeout(_STARTING_SECONDS):
                await asyncio.to_thread(self._run, applications, bundle)
        except (RuntimeError, TimeoutError) as error:
            for application in applications.values():
                await self.stop(application)  # else it would be taken for a running one at the next attempt
            reason = f"experts {', '.join(applications)} did not start: {error or 'no room in time'}"
            return Rejection(reason, transient=True)
        return None

    async def stop(self, application: str) -> None:
        """Stop one."""
        await asyncio.to_thread(serve.delete, application, _blocking=False)

    def _run(self, applications: dict[str, str], bundle: ValidatedBundle) -> None:
        from ray.serve import RunTarget

        from routerretriever.serving.deployments.expert import Expert

        encoder = EncoderSettings.model_validate(bundle.manifest["encoder"])
        serve.run_many(
            [
                RunTarget(
                    sized(Expert, "expert", self._sizes).bind(
                        encoder, name, bundle.bundle_key, self._store, self._sizes, self._engine
                    ),
                    name=app,
                    route_prefix=None,
                )
                for name, app in applications.items()
            ]
        )


def _expert_replicas() -> dict[str, dict[str, int]]:
    return {
        name: {
            ReplicaState(state).value: number  # by its value already, whatever Ray's annotation says
            for deployment in application.deployments.values()
            for state, number in deployment.replica_states.items()
        }
        for name, application in serve.status().applications.items()
        if name.startswith("expert-") and application.status != ApplicationStatus.DELETING
    }


def validate(
    recipe: Recipe, store: ArtifactStore, version: int, stored: str | None = None
) -> ValidatedBundle | Rejection:
    """Check a registered bundle, put it into storage for the replicas, and embed its validation queries.

    Runs as a task of its own, whose memory goes with it. A copy in storage that is damaged is written anew.

    Args:
        recipe: where it is registered, and how it is served.
        store: where the replicas look for it.
        version: its number.
        stored: key of the copy in storage that stands for it while the registry is away; None if none does.
    """
    from routerretriever.registry.loading import fetch_bundle
    from routerretriever.registry.registry import tracking_uri

    uri = f"models:/{recipe.registry.name}/{version}"
    try:
        with tempfile.TemporaryDirectory(prefix="bundle-") as scratch:
            try:
                folder = fetch_bundle(uri, Path(scratch), tracking_uri(recipe.registry, store))
            except RegistryError:
                if stored is None:
                    raise
                folder = store.fetch(stored)
            bundle = RouterRetriever(folder)
            if recipe.serving.placement == "dedicated" and bundle.merge == "weights":
                return Rejection(
                    "it merges weights (routing.merge), which serving.placement 'dedicated' cannot serve; "
                    "register it with routing.merge: embeddings, or serve with placement 'shared'"
                )
            validation = {
                name: (queries, bundle.encode_queries([query.query for query in queries]))
                for name, queries in read_validation_queries(folder).items()
            }
            key = f"bundles/{content_hash(bundle.manifest)}"
            store_bundle(store, key, folder, version)
    except RouterRetrieverError as error:
        return Rejection(str(error), transient=isinstance(error, Unavailable))
    return ValidatedBundle(key, bundle.manifest, validation, bundle.encoder.dimension)


def store_bundle(store: ArtifactStore, key: str, folder: Path, version: int) -> None:
    """Put a bundle's files into storage, unless they lie there as they should."""
    if not store.verify(key):
        store.put_folder(key, folder)
        store.commit(key, {"kind": "bundle", "version": version})
