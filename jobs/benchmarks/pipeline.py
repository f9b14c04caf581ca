"""Time and peak memory of every step of a recipe, in an empty storage folder.

python -m jobs.benchmarks.pipeline jobs/recipes/sample.yaml
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from routerretriever.config.loading import load_recipe
from routerretriever.runtime.progress import set_up

from jobs.benchmarks.measure import report, run_steps


def main(
    recipe: Path,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    storage: Annotated[
        Path | None, typer.Option(help="Storage folder; steps whose results are in it cost next to nothing.")
    ] = None,
) -> None:
    """Run the recipe and show what each step took."""
    if any(override.startswith("storage=") for override in overrides or ()):
        raise typer.BadParameter("the recipe's storage is not used here; name another with --storage")
    set_up(quiet=True)
    with tempfile.TemporaryDirectory() as scratch:
        settings = load_recipe(recipe, overrides)
        costs = run_steps(settings.model_copy(update={"storage": str(storage or scratch)}))
    rows = [[cost.step, f"{cost.seconds:.1f}", f"{cost.peak_mib:.0f}"] for cost in costs]
    total, peak = sum(cost.seconds for cost in costs), max(cost.peak_mib for cost in costs)
    rows.append(["all", f"{total:.1f}", f"{peak:.0f}"])
    report(
        f"pipeline-{settings.name}",
        f"recipe {settings.name}",
        ["step", "seconds", "peak MiB"],
        rows,
        {"recipe": settings.model_dump(mode="json"), "costs": costs},
    )


if __name__ == "__main__":
    typer.run(main)
