"""Many experts behind one endpoint, over HTTP: throughput, latency and memory, by number and placement.

python -m jobs.benchmarks.many_experts jobs/recipes/sample.yaml --counts 2 --counts 24 --counts 100
python -m jobs.benchmarks.many_experts jobs/recipes/sample.yaml --counts 2 --counts 24 \
    --set routing.mix=vectors --set serving.placement=per_expert --set serving.expert.cpus=0.01

The recipe must have been run. Its experts are taken again and again under new names, registered in a model of
their own, and asked by name in turns, so a batch is of as many experts as it has queries. "Base" is asked of
the same service, in the same rounds.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from routerretriever.config import BASE, Recipe, load_recipe
from routerretriever.console import log, set_up
from routerretriever.evaluation.evaluate import ROUTED
from routerretriever.pipeline import Pipeline
from routerretriever.registry import Registry
from routerretriever.registry.bundle import ServiceFacts
from routerretriever.routing.constant import ConstantRouter

from jobs.benchmarks.measure import memories_mib, report
from jobs.benchmarks.serving import dev_queries, embeddings, measure, numbers, summary


def main(
    recipe: Path,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    counts: Annotated[list[int] | None, typer.Option(help="Experts in the service.")] = None,
    clients: Annotated[list[int] | None, typer.Option(help="Clients that ask at the same time.")] = None,
    seconds: Annotated[float, typer.Option(help="Of each way in each round.")] = 8.0,
    rounds: Annotated[int, typer.Option(help="How often each way is measured.")] = 3,
) -> None:
    """Serve so many experts, and put load on all of them."""
    from routerretriever.serving import served

    set_up(quiet=True)
    pipeline = Pipeline(load_recipe(recipe, overrides))
    placement = pipeline.recipe.serving.placement
    queries = dev_queries(pipeline)
    rows, figures = [], []
    for count in counts or [2, 24]:
        names = [f"expert-{number:03}" for number in range(count)]
        crowd = Pipeline(_registered(pipeline, names))
        with served(crowd) as url:
            asked = zip(embeddings(queries, BASE, 1), itertools.cycle(names), strict=False)
            bodies = {
                "base": embeddings(queries, BASE, 1),
                "experts": [{**body, "model": name} for body, name in asked],
            }
            ways = {way: (f"{url}/v1/embeddings", own) for way, own in bodies.items()}
            for number in clients or [1, 16]:
                loads_by_way = measure(ways, number, seconds, rounds)
                memory = sum(memories_mib("ray::ServeReplica"))
                for way, loads in loads_by_way.items():
                    rows.append([str(count), str(number), way, *summary(loads), f"{memory:.0f}"])
                    figures.append(
                        {"experts": count, "clients": number, "way": way, "mib": memory, **numbers(loads)}
                    )
                    log.info("%s", rows[-1])
    report(
        f"many-experts-{pipeline.recipe.name}-{placement}",
        f"recipe {pipeline.recipe.name}, {placement} placement, one query a request",
        ["experts", "clients", "way", "requests/s", "p50 ms", "p95 ms", "failed", "replicas MiB"],
        rows,
        {"recipe": pipeline.recipe.model_dump(mode="json"), "measured": figures},
    )


def _registered(pipeline: Pipeline, names: list[str]) -> Recipe:
    """A recipe whose released bundle has experts of these names."""
    recipe, made = pipeline.recipe, list(pipeline.experts.values())
    served = next(iter(recipe.expert_domains))
    crowd = recipe.model_copy(
        update={
            "registry": recipe.registry.model_copy(
                update={"name": f"{recipe.registry.name}-{len(names)}-copies"}
            ),
            # Experts on their own can be served in either placement.
            "routing": recipe.routing.model_copy(update={"mix": "vectors"}),
            "serving": recipe.serving.model_copy(update={"collections": (served,)}),
        }
    )
    copies = dict(zip(names, itertools.cycle(made), strict=False))
    experts = {name: replace(expert, domain=name) for name, expert in copies.items()}
    router = ConstantRouter(names, np.full(len(names), 1 / len(names), dtype=np.float32))
    facts = ServiceFacts({served: pipeline.corpora[served].key}, {}, {})
    Registry(crowd, pipeline.store).register_bundle(
        crowd, router, experts, pipeline.evaluation, ROUTED, facts, pipeline.store
    )
    return crowd


if __name__ == "__main__":
    typer.run(main)
