"""What a precision of the compiled encoder costs in nDCG@10, for base and routed queries, against PyTorch.

python -m jobs.benchmarks.precision jobs/recipes/sample.yaml
python -m jobs.benchmarks.precision jobs/recipes/sample.yaml --set serving.engine.precision=bf16

The recipe must have been run. Documents stay as they were encoded, as in a service. Where the processor has
no units for a precision, products are made in fp32 all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from routerretriever.config.loading import load_recipe
from routerretriever.datasets.judgements import judgements_step, load_judgements
from routerretriever.measures import measure
from routerretriever.methods.experts import Experts
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.runtime.progress import set_up
from routerretriever.types import Vectors

from jobs.benchmarks.measure import report

_DEPTH = 100

Encode = Callable[[list[str]], Vectors]


def main(
    recipe: Path,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    split: Annotated[str, typer.Option(help="Whose queries are asked.")] = "test",
) -> None:
    """Search every collection with the vectors of both."""
    set_up(quiet=True)
    pipeline = Pipeline(load_recipe(recipe, ["serving.engine.precision=int8", *(overrides or [])]))
    exact, engine = systems(pipeline, compiled=False), systems(pipeline, compiled=True)
    rows, figures = [], []
    for collection in pipeline.require_test_sets():
        step = judgements_step(collection, split)
        pipeline.workspace.build([step])
        asked = load_judgements(pipeline.store, step.key)
        index, ids = pipeline.workspace.open_index(collection.name), list(asked.queries)
        for system in exact:
            vectors = [by[system](list(asked.queries.values())) for by in (exact, engine)]
            before, after = (
                100 * measure(asked.qrels, index.run(ids, one, _DEPTH, asked.own_kept, asked.passages), ids)
                .ndcg_at_10.mean()
                for one in vectors
            )  # fmt: skip
            lengths = [np.linalg.norm(one, axis=1) for one in vectors]
            cosine = ((vectors[0] * vectors[1]).sum(axis=1) / (lengths[0] * lengths[1])).min()
            rows.append([
                collection.name, system, str(len(ids)), f"{before:.1f}", f"{after:.1f}",
                f"{after - before:+.2f}", f"{cosine:.4f}",
            ])  # fmt: skip
            figures.append(
                {"collection": collection.name, "system": system, "fp32": float(before),
                 "engine": float(after), "least_cosine": float(cosine)}
            )  # fmt: skip
    precision = pipeline.recipe.serving.engine.precision
    report(
        f"precision-{pipeline.recipe.name}-{precision}",
        f"recipe {pipeline.recipe.name}: {precision} against fp32, nDCG@10 x 100 on {split}",
        ["collection", "system", "queries", "fp32", precision, "gained", "least cosine"],
        rows,
        {"recipe": pipeline.recipe.model_dump(mode="json"), "split": split, "figures": figures},
    )


def systems(pipeline: Pipeline, compiled: bool) -> dict[str, Encode]:
    """Base and routed experts, run by the recipe's engine or by PyTorch."""
    from routerretriever.adapters.kinds import batch_adapters
    from routerretriever.adapters.tower import load_tower

    method, recipe = pipeline.method(Experts), pipeline.recipe
    encoder = load_tower(recipe.encoder)
    if compiled:
        encoder.use(recipe.serving.engine)
    experts = batch_adapters(
        encoder, {name: one.folder(pipeline.store) for name, one in method.experts.items()}
    )

    def routed(texts: list[str]) -> Vectors:
        rows = encoder.tokenize_queries(texts)
        weights = method.router.weights(encoder.token_features(rows, recipe.routing.features))
        return experts.embed(rows, weights, method.router.experts)

    return {"base": encoder.encode_queries, "routed": routed}


if __name__ == "__main__":
    typer.run(main)
