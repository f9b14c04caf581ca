"""Which bundle is served: releases are validated, made ready beside the present one, then switched to.

The controller polls the registry's aliases and says what every ingress replica should serve. A bundle that is
damaged, made for another base, or worse on its own validation queries is rejected, and the present one goes
on serving. A rejection whose cause may pass is tried again after ``releases.retry_seconds``.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from routerretriever.bundle.manifest import cut_collections
from routerretriever.config.recipe import Recipe
from routerretriever.errors import (
    ArtifactMissing,
    BundleError,
    RegistryError,
    RouterRetrieverError,
    StorageError,
    Unavailable,
    failure_reason,
)
from routerretriever.hashing import content_hash
from routerretriever.measures import measure
from routerretriever.serving.ports import (
    ApplicationsPort,
    Clock,
    CollectionRef,
    DesiredState,
    Heartbeat,
    IndexPort,
    MetricsPort,
    PointersPort,
    RegistryPort,
    Rejection,
    Release,
    ValidatedBundle,
)

log = logging.getLogger("ray.serve")

_VALIDATION_DEPTH = 10
_DRIFT_QUERIES = 100
"""Fewer say nothing: the first query alone is far from any mixture."""
_FORGOTTEN_SECONDS = 20.0
"""An ingress replica that has not been heard of for so long is gone."""

Validate = Callable[[int, str | None], Awaitable[ValidatedBundle | Rejection]]
"""Given a version, and the key of its copy in storage if that may stand for it while the registry is away."""


@dataclass
class Candidate:
    """A bundle that is served or may be."""

    release: Release
    bundle: ValidatedBundle
    weights: Counter[str] = field(default_factory=Counter)
    """Sum of the weights given to each expert, over all replicas."""


@dataclass(frozen=True)
class _Rejected:
    rejection: Rejection
    since: float
    signal: str | None
    """The signal to try again that had been seen by then."""


class ReleaseController:
    """Follows the registry's aliases, and says what is to be served."""

    def __init__(
        self,
        recipe: Recipe,
        registry: RegistryPort,
        pointers: PointersPort,
        index: IndexPort,
        applications: ApplicationsPort,
        validate: Validate,
        metrics: MetricsPort,
        clock: Clock = time.monotonic,
    ) -> None:
        """Nothing is read yet; ``start`` does.

        Args:
            recipe: names, placement and bounds.
            registry: where the aliases are.
            pointers: where the version that was served last is noted.
            index: searches the collections.
            applications: experts with processes of their own.
            validate: checks a registered version and puts it into storage.
            metrics: where releases are counted.
            clock: the time.
        """
        self._recipe = recipe
        self._settings = recipe.serving.releases
        self._registry = registry
        self._pointers = pointers
        self._index = index
        self._applications = applications
        self._validate = validate
        self._metrics = metrics
        self._clock = clock
        self._rejected: dict[int, _Rejected] = {}
        self._seen: dict[str, tuple[float, tuple[int, ...]]] = {}
        self._leaving: dict[str, float] = {}
        self._challenger: Candidate | None = None
        self._current_or_none: Candidate | None = None
        self._registry_error: str | None = None
        self._is_noted = True
        """What is served, and was refused, for the next start."""

    async def start(self) -> None:
        """Make the released bundle ready; if it is rejected, the last one that was served.

        While the registry is away, that is the last one that was served, out of storage.

        Raises:
            BundleError: neither can be served.
            RegistryError: the registry is away, and nothing was served before, or was rolled back from since.
        """
        note = await asyncio.to_thread(self._pointers.read_pointer, served_note(self._recipe)) or {}
        last, refused, stored = note.get("version"), note.get("refused", []), note.get("bundle")
        try:
            released, _ = await self._aliases()
        except RegistryError as error:
            await self._require_not_rolled_back(note, error)
            released = None
        for version in dict.fromkeys([released, last]):
            present = None
            if last is not None and version in refused:
                # Else a restart would let in what is worse than what was served before.
                present = await self._served_before(last, stored)
            candidate = None
            if version is not None:
                candidate = await self._prepare(version, present, stored if version == last else None)
            if candidate is not None:
                self._current_or_none = candidate
                if self._registry_error is None:
                    await self._remember(candidate)
                else:
                    log.warning("serving version %d, which was served last, until the registry answers", last)
                return
        reasons = [f"version {version}: {reason}" for version, reason in self._reasons().items()]
        if self._registry_error is not None:
            reasons.append(self._registry_error)
        uri = f"models:/{self._recipe.registry.name}@{self._recipe.registry.alias}"
        raise BundleError(f"{uri}: {'; '.join(reasons) or 'nothing was released yet'}")

    async def _require_not_rolled_back(self, note: Mapping[str, Any], error: RegistryError) -> None:
        """Refuse to start without the registry with nothing, or with what was rolled back from.

        Raises:
            RegistryError: that is so.
        """
        if "bundle" not in note:
            raise error
        released_note = self._recipe.registry.released_note
        released = (await asyncio.to_thread(self._pointers.read_pointer, released_note) or note)["version"]
        if released < note["version"] and released not in note["refused"]:
            raise RegistryError(
                f"{error}; version {note['version']}, which was served last, is not served without the "
                f"registry, as version {released} was released in its place"
            ) from None

    async def _served_before(self, version: int, stored: str | None) -> Candidate | None:
        """What was served last, if it still can be."""
        validated = await self._validated(version, stored)
        if isinstance(validated, Rejection):
            return None
        return Candidate(self._release(version, validated), validated)

    async def follow(self) -> None:
        """Poll for ever. The registry may be away for a while; what is served is not touched by that."""
        while True:
            await asyncio.sleep(self._settings.poll_seconds)
            try:
                await self.poll()
            except RegistryError:
                pass  # told when it went away
            except Exception:
                log.exception("the registry could not be followed; the present bundle goes on serving")

    async def _aliases(self) -> tuple[int | None, int | None]:
        """The released version, and the challenger if it gets any traffic.

        Raises:
            RegistryError: the registry is away; that is told once, and shown until it is back.
        """
        challenger = None
        try:
            released = await asyncio.to_thread(self._registry.released)
            if self._settings.challenger_share or self._settings.shadow_share:
                challenger = await asyncio.to_thread(self._registry.challenger)
        except RegistryError as error:
            if self._registry_error is None:
                log.warning("%s; releases wait until the registry is back", error)
            self._registry_error = str(error)
            self._metrics.registry_away.set(1.0)
            raise
        if self._registry_error is not None:
            log.info("the registry answers again")
        self._registry_error = None
        self._metrics.registry_away.set(0.0)
        return released, challenger

    @property
    def _current(self) -> Candidate:
        assert self._current_or_none is not None, "start() comes first"
        return self._current_or_none

    def desired(self, heartbeat: Heartbeat | None = None) -> DesiredState:
        """What is to be served; ingress replicas ask every second and send a heartbeat on the way."""
        if heartbeat is not None:
            self._seen[heartbeat.replica] = (self._clock(), heartbeat.versions)
            for candidate in self._candidates():
                candidate.weights.update(heartbeat.weights.get(candidate.release.version, {}))
        challenger = self._challenger.release if self._challenger else None
        return DesiredState(self._current.release, challenger, max(1, self._beating()))

    def _beating(self) -> int:
        """How many ingress replicas have been heard of lately."""
        now = self._clock()
        return sum(now - seen < _FORGOTTEN_SECONDS for seen, _ in self._seen.values())

    async def repair(self, version: int) -> None:
        """Have a served bundle's copy in storage checked, and fetched again if it is damaged."""
        rejected = await self._validated(version, None)
        if isinstance(rejected, Rejection):
            log.error("version %d cannot be repaired: %s", version, rejected.reason)

    async def state(self) -> dict[str, Any]:
        """What is served and was refused; fields of ``schemas.ServiceState``."""
        current = self._current
        return {
            "version": current.release.version,
            "encoder": current.bundle.manifest["encoder"]["name"],
            "placement": self._recipe.serving.placement,
            "challenger": self._challenger.release.version if self._challenger else None,
            "challenger_share": self._settings.challenger_share,
            "shadow_share": self._settings.shadow_share,
            "routed_queries": round(current.weights.total()),
            "drift": self._drift(),
            "refused": self._reasons(),
            "registry_error": self._registry_error,
        }

    async def experts(self) -> list[dict[str, Any]]:
        """The experts that are served; fields of ``schemas.ExpertState``."""
        manifest, weights = self._current.bundle.manifest, self._current.weights
        total = weights.total()
        apps = self._current.release.experts
        replicas = await self._applications.replicas() if apps else {}
        return [
            {
                **expert,
                "expected_share": manifest["shares"].get(expert["name"], 0.0),
                "live_share": weights[expert["name"]] / total if total else None,
                "replicas": replicas.get(apps[expert["name"]], {}) if apps else None,
            }
            for expert in manifest["experts"]
        ]

    async def poll(self) -> None:
        """Look where the aliases point, and take over what is new."""
        released, challenger = await self._aliases()
        signal = await self._retry_signal()
        now = self._clock()
        self._rejected = {
            version: rejected
            for version, rejected in self._rejected.items()
            if version in (released, challenger) and not self._try_again(rejected, signal, now)
        }
        if released is not None and released not in (self._current.release.version, *self._rejected):
            candidate = await self._prepare(released, self._current)
            if candidate is not None:
                log.info("serving version %d, before %d", released, self._current.release.version)
                self._current_or_none = candidate
            await self._remember(self._current)
        elif not self._is_noted:
            await self._remember(self._current)
        await self._take_challenger(challenger)
        self._metrics.drift.set(self._drift() or 0.0)
        await self._clean_up()

    def _try_again(self, rejected: _Rejected, signal: str | None, now: float) -> bool:
        passed = now - rejected.since >= self._settings.retry_seconds
        return (rejected.rejection.transient and passed) or signal != rejected.signal

    async def _retry_signal(self) -> str | None:
        pointer = await asyncio.to_thread(self._pointers.read_pointer, _retry_pointer(self._recipe))
        return None if pointer is None else str(pointer["signal"])

    def _reasons(self) -> dict[int, str]:
        return {version: rejected.rejection.reason for version, rejected in self._rejected.items()}

    async def _remember(self, candidate: Candidate) -> None:
        """Note what is served and what was refused, for a start at which the alias points at a bad bundle.

        Storage that is full keeps nothing from being served; the next polls try again.
        """
        release = candidate.release
        note = {
            "version": release.version,
            "bundle": release.bundle_key,
            "refused": sorted(self._rejected),
        }
        try:
            await asyncio.to_thread(self._pointers.write_pointer, served_note(self._recipe), note)
        except StorageError as error:
            if self._is_noted:
                log.warning("%s; which version is served is noted once storage can be written", error)
            self._is_noted = False
            return
        self._is_noted = True

    async def _take_challenger(self, version: int | None) -> None:
        # One that was refused before, as a release, takes the place of the challenger before it all the same.
        if version is None or version == self._current.release.version or version in self._rejected:
            self._challenger = None
        elif self._challenger is None or self._challenger.release.version != version:
            self._challenger = await self._prepare(version, self._current)

    async def _prepare(
        self, version: int, present: Candidate | None, stored: str | None = None
    ) -> Candidate | None:
        """Validate a bundle, and start those of its experts that are not running; None if it is rejected."""
        signal = await self._retry_signal()
        try:
            checked = await self._checked(version, present, stored)
        except Exception as error:
            checked = _not_checked(version, error)
        outcome = "refused" if isinstance(checked, Rejection) else "let in"
        self._metrics.releases.inc(1, {"outcome": outcome})
        if isinstance(checked, Rejection):
            self._rejected[version] = _Rejected(checked, self._clock(), signal)
            log.error("version %d is refused: %s", version, checked.reason)
            return None
        return checked

    async def _checked(
        self, version: int, present: Candidate | None, stored: str | None
    ) -> Candidate | Rejection:
        validated = await self._validate(version, stored)
        if isinstance(validated, Rejection):
            return validated
        candidate = Candidate(self._release(version, validated), validated)
        if self._current_or_none is None and present and _base(present) != _base(candidate):
            present = None  # a service that starts may have another base than the last time
        rejection = await self.rejection_reason(candidate, present) or await self._start_experts(candidate)
        return rejection or candidate

    async def _validated(self, version: int, stored: str | None) -> ValidatedBundle | Rejection:
        try:
            return await self._validate(version, stored)
        except Exception as error:
            return _not_checked(version, error)

    def _release(self, version: int, bundle: ValidatedBundle) -> Release:
        fingerprint = bundle.manifest["encoder_fingerprint"]
        recipe = self._recipe
        cut = cut_collections(bundle.manifest)
        collections = {
            name: CollectionRef.of(name, corpus, fingerprint, recipe.searched(name).lexical, cut.get(name))
            for name, corpus in bundle.manifest["corpora"].items()
        }
        experts = {}
        if self._recipe.serving.placement == "dedicated":
            experts = {
                expert["name"]: f"expert-{expert['name']}-{content_hash(expert['version'], fingerprint)[:8]}"
                for expert in bundle.manifest["experts"]
            }
        return Release(version, bundle.bundle_key, collections, experts)

    async def rejection_reason(self, candidate: Candidate, present: Candidate | None) -> Rejection | None:
        """Why a whole bundle is not served: documents missing, another base, worse on validation queries."""
        mine = candidate.bundle.manifest
        try:
            await self._open(candidate)
            scores = await self._validation_scores(candidate.release, candidate.bundle)
        except RouterRetrieverError as error:
            return Rejection(str(error), transient=isinstance(error, (Unavailable, ArtifactMissing)))
        if present is None:
            return None
        theirs = present.bundle.manifest
        if _base(candidate) != _base(present):
            return Rejection(
                f"made for base {mine['encoder']['name']} ({mine['encoder_fingerprint']}); this service runs "
                f"{theirs['encoder']['name']} ({theirs['encoder_fingerprint']})"
            )
        before = await self._validation_scores(candidate.release, present.bundle)
        # A domain that comes or goes says nothing of how the others fare.
        both = sorted(scores.keys() & before.keys())
        if not both:
            return None
        now, then = (float(np.mean([found[name] for name in both])) for found in (scores, before))
        if now < then - self._settings.max_validation_loss:
            return Rejection(
                f"mean nDCG@10 on validation queries of {', '.join(both)} is {now:.4f}; "
                f"the present bundle has {then:.4f}"
            )
        return None

    async def _open(self, candidate: Candidate) -> None:
        """Search every collection once: it must be there, and no user should wait until it is opened."""
        probe = np.zeros((1, candidate.bundle.dimension), dtype=np.float32)
        for collection in candidate.release.collections.values():
            await self._index.search(collection, probe, [1])

    async def _validation_scores(self, release: Release, bundle: ValidatedBundle) -> dict[str, float]:
        """nDCG@10 of a bundle's validation vectors by collection, on the collections as they are now."""
        scores = {}
        for name, (queries, vectors) in bundle.validation.items():
            if name not in release.collections or not queries:
                continue
            depths = [_VALIDATION_DEPTH] * len(queries)
            found = await self._index.search(release.collections[name], vectors, depths)
            ids = [str(number) for number in range(len(queries))]
            qrels = {i: query.relevant for i, query in zip(ids, queries, strict=True)}
            run = {
                i: {hit.document.id: hit.score for hit in hits} for i, hits in zip(ids, found, strict=True)
            }
            scores[name] = float(measure(qrels, run, ids).ndcg_at_10.mean())
        return scores

    async def _start_experts(self, candidate: Candidate) -> Rejection | None:
        experts = candidate.release.experts
        if not experts:
            return None
        for app in experts.values():
            self._leaving.pop(app, None)
        running = await self._applications.replicas()
        wanted = {name: app for name, app in experts.items() if app not in running}
        return await self._applications.start(wanted, candidate.bundle) if wanted else None

    async def _clean_up(self) -> None:
        """Stop the experts that nobody serves any more, once no request can still be on its way to them."""
        now = self._clock()
        self._seen = {
            replica: (seen, versions)
            for replica, (seen, versions) in self._seen.items()
            if now - seen < _FORGOTTEN_SECONDS
        }
        wanted = {app for candidate in self._candidates() for app in candidate.release.experts.values()}
        versions = {candidate.release.version for candidate in self._candidates()}
        if any(set(loaded) - versions for _, loaded in self._seen.values()):
            return
        for app in (await self._applications.replicas()).keys() - wanted:
            leaving_since = self._leaving.setdefault(app, now)
            if now - leaving_since > self._recipe.serving.limits.seconds:
                log.info("stopping %s", app)
                await self._applications.stop(app)
                del self._leaving[app]

    def _candidates(self) -> list[Candidate]:
        return [self._current, *([self._challenger] if self._challenger else [])]

    def _drift(self) -> float | None:
        """Jensen-Shannon distance (base 2) of the live routing shares from the expected ones."""
        from scipy.spatial.distance import jensenshannon

        live, expected = self._current.weights, self._current.bundle.manifest["shares"]
        if live.total() < _DRIFT_QUERIES:
            return None
        names = sorted(live.keys() | expected.keys())
        return float(jensenshannon([live[n] for n in names], [expected.get(n, 0.0) for n in names], base=2))


def _not_checked(version: int, error: Exception) -> Rejection:
    """Of what went wrong on the way, as where a task has no memory: else it would be tried at every poll."""
    log.error("version %d could not be checked", version, exc_info=error)
    return Rejection(f"it could not be checked: {failure_reason(error)}", transient=True)


def _base(candidate: Candidate) -> str:
    return str(candidate.bundle.manifest["encoder_fingerprint"])


def served_note(recipe: Recipe) -> str:
    """Name of the note that says which version was last let in, and where its copy lies."""
    return f"served-{recipe.registry.name}-{recipe.registry.alias}"


def require_servable(recipe: Recipe, registry: RegistryPort, pointers: PointersPort) -> None:
    """Refuse a service of nothing, before it is started.

    Raises:
        NotFound: nothing is released.
        RegistryError: the registry is away, and nothing was served before.
    """
    try:
        registry.require_released()
    except RegistryError as error:
        if "bundle" not in (pointers.read_pointer(served_note(recipe)) or {}):
            raise
        log.warning("%s; the version that was served last is taken", error)


def ask_for_retry(pointers: PointersPort, recipe: Recipe) -> None:
    """Have every running service that shares these pointers try again the bundles that it refused."""
    pointers.write_pointer(_retry_pointer(recipe), {"signal": uuid.uuid4().hex})


def _retry_pointer(recipe: Recipe) -> str:
    return f"retry-{recipe.registry.name}"
