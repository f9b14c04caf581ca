"""Routed embedding against the plain base encoder in the same service, and against another embedding server.

python -m jobs.benchmarks.serving jobs/recipes/sample.yaml
python -m jobs.benchmarks.serving jobs/recipes/sample.yaml --peer http://127.0.0.1:7997/embeddings
python -m jobs.benchmarks.serving jobs/recipes/sample.yaml --no-plain --beside 2048 --bulk 64

The recipe must have been run. Queries are its dev queries, of all domains in turns. Ways are measured in
rounds, one after the other in each, so that a change of the machine's mood meets all of them.

``--beside`` measures single queries alone, and while another client embeds many texts again and again.
``--bulk`` compares requests of many texts with sentence-transformers' ``encode``, which has a process of its
own, and the precision and as many threads as a replica.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from routerretriever.bundle.build import BundleParts, ServiceFacts
from routerretriever.config.recipe import Recipe
from routerretriever.methods.experts import Experts
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.registry.recording import RunRecord
from routerretriever.registry.registry import Registry
from routerretriever.reports.tables import as_dict
from routerretriever.routing.protocol import Router
from routerretriever.routing.settings import RoutingSettings
from routerretriever.runtime.progress import log, set_up
from routerretriever.serving.batching import RECENT_SECONDS
from routerretriever.training.expert import Expert
from routerretriever.types import BASE, ROUTED_MODEL

from jobs.benchmarks.load import Load, background_load, run_load
from jobs.benchmarks.measure import pipeline_under_load, report
from jobs.benchmarks.peer import encoding_peer

Bodies = Sequence[dict[str, Any]]
Way = Callable[[float], Load]
"""Measures something for so many seconds."""


def main(
    recipe: Path,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    clients: Annotated[list[int] | None, typer.Option(help="Clients that ask at the same time.")] = None,
    texts: Annotated[int, typer.Option(help="Queries in one request.")] = 1,
    seconds: Annotated[float, typer.Option(help="Of each way in each round.")] = 8.0,
    rounds: Annotated[int, typer.Option(help="How often each way is measured.")] = 3,
    search: Annotated[bool, typer.Option(help="Measure searches too.")] = True,
    peer: Annotated[str | None, typer.Option(help="An OpenAI-compatible embeddings URL.")] = None,
    peer_model: Annotated[str, typer.Option(help="What the peer calls its model.")] = "model",
    plain: Annotated[bool, typer.Option(help="Measure base, routed and searches.")] = True,
    beside: Annotated[
        int, typer.Option(help="Measure single queries beside a client of so many texts; 0 does not.")
    ] = 0,
    bulk: Annotated[
        int, typer.Option(help="Compare requests of so many texts with sentence-transformers; 0 does not.")
    ] = 0,
) -> None:
    """Serve the released bundle and put load on it."""
    from routerretriever.serving.deployments.run import served

    set_up(quiet=True)
    pipeline = pipeline_under_load(recipe, overrides)
    engine, placement = pipeline.recipe.serving.engine, pipeline.recipe.serving.placement
    if bulk and engine.precision == "int8":
        raise typer.BadParameter(
            "sentence-transformers has no int8; set another precision", param_hint="bulk"
        )
    queries, results = dev_queries(pipeline), Results()
    with served(pipeline) as url:
        where = f"{url}/v1/embeddings"
        if plain:
            asked = {
                "base": (where, embeddings(queries, BASE, texts)),
                "routed": (where, embeddings(queries, ROUTED_MODEL, texts)),
            }
            if search:
                asked |= _searches(url, pipeline.recipe.expert_domains[0], queries)
            if peer:
                asked["peer"] = (peer, embeddings(queries, peer_model, texts))
            for count in clients or [1, 16]:
                ways = {name: partial(run_load, *what, count) for name, what in asked.items()}
                for name, loads in measure(ways, seconds, rounds).items():
                    results.add(count, name, 1 if "search" in name else texts, loads)
        if beside:
            _measure_beside(results, where, queries, beside, seconds, rounds)
        if bulk:
            _measure_bulk(results, where, queries, bulk, seconds, rounds, pipeline.recipe)
    for what, ratio in results.ratios.items():
        log.info("%s: %.2f", what, ratio)
    report(
        f"serving-{pipeline.recipe.name}-{placement}-{texts}",
        f"recipe {pipeline.recipe.name}, {placement} placement, {texts} queries a request",
        ["clients", "way", "texts/s", "requests/s", "p50 ms", "p95 ms", "failed"],
        results.rows,
        {
            "recipe": pipeline.recipe.model_dump(mode="json"),
            "texts": texts,
            "measured": results.figures,
            "ratios": results.ratios,
        },
    )


@dataclass
class Results:
    """What is printed and kept."""

    rows: list[list[str]] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    ratios: dict[str, float] = field(default_factory=dict)

    def add(self, clients: int, way: str, texts: int, loads: list[Load]) -> None:
        """Note all rounds of a way; each of its requests had so many texts."""
        rate = texts * merged(loads).per_second
        self.rows.append([str(clients), way, f"{rate:.0f}", *summary(loads)])
        self.figures.append({"clients": clients, "way": way, "texts_per_second": rate, **numbers(loads)})

    def texts_per_second(self, way: str) -> float:
        """Of a way that was noted."""
        return next(float(each["texts_per_second"]) for each in self.figures if each["way"] == way)

    def p95(self, way: str) -> float:
        """Of a way that was noted, in milliseconds."""
        return next(float(each["p95_ms"]) for each in self.figures if each["way"] == way)


@dataclass
class Crowded:
    """A way of single queries while another client embeds many texts again and again."""

    url: str
    queries: Bodies
    crowd: Bodies
    others: list[Load] = field(default_factory=list)
    """What the other client saw, each time."""

    def __call__(self, seconds: float) -> Load:
        """What the single queries saw."""
        with background_load(self.url, self.crowd, 1) as other:
            load = run_load(self.url, self.queries, 1, seconds)
        self.others.append(other)
        return load


def _measure_beside(
    results: Results, url: str, queries: list[str], texts: int, seconds: float, rounds: int
) -> None:
    singles = embeddings(queries, ROUTED_MODEL, 1)
    crowded = Crowded(url, singles, embeddings(queries, ROUTED_MODEL, texts)[:1])
    alone, beside = "single queries, alone", f"single queries, beside {texts:,} texts"
    found = measure({alone: partial(run_load, url, singles, 1), beside: crowded}, seconds, rounds)
    for way, loads in found.items():
        results.add(1, way, 1, loads)
    results.add(1, f"the client of {texts:,} texts", texts, crowded.others[-rounds:])
    results.ratios["p95 beside / alone"] = results.p95(beside) / results.p95(alone)


def _measure_bulk(
    results: Results,
    url: str,
    queries: list[str],
    texts: int,
    seconds: float,
    rounds: int,
    recipe: Recipe,
) -> None:
    ways: dict[str, Way] = {
        name: partial(run_load, url, embeddings(queries, model, texts), 1)
        for name, model in (("base", BASE), ("routed", ROUTED_MODEL))
    }
    batches = [body["input"] for body in embeddings(queries, BASE, texts)]
    time.sleep(RECENT_SECONDS)  # until then passes are short for the sake of single queries that came before
    with encoding_peer(recipe, batches) as encode:
        found = measure({**ways, "sentence-transformers": encode}, seconds, rounds)
    names = {way: f"{way}, {texts} texts" for way in found}
    for way, loads in found.items():
        results.add(1, names[way], texts, loads)
    theirs = results.texts_per_second(names["sentence-transformers"])
    for way in ways:
        own = results.texts_per_second(names[way])
        results.ratios[f"texts/s of {way} / sentence-transformers"] = own / theirs


def _searches(url: str, collection: str, queries: list[str]) -> dict[str, tuple[str, Bodies]]:
    """Searches of a collection by name: where they are sent, and their bodies."""
    searches: dict[str, tuple[str, Bodies]] = {}
    for name, model, mode in (
        ("base", BASE, "dense"),
        ("routed", ROUTED_MODEL, "dense"),
        ("hybrid", ROUTED_MODEL, "hybrid"),
    ):
        asked = {"collection": collection, "model": model, "mode": mode}
        searches[f"{name} search"] = (f"{url}/v1/search", [{"query": query, **asked} for query in queries])
    return searches


def dev_queries(pipeline: Pipeline) -> list[str]:
    """Dev queries of all domains that have an expert, shuffled."""
    queries = [text for one in pipeline.expert_collections for text in one.queries("dev").values()]
    random.Random(0).shuffle(queries)
    return queries


def released_beside(
    pipeline: Pipeline,
    name: str,
    facts: ServiceFacts,
    experts: Mapping[str, Expert] | None = None,
    router: Router | None = None,
    routing: RoutingSettings | None = None,
) -> Recipe:
    """Register and release a variant of a pipeline's bundle under another name; returns its recipe.

    What is not given is the pipeline's own.
    """
    recipe = pipeline.recipe
    settings = recipe.registry.model_copy(update={"name": f"{recipe.registry.name}-{name}"})
    update = {"registry": settings, "routing": routing or recipe.routing}
    recipe = recipe.model_copy(update=update)
    registry, own = Registry(recipe.registry, pipeline.store), pipeline.method(Experts)
    parts = BundleParts(
        recipe.model_dump(mode="json"), recipe.encoder, recipe.routing, router or own.router,
        experts or own.experts, as_dict(pipeline.evaluation), facts,
    )  # fmt: skip
    registry.register_bundle(parts, RunRecord())
    # Named, since the variant may be served with another storage.
    settings = settings.model_copy(update={"tracking_uri": registry.tracking_uri})
    return recipe.model_copy(update={"registry": settings})


def embeddings(queries: list[str], model: str, texts: int) -> Bodies:
    """Bodies of requests for embeddings, each with some queries."""
    return [
        {
            "model": model,
            "encoding_format": "base64",
            "input": [queries[(start + i) % len(queries)] for i in range(texts)],
        }
        for start in range(0, len(queries), texts)
    ]


def measure(ways: Mapping[str, Way], seconds: float, rounds: int) -> dict[str, list[Load]]:
    """Put load on every way in turns, after a short one to warm up."""
    loads: dict[str, list[Load]] = {name: [] for name in ways}
    for way in ways.values():
        way(1.0)
    for _ in range(rounds):
        for name, way in ways.items():
            loads[name].append(way(seconds))
    return loads


def merged(loads: list[Load]) -> Load:
    """All rounds of one way together."""
    return Load(
        sum(load.seconds for load in loads),
        [one for load in loads for one in load.milliseconds],
        [one for load in loads for one in load.failures],
        max(load.longest_gap for load in loads),
    )


def numbers(loads: list[Load]) -> dict[str, Any]:
    """Figures over all rounds, and the throughput of each."""
    return {**merged(loads).figures(), "per_second_by_round": [one.per_second for one in loads]}


def summary(loads: list[Load]) -> list[str]:
    """The same for a table."""
    load = merged(loads)
    quantiles = (load.quantile(share) for share in (0.5, 0.95))
    return [*(f"{figure:.1f}" for figure in (load.per_second, *quantiles)), str(len(load.failures))]


if __name__ == "__main__":
    typer.run(main)
