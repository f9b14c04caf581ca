"""Following the registry: a released bundle is vetted, made ready beside the present one, then switched to.

One replica of this deployment watches the alias. Router replicas ask it what to serve, so that a release
changes no application's arguments and restarts nothing. A bundle that is damaged, made for another base, or
worse on its own canary queries is refused, and the present one goes on serving.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaState

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.bundle.manifest import ValidationQuery, read_validation_queries
from routerretriever.bundle.model import RouterRetriever, Vectors
from routerretriever.config.recipe import Recipe
from routerretriever.config.serving import ReplicaSettings
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.errors import ArtifactMissing, BundleError, RouterRetrieverError
from routerretriever.hashing import content_hash
from routerretriever.measures import measure
from routerretriever.serving.deployments.index import Place, search_parts
from routerretriever.serving.deployments.metrics import Metrics

log = logging.getLogger("ray.serve")

_CANARY_DEPTH = 10
_STARTING_SECONDS = 900.0
_DRIFT_QUERIES = 100
"""Fewer say nothing: the first query alone is far from any mixture."""
_FORGOTTEN_SECONDS = 20.0
"""A router replica that has not asked for so long is gone."""


@dataclass(frozen=True)
class Release:
    """A bundle that may be served."""

    version: int
    bundle_key: str
    places: dict[str, Place]
    """Its collections."""
    experts: dict[str, str]
    """The application of each expert; none with packed placement."""


@dataclass(frozen=True)
class Orders:
    """What every router replica is to serve."""

    current: Release
    challenger: Release | None


@dataclass(frozen=True)
class Report:
    """What a router replica serves, and what it has routed since its last report."""

    replica: str
    versions: tuple[int, ...]
    weights: dict[int, dict[str, float]]
    """Sum of the weights of each expert, by bundle version."""


@dataclass(frozen=True)
class Vetted:
    """A bundle that is whole and fits its base, with the canary queries' vectors."""

    bundle_key: str
    manifest: dict[str, Any]
    canary: dict[str, tuple[list[ValidationQuery], Vectors]]
    dimension: int


@dataclass
class _Candidate:
    release: Release
    vetted: Vetted
    weights: Counter[str] = field(default_factory=Counter)
    """Sum of the weights given to each expert, over all replicas."""


@serve.deployment
class Releases:
    """Watches the registry's alias, and says what is to be served."""

    async def __init__(  # type: ignore[misc]  # Ray awaits constructors
        self, recipe: Recipe, store: ArtifactStore, indexes: Sequence[DeploymentHandle]
    ) -> None:
        """Make the released bundle ready; if it is refused, the last one that was served.

        Raises:
            BundleError: neither can be served.
        """
        from routerretriever.registry.registry import Registry

        self._recipe = recipe
        self._settings = recipe.serving.releases
        self._store = store
        self._indexes = indexes
        self._metrics = Metrics()
        self._registry = Registry(recipe.registry, store, recipe.serving.releases.challenger_alias)
        self._refused: dict[int, str] = {}
        self._seen: dict[str, tuple[float, tuple[int, ...]]] = {}
        self._leaving: dict[str, float] = {}
        self._challenger: _Candidate | None = None
        self._current = await self._first()
        self._follower = asyncio.create_task(self._follow())

    async def orders(self, report: Report | None = None) -> Orders:
        """What is to be served; router replicas ask every second and report on the way."""
        if report is not None:
            self._seen[report.replica] = (time.monotonic(), report.versions)
            for candidate in self._candidates():
                candidate.weights.update(report.weights.get(candidate.release.version, {}))
        return Orders(self._current.release, self._challenger.release if self._challenger else None)

    async def state(self) -> dict[str, Any]:
        """What is served and was refused; fields of ``schemas.ServiceState``."""
        current = self._current
        return {
            "version": current.release.version,
            "encoder": current.vetted.manifest["encoder"]["name"],
            "placement": self._recipe.serving.placement,
            "challenger": self._challenger.release.version if self._challenger else None,
            "challenger_share": self._settings.challenger_share,
            "shadow_share": self._settings.shadow_share,
            "routed_queries": round(current.weights.total()),
            "drift": self._drift(),
            "refused": self._refused,
        }

    async def experts(self) -> list[dict[str, Any]]:
        """The experts that are served; fields of ``schemas.ExpertState``."""
        manifest, weights = self._current.vetted.manifest, self._current.weights
        total = weights.total()
        apps = self._current.release.experts
        replicas = await asyncio.to_thread(_experts_replicas) if apps else {}
        return [
            {
                **expert,
                "expected_share": manifest["shares"].get(expert["name"], 0.0),
                "live_share": weights[expert["name"]] / total if total else None,
                "replicas": replicas.get(apps[expert["name"]], {}) if apps else None,
            }
            for expert in manifest["experts"]
        ]

    async def _first(self) -> _Candidate:
        released = await asyncio.to_thread(self._registry.released)
        last = self._store.read_pointer(self._last_served)
        for version in dict.fromkeys([released, int(last["version"]) if last else None]):
            candidate = None if version is None else await self._prepare(version, None)
            if candidate is not None:
                await self._remember(candidate)
                return candidate
        reasons = "; ".join(f"version {version}: {reason}" for version, reason in self._refused.items())
        raise BundleError(f"{self._registry.bundle_uri}: {reasons or 'nothing was released yet'}")

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._settings.poll_seconds)
            try:
                await self._look()
            except Exception:
                # The registry may be away for a while; what is served is not touched by that.
                log.exception("the registry could not be followed; the present bundle goes on serving")

    async def _look(self) -> None:
        released = await asyncio.to_thread(self._registry.released)
        challenger = None
        if self._settings.challenger_share or self._settings.shadow_share:
            challenger = await asyncio.to_thread(self._registry.challenger)
        # One that was refused is not looked at again until its alias has moved.
        self._refused = {
            version: reason for version, reason in self._refused.items() if version in (released, challenger)
        }
        if released is not None and released not in (self._current.release.version, *self._refused):
            candidate = await self._prepare(released, self._current)
            if candidate is not None:
                log.info("serving version %d, before %d", released, self._current.release.version)
                self._current = candidate
                await self._remember(candidate)
        await self._take_challenger(challenger)
        self._metrics.drift.set(self._drift() or 0.0)
        await self._clean_up()

    async def _remember(self, candidate: _Candidate) -> None:
        """Note what is served, for a service that starts when the alias points at a bad bundle."""
        note = {"version": candidate.release.version}
        await asyncio.to_thread(self._store.write_pointer, self._last_served, note)

    async def _take_challenger(self, version: int | None) -> None:
        if version in (None, self._current.release.version):
            self._challenger = None
        elif version not in self._refused and (
            self._challenger is None or self._challenger.release.version != version
        ):
            self._challenger = await self._prepare(version, self._current)

    async def _prepare(self, version: int, present: _Candidate | None) -> _Candidate | None:
        """Vet a bundle, and start those of its experts that are not running; None if it is refused."""
        reason: str | None
        vetted = await ray.remote(num_cpus=0)(vet).remote(self._recipe, self._store, version)
        if isinstance(vetted, str):
            reason, candidate = vetted, None
        else:
            candidate = _Candidate(self._release(version, vetted), vetted)
            reason = await self._objection(candidate, present) or await self._start_experts(candidate)
        self._metrics.releases.inc(1, {"outcome": "refused" if reason else "let in"})
        if reason or candidate is None:
            self._refused[version] = str(reason)
            log.error("version %d is refused: %s", version, reason)
            return None
        return candidate

    def _release(self, version: int, vetted: Vetted) -> Release:
        fingerprint = vetted.manifest["encoder_fingerprint"]
        places = {
            name: Place.of(name, corpus, fingerprint) for name, corpus in vetted.manifest["corpora"].items()
        }
        experts = {}
        if self._recipe.serving.placement == "dedicated":
            experts = {
                expert["name"]: f"expert-{expert['name']}-{content_hash(expert['version'], fingerprint)[:8]}"
                for expert in vetted.manifest["experts"]
            }
        return Release(version, vetted.bundle_key, places, experts)

    async def _objection(self, candidate: _Candidate, present: _Candidate | None) -> str | None:
        """Why a whole bundle is not served: documents missing, another base, worse on its canary queries."""
        mine = candidate.vetted.manifest
        try:
            await self._open(candidate)
            scores = await self._canary_scores(candidate.release, candidate.vetted)
        except ArtifactMissing as error:
            return str(getattr(error, "cause", error))  # the index's own words, without its traceback
        if present is None:
            return None
        theirs = present.vetted.manifest
        if mine["encoder_fingerprint"] != theirs["encoder_fingerprint"]:
            return (
                f"made for base {mine['encoder']['name']} ({mine['encoder_fingerprint']}); this service runs "
                f"{theirs['encoder']['name']} ({theirs['encoder_fingerprint']})"
            )
        before = await self._canary_scores(candidate.release, present.vetted)
        # A domain that comes or goes says nothing of how the others fare.
        both = sorted(scores.keys() & before.keys())
        if not both:
            return None
        now, then = (float(np.mean([found[name] for name in both])) for found in (scores, before))
        if now < then - self._settings.max_validation_loss:
            return (
                f"mean nDCG@10 on canary queries of {', '.join(both)} is {now:.4f}; "
                f"the present bundle has {then:.4f}"
            )
        return None

    async def _open(self, candidate: _Candidate) -> None:
        """Search every collection once: it must be there, and no user should wait until it is opened."""
        probe = np.zeros((1, candidate.vetted.dimension), dtype=np.float32)
        for place in candidate.release.places.values():
            await search_parts(self._indexes, place, probe, [1])

    async def _canary_scores(self, release: Release, vetted: Vetted) -> dict[str, float]:
        """nDCG@10 of a bundle's canary vectors by collection, on the collections as they are now."""
        scores = {}
        for name, (queries, vectors) in vetted.canary.items():
            if name not in release.places or not queries:
                continue
            depths = [_CANARY_DEPTH] * len(queries)
            found = await search_parts(self._indexes, release.places[name], vectors, depths)
            ids = [str(number) for number in range(len(queries))]
            qrels = {i: query.relevant for i, query in zip(ids, queries, strict=True)}
            run = {
                i: {hit.document.id: hit.score for hit in hits} for i, hits in zip(ids, found, strict=True)
            }
            scores[name] = float(measure(qrels, run, ids).ndcg_at_10.mean())
        return scores

    async def _start_experts(self, candidate: _Candidate) -> str | None:
        release = candidate.release
        for app in release.experts.values():
            self._leaving.pop(app, None)
        running = await asyncio.to_thread(_experts_replicas)
        wanted = {name: app for name, app in release.experts.items() if app not in running}
        if not wanted:
            return None
        try:
            async with asyncio.timeout(_STARTING_SECONDS):
                await asyncio.to_thread(self._run_experts, wanted, candidate)
        except (RuntimeError, TimeoutError) as error:
            return f"experts {', '.join(wanted)} did not start: {error or 'no room in time'}"
        return None

    def _run_experts(self, wanted: dict[str, str], candidate: _Candidate) -> None:
        from ray.serve import RunTarget

        from routerretriever.serving.deployments.expert import Expert

        encoder = EncoderSettings.model_validate(candidate.vetted.manifest["encoder"])
        sizes = self._recipe.serving.expert
        serve.run_many(
            [
                RunTarget(
                    sized(Expert, "expert", sizes).bind(
                        encoder, name, candidate.release.bundle_key, self._store, sizes
                    ),
                    name=app,
                    route_prefix=None,
                )
                for name, app in wanted.items()
            ]
        )

    async def _clean_up(self) -> None:
        """Stop the experts that nobody serves any more, once no request can still be on its way to them."""
        now = time.monotonic()
        self._seen = {
            replica: (seen, versions)
            for replica, (seen, versions) in self._seen.items()
            if now - seen < _FORGOTTEN_SECONDS
        }
        wanted = {app for candidate in self._candidates() for app in candidate.release.experts.values()}
        versions = {candidate.release.version for candidate in self._candidates()}
        if any(set(loaded) - versions for _, loaded in self._seen.values()):
            return
        for app in (await asyncio.to_thread(_experts_replicas)).keys() - wanted:
            leaving_since = self._leaving.setdefault(app, now)
            if now - leaving_since > self._recipe.serving.limits.seconds:
                log.info("stopping %s", app)
                await asyncio.to_thread(serve.delete, app, _blocking=False)
                del self._leaving[app]

    def _candidates(self) -> list[_Candidate]:
        return [self._current, *([self._challenger] if self._challenger else [])]

    def _drift(self) -> float | None:
        """Jensen-Shannon distance (base 2) of the live routing shares from the expected ones."""
        from scipy.spatial.distance import jensenshannon

        live, expected = self._current.weights, self._current.vetted.manifest["shares"]
        if live.total() < _DRIFT_QUERIES:
            return None
        names = sorted(live.keys() | expected.keys())
        return float(jensenshannon([live[n] for n in names], [expected.get(n, 0.0) for n in names], base=2))

    @property
    def _last_served(self) -> str:
        """Name of the note that says which version was last let in."""
        return f"served-{self._recipe.registry.name}-{self._recipe.registry.alias}"


def _experts_replicas() -> dict[str, dict[str, int]]:
    """Replicas by state of every expert's application, whoever needs it."""
    return {
        name: {
            ReplicaState(state).value: number  # by its value already, whatever Ray's annotation says
            for deployment in application.deployments.values()
            for state, number in deployment.replica_states.items()
        }
        for name, application in serve.status().applications.items()
        if name.startswith("expert-")
    }


def vet(recipe: Recipe, store: ArtifactStore, version: int) -> Vetted | str:
    """Check a registered bundle, put it into storage for the replicas, and embed its canary queries.

    Runs as a task of its own, whose memory goes with it. Gives the reason if the bundle is bad.
    """
    from routerretriever.registry.loading import fetch_bundle
    from routerretriever.registry.registry import tracking_uri

    uri = f"models:/{recipe.registry.name}/{version}"
    try:
        with tempfile.TemporaryDirectory(prefix="bundle-") as scratch:
            folder = fetch_bundle(uri, Path(scratch), tracking_uri(recipe.registry, store))
            bundle = RouterRetriever(folder)
            if recipe.serving.placement == "dedicated" and bundle.merge == "weights":
                return (
                    "it merges weights (routing.merge), which serving.placement 'dedicated' cannot serve; "
                    "register it with routing.merge: embeddings, or serve with placement 'shared'"
                )
            canary = {
                name: (queries, bundle.encode_queries([query.query for query in queries]))
                for name, queries in read_validation_queries(folder).items()
            }
            key = f"bundles/{content_hash(bundle.manifest)}"
            if not store.exists(key):
                store.put_folder(key, folder)
                store.commit(key, {"kind": "bundle", "version": version})
    except RouterRetrieverError as error:
        return str(error)
    return Vetted(key, bundle.manifest, canary, bundle.encoder.dimension)


def sized(deployment: Any, name: str, replicas: ReplicaSettings) -> Any:
    """A deployment with its resources and bounds."""
    return deployment.options(
        name=name,
        ray_actor_options={
            "num_cpus": replicas.cpus,
            "num_gpus": replicas.gpus,
            # One thread for each CPU asked for: more would only wait for each other.
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(max(1, round(replicas.cpus)))}},
        },
        autoscaling_config={
            "min_replicas": replicas.min_replicas,
            "max_replicas": replicas.max_replicas,
            "target_ongoing_requests": replicas.target_ongoing_requests,
            "upscale_delay_s": replicas.upscale_delay_seconds,
            "downscale_delay_s": replicas.downscale_delay_seconds,
        },
        max_ongoing_requests=_MANY,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=35,
    )


_MANY = 10_000
"""Ray's own bound on calls to a replica: ours, on queries, comes first and says when to try again."""


def replica_id() -> str:
    """Name of this replica among all."""
    return f"{serve.get_replica_context().replica_id.unique_id}-{os.getpid()}"
