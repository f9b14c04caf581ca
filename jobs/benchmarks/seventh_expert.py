"""Cost of adding one domain to a finished recipe, against building everything anew with it.

python -m jobs.benchmarks.seventh_expert jobs/recipes/sample.yaml --domain garden
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from routerretriever.config.loading import load_recipe
from routerretriever.runtime.progress import log, set_up

from jobs.benchmarks.measure import report, run_steps


def main(
    recipe: Path,
    domain: Annotated[str, typer.Option(help="The domain that is added last.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
) -> None:
    """Build without the domain, add it, then build everything with it in another empty folder."""
    set_up(quiet=True)
    settings = load_recipe(recipe, overrides)
    if domain not in settings.domains:
        raise typer.BadParameter(f"no domain {domain!r} in {recipe}; there are {', '.join(settings.domains)}")
    others = {name: value for name, value in settings.domains.items() if name != domain}
    added_domain = settings.domains[domain].model_copy(update={"expert": True})
    without = settings.model_copy(update={"domains": others})
    with_it = settings.model_copy(update={"domains": {**others, domain: added_domain}})
    with tempfile.TemporaryDirectory() as grown, tempfile.TemporaryDirectory() as anew:
        log.info("building %d experts", len(without.expert_domains))
        run_steps(without.model_copy(update={"storage": grown}))
        log.info("adding %s", domain)
        added = run_steps(with_it.model_copy(update={"storage": grown}))
        log.info("building %d experts anew", len(with_it.expert_domains))
        built = run_steps(with_it.model_copy(update={"storage": anew}))
    pairs = list(zip(added, built, strict=True))
    rows = [[one.step, f"{one.seconds:.1f}", f"{other.seconds:.1f}"] for one, other in pairs]
    sums = [sum(cost.seconds for cost in costs) for costs in (added, built)]
    rows.append(["all", *(f"{total:.1f}" for total in sums)])
    rows.append(["ratio", f"1 : {sums[1] / sums[0]:.1f}", ""])
    report(
        f"seventh-expert-{settings.name}",
        f"recipe {settings.name}: adding {domain}, seconds",
        ["step", "add", "build anew"],
        rows,
        {"recipe": settings.model_dump(mode="json"), "domain": domain, "add": added, "anew": built},
    )


if __name__ == "__main__":
    typer.run(main)
