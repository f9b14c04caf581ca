"""A service under load while it is released, rolled back, and loses its parts: what fails, and for how long.

python -m jobs.benchmarks.serving_faults jobs/recipes/sample.yaml
python -m jobs.benchmarks.serving_faults jobs/recipes/sample.yaml --soak-minutes 5

The recipe must have been run. Parts are killed with SIGKILL. "Gap" is the longest time without a good answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import httpx
import psutil
import typer
from routerretriever.config import load_recipe
from routerretriever.console import log, set_up
from routerretriever.pipeline import Pipeline

from jobs.benchmarks.load import Load, background_load
from jobs.benchmarks.measure import memories_mib, report
from jobs.benchmarks.serving import dev_queries

_AFTER_SECONDS = 15.0
_PATIENCE_SECONDS = 120.0


def main(
    recipe: Path,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    clients: Annotated[int, typer.Option(help="Clients that ask at the same time.")] = 4,
    soak_minutes: Annotated[
        float, typer.Option(help="Length of the soak at the end; 0 leaves it out.")
    ] = 0.0,
) -> None:
    """Cause each event under load."""
    from routerretriever.registry import Registry
    from routerretriever.serving import served

    set_up(quiet=True)
    pipeline = Pipeline(load_recipe(recipe, overrides))
    registry = Registry(pipeline.recipe, pipeline.store)
    first = registry.released()
    second = pipeline.register(release=False).version
    collection = pipeline.recipe.expert_domains[0]
    bodies = [{"query": query, "collection": collection} for query in dev_queries(pipeline)]
    rows, figures = [], []
    with served(pipeline) as url:
        events: dict[str, Callable[[], object]] = {
            "nothing": lambda: None,
            "release": lambda: _release(url, partial(registry.release, second), second),
            "roll-back": lambda: _release(url, registry.roll_back, first),
            "index replica killed": lambda: _kill("ServeReplica:routerretriever:index"),
            "release keeper killed": lambda: _kill("ServeReplica:routerretriever:releases"),
            "router replica killed": lambda: _kill("ServeReplica:routerretriever:router"),
            "proxy killed": lambda: _kill("haproxy"),
        }
        for event, cause in events.items():
            with background_load(f"{url}/v1/search", bodies, clients) as load:
                time.sleep(3)
                cause()
                time.sleep(_AFTER_SECONDS)
            rows.append([event, *_summary(load)])
            figures.append({"event": event, **load.figures()})
            log.info("%s: %s", event, rows[-1])
        if soak_minutes:
            before = sum(memories_mib())
            with background_load(f"{url}/v1/search", bodies, clients) as load:
                time.sleep(60 * soak_minutes)
            after = sum(memories_mib())
            rows.append([f"soak, {before:.0f} to {after:.0f} MiB", *_summary(load)])
            figures.append({"event": "soak", "mib": [before, after], **load.figures()})
    report(
        f"serving-faults-{pipeline.recipe.name}",
        f"recipe {pipeline.recipe.name}: {clients} clients search all the while",
        ["event", "answers", "failed", "p50 ms", "p99 ms", "gap s"],
        rows,
        {"recipe": pipeline.recipe.model_dump(mode="json"), "clients": clients, "events": figures},
    )


def _release(url: str, move: Callable[[], object], version: int | None) -> None:
    """Move the alias, and wait until the service has followed."""
    move()
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while httpx.get(f"{url}/v1/service", timeout=60).json()["version"] != version:
        if time.monotonic() > deadline:
            raise TimeoutError(f"version {version} was not taken over")
        time.sleep(0.5)


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
