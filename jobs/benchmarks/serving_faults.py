"""A service under load while it is released, rolled back, and loses its parts: what fails, and for how long.

python -m jobs.benchmarks.serving_faults jobs/recipes/sample.yaml
python -m jobs.benchmarks.serving_faults jobs/recipes/sample.yaml --no-faults --soak-minutes 10
python -m jobs.benchmarks.serving_faults jobs/recipes/sample.yaml --no-faults --set routing.merge=embeddings \
    --set serving.placement=dedicated --set serving.expert.min_replicas=0 \
    --set serving.expert.downscale_delay_seconds=5

The recipe must have been run. Parts are killed with SIGKILL. "Gap" is the longest time without a good answer.
Experts that may have no replicas are left alone until they have none, and then woken by one query each.

A soak sends searches at a share of what the service answers when it is saturated. Meanwhile the other of two
bundles is released every minute, and documents are upserted and deleted again every second. Replicas' memory
is that before the soak, and at the end of each minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any

import httpx
import psutil
import typer
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.runtime.progress import log, set_up

from jobs.benchmarks.data import made_texts
from jobs.benchmarks.load import Load, background_load, run_load
from jobs.benchmarks.measure import memories_mib, pipeline_under_load, report, wait_until
from jobs.benchmarks.serving import dev_queries

_AFTER_SECONDS = 15.0
_SATURATING_CLIENTS = 16
_CHANGES_SECONDS = 1.0
_DOCUMENTS_A_CHANGE = 16


def main(
    recipe: Path,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    clients: Annotated[int, typer.Option(help="Clients that ask at the same time.")] = 4,
    faults: Annotated[bool, typer.Option(help="Cause the events.")] = True,
    soak_minutes: Annotated[int, typer.Option(help="Length of the soak at the end; 0 leaves it out.")] = 0,
    soak_share: Annotated[float, typer.Option(help="Of the saturated rate, during the soak.")] = 0.8,
) -> None:
    """Cause each event under load."""
    from routerretriever.registry.registry import Registry
    from routerretriever.serving.deployments.run import served

    set_up(quiet=True)
    pipeline = pipeline_under_load(recipe, overrides)
    registry = Registry(pipeline.recipe.registry, pipeline.store)
    first = registry.released()
    routing = pipeline.recipe.routing
    warmer = routing.model_copy(update={"temperature": 2 * routing.temperature})  # makes another bundle
    second = Pipeline(pipeline.recipe.model_copy(update={"routing": warmer})).register(release=False).version
    collection = pipeline.recipe.expert_domains[0]
    bodies = [{"query": query, "collection": collection} for query in dev_queries(pipeline)]
    rows, figures = [], []
    with served(pipeline) as url:
        events: dict[str, Callable[[], object]] = {
            "nothing": lambda: None,
            "release": lambda: _release(url, partial(registry.release, second), second),
            "roll-back": lambda: _release(url, registry.roll_back, first),
            "index replica killed": lambda: _kill("ServeReplica:routerretriever:index"),
            "release controller killed": lambda: _kill("ServeReplica:routerretriever:releases"),
            "router replica killed": lambda: _kill("ServeReplica:routerretriever:router"),
            "proxy killed": lambda: _kill("haproxy"),
        }
        serving = pipeline.recipe.serving
        if serving.placement == "dedicated":
            events["experts' replicas killed"] = lambda: _kill("ServeReplica:expert-")
        for event, cause in events.items() if faults else ():
            with background_load(f"{url}/v1/search", bodies, clients) as load:
                time.sleep(3)
                cause()
                time.sleep(_AFTER_SECONDS)
                wait_until(lambda: _answers(url), f"{url} answers again")
                time.sleep(2)  # so that the load sees it
            rows.append([event, *_summary(load)])
            figures.append({"event": event, **load.figures()})
            log.info("%s: %s", event, rows[-1])
        if serving.placement == "dedicated" and not serving.expert.min_replicas:
            load = _wake(url, pipeline.recipe.expert_domains)
            event = "experts woken from zero replicas"
            rows.append([event, *_summary(load)])
            figures.append({"event": event, **load.figures()})
        if soak_minutes:
            saturated = run_load(f"{url}/v1/search", bodies, _SATURATING_CLIENTS, _AFTER_SECONDS).per_second
            moves: dict[int | None, Callable[[], object]] = {
                second: partial(registry.release, second),
                first: registry.roll_back,
            }
            soak = _soak(url, bodies, soak_share * saturated, soak_minutes, collection, moves)
            if registry.released() == second:
                registry.roll_back()
            event = f"soak, {soak.rate:.0f} of {saturated:.0f} a second, {soak.told()}"
            rows.append([event, *_summary(soak.load)])
            figures.append({"event": event, **soak.figures()})
    report(
        f"serving-faults-{pipeline.recipe.name}",
        f"recipe {pipeline.recipe.name}: {clients} clients search all the while",
        ["event", "answers", "failed", "p50 ms", "p99 ms", "gap s"],
        rows,
        {"recipe": pipeline.recipe.model_dump(mode="json"), "clients": clients, "events": figures},
    )


@dataclass
class Soak:
    """What came of a steady load while the service was released and its documents changed."""

    rate: float
    """Searches a second that were sent."""
    load: Load = field(default_factory=Load)
    memory: list[float] = field(default_factory=list)
    """MiB of all replicas: before, and at the end of each minute."""
    releases: int = 0
    changes: int = 0
    failures: list[str] = field(default_factory=list)
    """Status or exception of every change that was not taken."""

    @property
    def growth(self) -> float:
        """Of the memory from start to end, as a share of the start."""
        return self.memory[-1] / self.memory[0] - 1

    def told(self) -> str:
        """In words, without the searches."""
        return (
            f"{self.releases} releases, {self.changes} changes ({len(self.failures)} failed), "
            f"{self.memory[0]:.0f} to {self.memory[-1]:.0f} MiB ({self.growth:+.1%})"
        )

    def figures(self) -> dict[str, Any]:
        """For the results."""
        return {
            "replicas_mib_by_minute": self.memory,
            "growth": self.growth,
            "releases": self.releases,
            "changes": self.changes,
            "changes_failed": self.failures,
            **self.load.figures(),
        }


def _soak(
    url: str,
    bodies: list[dict[str, str]],
    rate: float,
    minutes: int,
    collection: str,
    moves: Mapping[int | None, Callable[[], object]],
) -> Soak:
    """Search at a rate for some minutes, with a release each minute and changes of documents in between.

    ``moves`` are what releases each version, in turns.
    """
    texts = islice(made_texts(_DOCUMENTS_A_CHANGE), _DOCUMENTS_A_CHANGE)
    documents = [{"id": f"soak-{number}", "text": text} for number, text in enumerate(texts)]
    ids = [document["id"] for document in documents]
    where = f"{url}/v1/collections/{collection}/documents"
    changes: Iterator[tuple[str, dict[str, Any]]] = cycle(
        [(where, {"documents": documents}), (f"{where}/delete", {"ids": ids})]
    )
    soak = Soak(rate, memory=[_replicas_mib()])
    with background_load(f"{url}/v1/search", bodies, _SATURATING_CLIENTS, rate) as soak.load:
        for version, move in islice(cycle(moves.items()), minutes):
            end = time.monotonic() + 60
            _release(url, move, version)
            soak.releases += 1
            while time.monotonic() < end:
                _change(soak, *next(changes))
                time.sleep(_CHANGES_SECONDS)
            soak.memory.append(_replicas_mib())
            log.info("soak: %s", soak.told())
    with suppress(httpx.HTTPError):
        httpx.post(f"{where}/delete", json={"ids": ids}, timeout=60)
    return soak


def _change(soak: Soak, url: str, body: dict[str, Any]) -> None:
    soak.changes += 1
    try:
        answer = httpx.post(url, json=body, timeout=60)
    except httpx.HTTPError as error:
        soak.failures.append(type(error).__name__)
        return
    if not answer.is_success:
        soak.failures.append(str(answer.status_code))


def _replicas_mib() -> float:
    return sum(memories_mib("ray::ServeReplica"))


def _release(url: str, move: Callable[[], object], version: int | None) -> None:
    """Move the alias, and wait until the service has followed."""
    move()
    wait_until(
        lambda: httpx.get(f"{url}/v1/service", timeout=60).json()["version"] == version,
        f"version {version} is taken over",
    )


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).is_success
    except httpx.HTTPError:
        return False


def _wake(url: str, experts: list[str]) -> Load:
    """Ask every expert once, when it has no replica any more."""
    from ray import serve

    def asleep() -> bool:
        return not any(
            deployment.replica_states
            for name, application in serve.status().applications.items()
            if name.startswith("expert-")
            for deployment in application.deployments.values()
        )

    wait_until(asleep, "experts that nobody asks have no replicas")
    load = Load()
    for expert in experts:
        start = time.monotonic()
        answer = httpx.post(f"{url}/v1/embeddings", json={"model": expert, "input": "x"}, timeout=120)
        seconds = time.monotonic() - start
        load.seconds += seconds
        load.longest_gap = max(load.longest_gap, seconds)
        if answer.is_success:
            load.milliseconds.append(1000 * seconds)
        else:
            load.failures.append(str(answer.status_code))
    return load


def _kill(name: str) -> None:
    for process in psutil.Process().children(recursive=True):
        if process.name().startswith(("ray::" + name, name)) or name in " ".join(process.cmdline()[:1]):
            process.kill()


def _summary(load: Load) -> list[str]:
    found = load.figures()
    failed = ", ".join(f"{count} x {what}" for what, count in found["failures"].items()) or "0"
    gap = f"{found['longest_gap_s']:.1f}"
    return [str(found["answers"]), failed, f"{found['p50_ms']:.0f}", f"{found['p99_ms']:.0f}", gap]


if __name__ == "__main__":
    typer.run(main)
