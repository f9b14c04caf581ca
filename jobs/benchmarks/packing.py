"""One pass over a batch of mixed experts: its time and memory for 1 to 100 experts, against the bare base.

python -m jobs.benchmarks.packing jobs/recipes/sample.yaml

The recipe must have been run. Its experts are taken again and again under new names. Passes are timed in
turns, so that a change of the machine's mood meets all of them. No service and no HTTP is involved.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from routerretriever.config import BASE, load_recipe
from routerretriever.console import set_up
from routerretriever.pipeline import Pipeline

from jobs.benchmarks.measure import report
from jobs.benchmarks.serving import dev_queries


def main(
    recipe: Path,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    counts: Annotated[list[int] | None, typer.Option(help="Experts in a pack.")] = None,
    batch: Annotated[int, typer.Option(help="Queries in a pass.")] = 32,
    passes: Annotated[int, typer.Option(help="Timed passes of each kind.")] = 30,
) -> None:
    """Time passes of the base, of one merged expert and of packs."""
    from routerretriever.encoder import PackedExperts, load_encoder, merge_expert

    set_up(quiet=True)
    pipeline = Pipeline(load_recipe(recipe, overrides))
    folders = [expert.folder(pipeline.store) for expert in pipeline.experts.values()]
    queries = dev_queries(pipeline)[:batch]
    encoder, merged = (load_encoder(pipeline.recipe.encoder) for _ in range(2))
    merge_expert(merged, "one", folders[0])
    rows = encoder.tokenize_queries(queries)
    ways: dict[str, Callable[[], object]] = {
        "base": lambda: encoder.embed_tokens(rows),
        "one merged": lambda: merged.embed_tokens(rows),
    }
    megabytes = {}
    base_megabytes = sum(w.numel() * w.element_size() for w in encoder.tower.parameters()) / 1e6
    for count in counts or [1, 2, 6, 24, 100]:
        names = [f"expert-{number}" for number in range(count)]
        pack = PackedExperts(encoder, dict(zip(names, itertools.cycle(folders), strict=False)))
        one = np.eye(count, dtype=np.float32)[np.arange(len(rows)) % count]
        # Two of them a query is somewhat more than the default router mixes.
        for label, weights in (("", one), (", two a query", 0.7 * one + 0.3 * np.roll(one, 1, axis=1))):
            ways[f"{count} packed{label}"] = partial(pack.embed, rows, weights, names)
            megabytes[f"{count} packed{label}"] = pack.megabytes
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(passes + 3):
        for way, run in ways.items():
            start = time.perf_counter()
            run()
            if number >= 3:  # the first ones warm up
                seconds[way].append(time.perf_counter() - start)
    base = statistics.median(seconds["base"])
    table = [
        [
            way,
            f"{1000 * statistics.median(times):.1f}",
            f"{statistics.median(times) / base:.2f}",
            f"{base_megabytes + megabytes.get(way, 0.0):.0f}",
        ]
        for way, times in seconds.items()
    ]
    report(
        f"packing-{pipeline.recipe.name}",
        f"recipe {pipeline.recipe.name}: a pass over {len(rows)} queries",
        ["experts", "median ms", "of base", "weights MB"],
        table,
        {"recipe": pipeline.recipe.model_dump(mode="json"), "seconds": seconds, "megabytes": megabytes,
         BASE: base_megabytes},
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
