"""Many experts behind one endpoint, over HTTP: throughput, latency and memory, by number and placement.

python -m jobs.benchmarks.many_experts jobs/recipes/sample.yaml --counts 2 --counts 24 --counts 100
python -m jobs.benchmarks.many_experts jobs/recipes/sample.yaml --counts 2 --counts 24 \
    --set routing.merge=embeddings --set serving.placement=dedicated --set serving.expert.cpus=0.01

The recipe must have been run. Its experts are taken again and again under new names, registered in a model of
their own, and asked by name in turns, so a batch is of as many experts as it has queries. "Base" is asked of
the same service, in the same rounds.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from routerretriever.bundle.build import ServiceFacts
from routerretriever.config.recipe import Recipe
from routerretriever.methods.experts import Experts
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.routing.constant import ConstantRouter
from routerretriever.runtime.progress import log, set_up
from routerretriever.types import BASE

from jobs.benchmarks.load import run_load
from jobs.benchmarks.measure import memories_mib, pipeline_under_load, report
from jobs.benchmarks.serving import dev_queries, embeddings, measure, numbers, released_beside, summary


def main(
    recipe: Path,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    counts: Annotated[list[int] | None, typer.Option(help="Experts in the service.")] = None,
    clients: Annotated[list[int] | None, typer.Option(help="Clients that ask at the same time.")] = None,
    seconds: Annotated[float, typer.Option(help="Of each way in each round.")] = 8.0,
    rounds: Annotated[int, typer.Option(help="How often each way is measured.")] = 3,
) -> None:
    """Serve so many experts, and put load on all of them."""
    from routerretriever.serving.deployments.run import served

    set_up(quiet=True)
    pipeline = pipeline_under_load(recipe, overrides)
    placement = pipeline.recipe.serving.placement
    queries = dev_queries(pipeline)
    rows, figures = [], []
    for count in counts or [2, 24]:
        names = [f"expert-{number:03}" for number in range(count)]
        crowd = Pipeline(_registered(pipeline, names))
        with served(crowd) as url:
            to_base = embeddings(queries, BASE, 1)
            to_experts = [
                {**body, "model": name} for body, name in zip(to_base, itertools.cycle(names), strict=False)
            ]
            where = f"{url}/v1/embeddings"
            asked = {"base": to_base, "experts": to_experts}
            for number in clients or [1, 16]:
                ways = {way: partial(run_load, where, bodies, number) for way, bodies in asked.items()}
                loads_by_way = measure(ways, seconds, rounds)
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
    copies = dict(zip(names, itertools.cycle(pipeline.method(Experts).experts.values()), strict=False))
    searched = pipeline.recipe.expert_domains[0]
    return released_beside(
        pipeline,
        f"{len(names)}-copies",
        ServiceFacts({searched: pipeline.corpora[searched].key}, {}, {}),
        {name: replace(expert, domain=name) for name, expert in copies.items()},
        ConstantRouter(names, np.full(len(names), 1 / len(names), dtype=np.float32)),
        # Experts on their own can be served in either placement.
        pipeline.recipe.routing.model_copy(update={"merge": "embeddings"}),
    )


if __name__ == "__main__":
    typer.run(main)
