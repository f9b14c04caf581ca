"""A recipe run with several seeds of training: mean of each system on each collection, and the range.

python -m jobs.benchmarks.seeds jobs/recipes/collections.yaml --seeds 0 --seeds 1 --seeds 2

What storage has of a seed is not made again. Figures are nDCG@10 x 100 on test queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from routerretriever.config.loading import load_recipe
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.runtime.progress import log, set_up

from jobs.benchmarks.measure import report

SYSTEMS = ("base", "own expert", "RouterRetriever", "base + BM25", "routed + BM25")
_WITH, _WITHOUT = "mean, with an expert", "mean, without"


def main(
    recipe: Path,
    seeds: Annotated[list[int] | None, typer.Option(help="By default 0, 1 and 2.")] = None,
    systems: Annotated[list[str] | None, typer.Option(help="As the evaluation calls them.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
) -> None:
    """Evaluate each seed, and show mean and range."""
    set_up(quiet=True)
    chosen, found = seeds or [0, 1, 2], []
    for seed in chosen:
        settings = load_recipe(recipe, [*(overrides or []), f"training.seed={seed}"])
        found.append(figures_of(Pipeline(settings), systems or SYSTEMS))
        log.info("seed %d: %s", seed, found[-1])
    report(
        f"seeds-{settings.name}",
        f"recipe {settings.name}, seeds {', '.join(map(str, chosen))}: nDCG@10 x 100",
        ["collection", *found[0]],
        table(found),
        {"recipe": settings.model_dump(mode="json"), "seeds": chosen, "figures": found},
    )


def figures_of(pipeline: Pipeline, systems: Sequence[str]) -> dict[str, dict[str, float]]:
    """nDCG@10 x 100 by system and collection, and their means."""
    evaluation = pipeline.evaluation
    groups = {_WITH: evaluation.with_expert, _WITHOUT: evaluation.zero_shot}
    made = {}
    for system in systems:
        measured = evaluation.measured[system]
        own = {name: 100 * float(each.ndcg_at_10.mean()) for name, each in measured.items()}
        means = {
            group: float(np.mean([own[name] for name in names]))
            for group, names in groups.items()
            if names and own.keys() >= set(names)
        }
        made[system] = {**own, **means}
    return made


def table(found: Sequence[Mapping[str, Mapping[str, float]]]) -> list[list[str]]:
    """A row a collection: mean over seeds, with the range where there is one, and a dash where nothing is."""
    names = list(dict.fromkeys(name for one in found for figures in one.values() for name in figures))
    names.sort(key=lambda name: name in (_WITH, _WITHOUT))
    return [
        [name, *(_cell([one[system][name] for one in found if name in one[system]]) for system in found[0])]
        for name in names
    ]


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    least, most = f"{min(values):.1f}", f"{max(values):.1f}"
    mean = f"{np.mean(values):.1f}"
    return mean if least == most else f"{mean} ({least}–{most})"


if __name__ == "__main__":
    typer.run(main)
