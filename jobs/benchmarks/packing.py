"""One pass over a batch of mixed experts: its time and memory for 1 to 100 experts, against the bare base.

python -m jobs.benchmarks.packing jobs/recipes/sample.yaml

The recipe must have been run. "routed" is what its own router and experts do; otherwise its experts are
taken again and again under new names. All run on ``serving.engine``, some by PyTorch too. Every batch of dev
queries is passed in all ways, one after the other, in another order each time, since each leaves the caches
as it needs them. The ratio is the median over batches, so that neither their lengths nor the machine's mood
matter. No service and no HTTP is involved.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from routerretriever.config.loading import load_recipe
from routerretriever.methods.experts import Experts
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.runtime.progress import set_up
from routerretriever.types import BASE, Vectors

from jobs.benchmarks.measure import report
from jobs.benchmarks.serving import dev_queries

Rows = list[list[int]]
"""Token ids of each query."""


def main(
    recipe: Path,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    counts: Annotated[list[int] | None, typer.Option(help="Experts in a pack.")] = None,
    batch: Annotated[int, typer.Option(help="Queries in a pass.")] = 32,
    passes: Annotated[int, typer.Option(help="Timed passes of each kind.")] = 30,
) -> None:
    """Time passes of the base, of one merged expert and of packs."""
    from routerretriever.adapters.kinds import batch_adapters, merge_adapter
    from routerretriever.adapters.tower import load_tower

    set_up(quiet=True)
    pipeline = Pipeline(load_recipe(recipe, overrides))
    folders = {
        name: expert.folder(pipeline.store) for name, expert in pipeline.method(Experts).experts.items()
    }
    queries = itertools.cycle(dev_queries(pipeline))
    encoder, merged, plain = (load_tower(pipeline.recipe.encoder) for _ in range(3))
    merge_adapter(merged, "one", next(iter(folders.values())))
    for tower in (encoder, merged):
        tower.use(pipeline.recipe.serving.engine)
    own, router = batch_adapters(encoder, folders), pipeline.method(Experts).router
    by_torch = batch_adapters(plain, folders)

    def weigh(rows: Rows) -> Vectors:
        return router.weights(encoder.token_features(rows, pipeline.recipe.routing.features))

    ways: dict[str, Callable[[Rows], object]] = {
        BASE: encoder.embed_tokens,
        "base, and routing": lambda rows: (weigh(rows), encoder.embed_tokens(rows)),
        "routed": lambda rows: own.embed(rows, weigh(rows), router.experts),
        "one merged": merged.embed_tokens,
        "base, PyTorch": plain.embed_tokens,
        "routed, PyTorch": lambda rows: by_torch.embed(rows, weigh(rows), router.experts),
    }
    base_megabytes = sum(w.numel() * w.element_size() for w in encoder.tower.parameters()) / 1e6
    megabytes = {"routed": own.megabytes, "routed, PyTorch": own.megabytes}
    for count in counts or [1, 2, 6, 24, 100]:
        names = [f"expert-{number}" for number in range(count)]
        pack = batch_adapters(encoder, dict(zip(names, itertools.cycle(folders.values()), strict=False)))
        one = np.eye(count, dtype=np.float32)[np.arange(batch) % count]
        # Two of them a query is somewhat more than the default router mixes.
        for label, weights in (("", one), (", two a query", 0.7 * one + 0.3 * np.roll(one, 1, axis=1))):
            ways[f"{count} packed{label}"] = partial(pack.embed, weights_BT=weights, experts=names)
            megabytes[f"{count} packed{label}"] = pack.megabytes
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(passes + 3):
        rows = encoder.tokenize_queries(list(itertools.islice(queries, batch)))
        for way, run in random.sample(list(ways.items()), len(ways)):
            start = time.perf_counter()
            run(rows)
            if number >= 3:  # the first ones warm up
                seconds[way].append(time.perf_counter() - start)
    table = [
        [
            way,
            f"{1000 * statistics.median(times):.1f}",
            f"{statistics.median(np.divide(times, seconds[BASE])):.2f}",
            f"{base_megabytes + megabytes.get(way, 0.0):.0f}",
        ]
        for way, times in seconds.items()
    ]
    report(
        f"packing-{pipeline.recipe.name}-{batch}",
        f"recipe {pipeline.recipe.name}: a pass over {batch} queries",
        ["experts", "median ms", "of base", "weights MB"],
        table,
        {"recipe": pipeline.recipe.model_dump(mode="json"), "seconds": seconds, "megabytes": megabytes,
         BASE: base_megabytes},
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
