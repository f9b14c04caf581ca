"""Where the time of a request goes: one table whose parts add up, for one client and for 16.

python -m jobs.benchmarks.stages jobs/recipes/sample.yaml

The recipe must have been run. Means, in milliseconds, over rounds in which each way has its turn:

- HTTP and Serve: the client's time minus the router replica's.
- Reading and answering: the JSON of a real request and a real answer, timed alone in this process.
- Tokenizer, routing, pass and search: what the replica measures of its batches. A request waits for its whole
  batch, so that is its time too; batches count alike, whatever their size.
- Of the pass, the base is what the same number of clients that ask for the base have, experts are the rest.
- Waiting is what is left of the replica's time: for a pass that runs, for a thread, for the event loop.
"""

from __future__ import annotations

import json
import os
import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import typer
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel
from routerretriever.client.schemas import (
    EmbeddingsRequest,
    EmbeddingsResponse,
    SearchRequest,
    SearchResponse,
)
from routerretriever.runtime.progress import set_up
from routerretriever.serving.http.errors import answer
from routerretriever.types import BASE, ROUTED_MODEL

from jobs.benchmarks.load import run_load
from jobs.benchmarks.measure import pipeline_under_load, report, wait_until
from jobs.benchmarks.serving import Bodies, dev_queries, embeddings

Totals = dict[str, tuple[float, float]]
"""Seconds and number of observations, by stage and by route."""

_REPORT_MILLISECONDS = 1000
_TWO_REPORTS_SECONDS = 2.5
_REPEATS = 500
_LABELS = {"ray_routerretriever_stage_seconds": "stage", "ray_routerretriever_request_seconds": "route"}


@dataclass(frozen=True)
class Way:
    """A kind of request."""

    name: str
    route: str
    bodies: Bodies
    request: type[BaseModel]
    response: type[BaseModel]


@dataclass(frozen=True)
class Seen:
    """Mean times of one way's requests, in milliseconds."""

    client: float
    replica: float
    stages: Mapping[str, float]
    reading: float
    answering: float

    def parts(self, base_pass: float) -> dict[str, float]:
        """What the client's time is made of; ``base_pass`` is what the base's pass takes."""
        own_pass = self.stages.get("experts", 0.0)
        parts = {
            "HTTP and Serve": self.client - self.replica,
            "reading: JSON, validation": self.reading,
            "tokenizer": self.stages.get("tokenizer", 0.0),
            "routing": self.stages.get("routing", 0.0),
            "pass: base": base_pass,
            "pass: experts": own_pass - base_pass,
            "search": self.stages.get("search", 0.0),
            "answering: JSON": self.answering,
        }
        return {**parts, "waiting, and the rest of the replica": self.client - sum(parts.values())}


def main(
    recipe: Path,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    clients: Annotated[list[int] | None, typer.Option(help="Clients that ask at the same time.")] = None,
    seconds: Annotated[float, typer.Option(help="Of each way in each round.")] = 8.0,
    rounds: Annotated[int, typer.Option(help="How often each way is measured.")] = 3,
) -> None:
    """Serve the released bundle, and take a request's time apart."""
    os.environ.setdefault("RAY_metrics_report_interval_ms", str(_REPORT_MILLISECONDS))  # read when Ray starts
    from routerretriever.serving.deployments.run import served

    set_up(quiet=True)
    pipeline = pipeline_under_load(recipe, overrides)
    ways = _ways(dev_queries(pipeline), pipeline.recipe.expert_domains[0])
    columns: dict[str, dict[str, float]] = {}
    with served(pipeline) as url:
        costs = [_reading_and_answering(url, way) for way in ways]
        for count in clients or [1, 16]:
            seen: list[list[Seen]] = [[] for _ in ways]
            for way in ways:
                run_load(url + way.route, way.bodies, count, 1.0)
            for _ in range(rounds):
                for own, way, cost in zip(seen, ways, costs, strict=True):
                    own.append(_measure(url, way, count, seconds, *cost))
            columns |= {
                f"{way.name}, {count}": parts for way, parts in zip(ways, _mean_parts(seen), strict=True)
            }
    names = list(next(iter(columns.values())))
    rows = [[name, *(f"{parts[name]:.2f}" for parts in columns.values())] for name in names]
    report(
        f"stages-{pipeline.recipe.name}",
        f"recipe {pipeline.recipe.name}: mean ms of a request, by way and clients",
        ["part", *columns],
        [*rows, ["all", *(f"{sum(parts.values()):.2f}" for parts in columns.values())]],
        {"recipe": pipeline.recipe.model_dump(mode="json"), "milliseconds": columns},
    )


def totals(exported: str) -> Totals:
    """What replicas have timed since they started, from what Prometheus reads of them."""
    found: Totals = {}
    for family in text_string_to_metric_families(exported):
        if (label := _LABELS.get(family.name)) is None:
            continue
        for sample in family.samples:
            if sample.name.endswith(("_sum", "_count")):
                seconds, count = found.get(sample.labels[label], (0.0, 0.0))
                if sample.name.endswith("_sum"):
                    seconds += sample.value
                else:
                    count += sample.value
                found[sample.labels[label]] = seconds, count
    return found


def means(before: Totals, after: Totals) -> dict[str, float]:
    """Milliseconds of an observation between two readings, of what was observed at all."""
    found = {}
    for name, (seconds, count) in after.items():
        earlier, observed = before.get(name, (0.0, 0.0))
        if count > observed:
            found[name] = 1000 * (seconds - earlier) / (count - observed)
    return found


def _ways(queries: list[str], collection: str) -> list[Way]:
    """The base comes first: its pass is a part of the others'."""
    searches = [{"query": query, "collection": collection} for query in queries]
    return [
        *(
            Way(name, "/v1/embeddings", embeddings(queries, model, 1), EmbeddingsRequest, EmbeddingsResponse)
            for name, model in (("base", BASE), ("routed", ROUTED_MODEL))
        ),
        Way("search", "/v1/search", searches, SearchRequest, SearchResponse),
    ]


def _measure(url: str, way: Way, clients: int, seconds: float, reading: float, answering: float) -> Seen:
    before = _settled()
    load = run_load(url + way.route, way.bodies, clients, seconds)
    asked = before.get(way.route, (0.0, 0.0))[1] + len(load.milliseconds)
    wait_until(lambda: _exported().get(way.route, (0.0, 0.0))[1] >= asked, "the replica's times are told")
    found = means(before, _settled())
    return Seen(float(np.mean(load.milliseconds)), found[way.route], found, reading, answering)


def _settled() -> Totals:
    """Times of everything that was asked so far: what two reports of the replicas agree on."""
    earlier, now = None, _exported()
    while earlier != now:
        time.sleep(_TWO_REPORTS_SECONDS)
        earlier, now = now, _exported()
    return now


def _exported() -> Totals:
    import ray

    found: Totals = {}
    for node in ray.nodes():
        where = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for name, (seconds, count) in totals(httpx.get(where, timeout=60).text).items():
            earlier, observed = found.get(name, (0.0, 0.0))
            found[name] = earlier + seconds, observed + count
    return found


def _reading_and_answering(url: str, way: Way) -> tuple[float, float]:
    """Milliseconds of reading one request's JSON and of writing one answer's, as the service does."""
    sent = json.dumps(way.bodies[0])
    got = httpx.post(url + way.route, json=way.bodies[0], timeout=60).raise_for_status()
    made = way.response.model_validate(got.json())
    return (
        _milliseconds(lambda: way.request.model_validate(json.loads(sent))),
        _milliseconds(lambda: answer(200, made)),
    )


def _milliseconds(work: Callable[[], object]) -> float:
    return 1000 * min(timeit.repeat(work, number=_REPEATS, repeat=5)) / _REPEATS


def _mean_parts(seen: Sequence[Sequence[Seen]]) -> list[dict[str, float]]:
    """Parts of each way, over its rounds; the base's pass is that of the same round."""
    base_passes = [each.stages["experts"] for each in seen[0]]
    found = []
    for own in seen:
        parts = [each.parts(base) for each, base in zip(own, base_passes, strict=True)]
        found.append({name: float(np.mean([each[name] for each in parts])) for name in parts[0]})
    return found


if __name__ == "__main__":
    typer.run(main)
