"""Commands that study a finished run, and choose its router and how its experts are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from routerretriever.cli.app import (
    Overrides,
    Quiet,
    RecipeFile,
    app,
    check_numbers,
    numbers,
    open_pipeline,
    set_up_output,
    tell_generated,
)


@app.command("tune-router")
def tune_router(
    recipe: RecipeFile,
    overrides: Overrides = None,
    quiet: Quiet = False,
    unseen_share: Annotated[
        float, typer.Option(help="How much queries of domains without an expert count.", min=0, max=1)
    ] = 0.2,
    write: Annotated[bool, typer.Option("--write", help="Put the best settings into the recipe.")] = False,
    rows: Annotated[int, typer.Option(help="How many of the best are shown.", min=1)] = 15,
) -> None:
    """Choose the router by dev queries: tries kinds, features, mixings and fallbacks, and shows a table."""
    from routerretriever.pipeline.domains import require_editable, set_routing
    from routerretriever.runtime.progress import log, show
    from routerretriever.studies import runs as studies
    from routerretriever.studies.tuning import describe, trials_table

    if write:
        require_editable(recipe)
    trials = studies.tune_router(open_pipeline(recipe, overrides, quiet), unseen_share)
    show(trials_table(trials, rows))
    if write:
        set_routing(recipe, trials[0].settings)
        log.info("%s: routing is now: %s", recipe, describe(trials[0].settings))


@app.command("tune-training")
def tune_training(
    recipe: RecipeFile,
    domains: Annotated[
        list[str] | None,
        typer.Option("--domain", help="Only this domain's expert; may be given again.", metavar="NAME"),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Experts of each domain in a trial.", min=1)] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the trials and their steps.")] = False,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Choose how experts are trained by dev queries: tries the settings of `tuning.space`, shows a table."""
    from routerretriever.reports.plots import section_table
    from routerretriever.runtime.progress import console, show
    from routerretriever.studies import runs as studies
    from routerretriever.studies.training_search import ranking_sections

    pipeline = open_pipeline(recipe, overrides, quiet)
    if dry_run:
        show(studies.plan_training_search(pipeline, domains, seeds).table(pipeline.store))
        return
    ranking = studies.tune_training(pipeline, domains, seeds)
    for section in ranking_sections(ranking):
        show(section_table(section))
    console.print(ranking.advice(), soft_wrap=True)


@app.command()
def analyse(
    recipe: RecipeFile,
    overrides: Overrides = None,
    quiet: Quiet = False,
    order: Annotated[
        str | None, typer.Option(help="Experts in the order in which they are added: a,b,c.", metavar="NAMES")
    ] = None,
    clusters: Annotated[
        str,
        typer.Option(help="Pilot centroids per group to try.", metavar="NUMBERS", callback=check_numbers),
    ] = "1,2,4,8",
) -> None:
    """The paper's analyses: with and without an expert, experts one by one, centroids, queries in a plane."""
    from routerretriever.reports.plots import section_table
    from routerretriever.runtime.progress import show
    from routerretriever.studies.analyses import analyses_sections

    names = [name.strip() for name in order.split(",")] if order else None
    from routerretriever.studies import runs as studies

    analyses = studies.analyse_run(open_pipeline(recipe, overrides, quiet), names, numbers(clusters))
    for section in analyses_sections(analyses):
        show(section_table(section))


@app.command("noise-floor")
def noise_floor(
    recipe: RecipeFile,
    domain: Annotated[str, typer.Option(help="The domain whose expert is trained again and again.")],
    copies: Annotated[int, typer.Option(help="How often, each time with another seed.", min=2)] = 6,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """How much of two oracles' gain is luck: by copies of one expert, and by the words of other queries."""
    from routerretriever.reports.plots import section_table
    from routerretriever.runtime.progress import show
    from routerretriever.studies import runs as studies
    from routerretriever.studies.analyses import noise_floor_sections

    floor = studies.measure_noise_floor(open_pipeline(recipe, overrides, quiet), domain, copies)
    for section in noise_floor_sections(floor):
        show(section_table(section))


@app.command("learning-curve")
def learning_curve(
    recipe: RecipeFile,
    domain: Annotated[str, typer.Option(help="The domain whose expert is trained on fewer queries.")],
    sizes: Annotated[
        str | None,
        typer.Option(
            help="Numbers of training queries beside all; by default an eighth, a quarter and a half.",
            metavar="NUMBERS",
            callback=check_numbers,
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(help="Experts of each size; with 2 or more the page shows their range.", min=1)
    ] = 1,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Quality by number of training queries: experts trained on nested samples, measured on test."""
    from routerretriever.reports.plots import section_table
    from routerretriever.runtime.progress import show
    from routerretriever.studies import runs as studies
    from routerretriever.studies.learning_curve import learning_curve_section

    counts = numbers(sizes) if sizes else None
    curve = studies.draw_learning_curve(open_pipeline(recipe, overrides, quiet), domain, counts, seeds)
    show(section_table(learning_curve_section(curve)))


@app.command()
def reproduce(
    file: Annotated[Path, typer.Argument(help="Expected figures, a YAML file.", metavar="FILE")],
    only: Annotated[
        list[str] | None, typer.Option(help="Run this case; may be given again.", metavar="CASE")
    ] = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Run recipes and compare with expected figures: OK, OKish or FAIL; exit code 1 if any fails."""
    from routerretriever.runtime.progress import show

    set_up_output(quiet)
    from routerretriever.studies import reproduction

    outcomes = reproduction.reproduce(file, only or [], overrides or [])
    show(reproduction.reproduction_table(outcomes))
    if any(one.verdict == "FAIL" for one in outcomes):
        raise typer.Exit(1)


@app.command()
def assess(
    recipe: RecipeFile,
    documents: Annotated[
        Path, typer.Option(help="A file or folder of documents, or an imported BEIR folder.")
    ],
    name: Annotated[
        str, typer.Option(help="What the collection is called; add-expert with it uses the same queries.")
    ] = "assessed",
    examples: Annotated[
        Path | None, typer.Option(help='Up to eight queries of people: JSONL, {"query": ...}.')
    ] = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Which of the recipe's experts, the base or BM25 helps documents that have no queries yet."""
    from routerretriever.config.loading import load_recipe
    from routerretriever.runtime.progress import console, show
    from routerretriever.studies.assess import assess_documents

    set_up_output(quiet)
    settings = load_recipe(recipe, overrides)
    found = assess_documents(settings, name, documents, examples, tell_generated)
    show(found.table())
    console.print(found.verdict(), soft_wrap=True)
