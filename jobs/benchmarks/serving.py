"""Routed embedding against the plain base encoder in the same service, and against another embedding server.

python -m jobs.benchmarks.serving jobs/recipes/sample.yaml
python -m jobs.benchmarks.serving jobs/recipes/sample.yaml --peer http://127.0.0.1:7997/embeddings

The recipe must have been run. Queries are its dev queries, of all domains in turns. Ways are measured in
rounds, one after the other in each, so that a change of the machine's mood meets all of them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from routerretriever.bundle.build import BundleParts, ServiceFacts
from routerretriever.config.loading import load_recipe
from routerretriever.config.recipe import Recipe
from routerretriever.methods.experts import Experts
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.registry.recording import RunRecord
from routerretriever.registry.registry import Registry
from routerretriever.reports.tables import as_dict
from routerretriever.routing.protocol import Router
from routerretriever.routing.settings import RoutingSettings
from routerretriever.runtime.progress import set_up
from routerretriever.training.expert import Expert
from routerretriever.types import BASE, ROUTED_MODEL

from jobs.benchmarks.load import Load, run_load
from jobs.benchmarks.measure import report


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
) -> None:
    """Serve the released bundle and put load on it."""
    from routerretriever.serving.deployments.run import served

    set_up(quiet=True)
    pipeline = Pipeline(load_recipe(recipe, ["serving.cached_vectors=0", *(overrides or [])]))
    queries = dev_queries(pipeline)
    with served(pipeline) as url:
        ways: dict[str, tuple[str, list[dict[str, Any]]]] = {
            "base": (f"{url}/v1/embeddings", embeddings(queries, BASE, texts)),
            "routed": (f"{url}/v1/embeddings", embeddings(queries, ROUTED_MODEL, texts)),
        }
        if search:
            collection = pipeline.recipe.expert_domains[0]
            searches = [
                ("base", BASE, "dense"),
                ("routed", ROUTED_MODEL, "dense"),
                ("hybrid", ROUTED_MODEL, "hybrid"),
            ]
            for name, model, mode in searches:
                asked = {"collection": collection, "model": model, "mode": mode}
                ways[f"{name} search"] = (f"{url}/v1/search", [{"query": q, **asked} for q in queries])
        if peer:
            ways["peer"] = (peer, embeddings(queries, peer_model, texts))
        rows, figures = [], []
        for count in clients or [1, 16]:
            for name, loads in measure(ways, count, seconds, rounds).items():
                rows.append([str(count), name, *summary(loads)])
                figures.append({"clients": count, "way": name, **numbers(loads)})
    placement = pipeline.recipe.serving.placement
    report(
        f"serving-{pipeline.recipe.name}-{placement}-{texts}",
        f"recipe {pipeline.recipe.name}, {placement} placement, {texts} queries a request",
        ["clients", "way", "requests/s", "p50 ms", "p95 ms", "failed"],
        rows,
        {"recipe": pipeline.recipe.model_dump(mode="json"), "texts": texts, "measured": figures},
    )


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


def embeddings(queries: list[str], model: str, texts: int) -> list[dict[str, Any]]:
    """Bodies of requests for embeddings, each with some queries."""
    return [
        {
            "model": model,
            "encoding_format": "base64",
            "input": [queries[(start + i) % len(queries)] for i in range(texts)],
        }
        for start in range(0, len(queries), texts)
    ]


def measure(
    ways: dict[str, tuple[str, list[dict[str, Any]]]], clients: int, seconds: float, rounds: int
) -> dict[str, list[Load]]:
    """Put load on every way in turns, after a short one to warm up."""
    loads: dict[str, list[Load]] = {name: [] for name in ways}
    for url, bodies in ways.values():
        run_load(url, bodies, clients, 1.0)
    for _ in range(rounds):
        for name, (url, bodies) in ways.items():
            loads[name].append(run_load(url, bodies, clients, seconds))
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
