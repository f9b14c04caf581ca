"""Commands that make things: single steps, the whole run, a domain more or less."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from routerretriever.cli.app import (
    Overrides,
    Quiet,
    RecipeFile,
    Release,
    app,
    open_pipeline,
    repeated,
    set_up_output,
    show_evaluation,
    tell_generated,
    tell_idle_challenger,
    tell_registered,
)


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    quiet: Quiet = False,
    ask: Annotated[
        bool, typer.Option(help="Serve the result and ask it one question, then shut down.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
) -> None:
    """Do all of it: encode, train, score, route, evaluate, register, serve, ask, shut down."""
    from routerretriever.pipeline.plan import plan_run, plan_table
    from routerretriever.runtime.progress import console, log, show

    pipeline = open_pipeline(recipe, overrides, quiet)
    pipeline.require_test_sets()
    pipeline.open_registry()
    if dry_run:
        _ = pipeline.preflight
        show(plan_table(plan_run(pipeline)))
        return
    show_evaluation(pipeline.evaluation)
    registered = pipeline.register()
    if ask:
        from routerretriever.serving.deployments.run import ask_once

        ask_once(pipeline)
    tell_registered(registered, recipe, overrides)
    log.info("figures and tables: %s", pipeline.report_folder)
    command = f"routerretriever serve {shlex.quote(str(recipe))}{repeated(overrides)}"
    console.print(f"next: {command}", soft_wrap=True)


@app.command()
def encode(recipe: RecipeFile, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Encode the documents of all collections, once, with the base encoder."""
    open_pipeline(recipe, overrides, quiet).build(["encode"])


@app.command()
def train(recipe: RecipeFile, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Train the experts, in parallel; finished ones are skipped."""
    open_pipeline(recipe, overrides, quiet).build(["train"])


@app.command()
def score(recipe: RecipeFile, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Score the training queries with every expert and the base."""
    open_pipeline(recipe, overrides, quiet).build(["score"])


@app.command()
def pilots(recipe: RecipeFile, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Build the pilot library, or fit the recipe's other router, from the scores."""
    from routerretriever.runtime.progress import log

    router = open_pipeline(recipe, overrides, quiet).deployed.deployment().router
    log.info("router %s over %s", router.kind, ", ".join(router.experts))


@app.command()
def evaluate(
    recipe: RecipeFile,
    overrides: Overrides = None,
    quiet: Quiet = False,
    judge: Annotated[
        bool,
        typer.Option(
            "--judge",
            help="Also have the language model of judging.writer grade what the systems find.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --judge: only say how much there is to grade.")
    ] = False,
) -> None:
    """Evaluate base, experts, router and oracles on the test sets."""
    from routerretriever.runtime.progress import show

    if dry_run and not judge:
        raise typer.BadParameter("--dry-run goes with --judge")
    pipeline = open_pipeline(recipe, overrides, quiet)
    if not judge:
        show_evaluation(pipeline.evaluation)
        return
    from routerretriever.reports.plots import section_table
    from routerretriever.studies import runs as studies
    from routerretriever.studies.judging_tables import estimate_table, judging_sections

    if dry_run:
        show(estimate_table(studies.estimate_judging(pipeline)))
        return
    studies.open_judge(pipeline)  # what is wrong with it is told before anything is computed
    show_evaluation(pipeline.evaluation)
    for section in judging_sections(studies.judge_run(pipeline)):
        show(section_table(section))


@app.command()
def register(
    recipe: RecipeFile, overrides: Overrides = None, quiet: Quiet = False, release: Release = True
) -> None:
    """Register the experts and the router bundle in MLflow."""
    tell_registered(open_pipeline(recipe, overrides, quiet).register(release), recipe, overrides)


@app.command()
def calibrate(
    recipe: RecipeFile,
    domain: Annotated[str, typer.Option(help="The domain whose dev queries are asked.")],
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Learn how much BM25 counts in one domain; the next `register` finds the figures there."""
    from routerretriever.reports.tables import calibration_table
    from routerretriever.runtime.progress import log, show

    pipeline = open_pipeline(recipe, overrides, quiet)
    found = pipeline.calibrate(domain)
    show(calibration_table(found.domain, found.queries, found.ndcg_at_10, found.weight, found.prior))
    if domain not in pipeline.recipe.calibrated_domains:
        log.warning("set domains.%s.calibrate: true in the recipe, so that `register` uses this", domain)


@app.command("add-expert")
def add_expert(
    recipe: RecipeFile,
    name: Annotated[str, typer.Option(help="Name of the new domain.")],
    path: Annotated[
        str | None, typer.Option(help="Its collection: a BEIR folder, from data_root on, or sample:<domain>.")
    ] = None,
    documents: Annotated[
        Path | None,
        typer.Option(help="Or a file or folder of documents without queries; these are generated."),
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option(help='With --documents: up to eight queries of people, JSONL, {"query": ...}.'),
    ] = None,
    quiet: Quiet = False,
    release: Release = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --documents: only say what generation will take.")
    ] = False,
) -> None:
    """Add a domain: train its expert, score what is missing, register a bundle, update the recipe file.

    From documents alone, queries are generated first. The expert is deployed only if held-out queries show
    that it helps.
    """
    from routerretriever.pipeline.documents import add_from_documents, estimate_documents
    from routerretriever.pipeline.domains import add_domain

    if (path is None) == (documents is None):
        raise typer.BadParameter("name either --path or --documents")
    if documents is None and (examples is not None or dry_run):
        raise typer.BadParameter("--examples and --dry-run go with --documents")
    set_up_output(quiet)
    if documents is None:
        assert path is not None
        tell_registered(add_domain(recipe, name, path, release), recipe)
        return
    if dry_run:
        from routerretriever.runtime.progress import console

        console.print(estimate_documents(recipe, name, documents, examples).told(), soft_wrap=True)
        return
    generated, registered = add_from_documents(recipe, name, documents, examples, release)
    tell_generated(generated)
    tell_registered(registered, recipe)


@app.command()
def learn(recipe: RecipeFile, quiet: Quiet = False) -> None:
    """Turn users' feedback into judgements, train the experts concerned again, and challenge the release.

    Documents are not encoded again. Held-out queries decide whether an expert is deployed. The recipe names
    the new collections once the challenger is released.
    """
    from routerretriever.pipeline.learning import learn as learn_from_feedback
    from routerretriever.runtime.progress import console

    set_up_output(quiet)
    found, registered = learn_from_feedback(recipe)
    for one in found:
        console.print(one.told(), soft_wrap=True)
    if registered is None:
        console.print("nothing to learn: no new judgements that users agree on")
        return
    tell_registered(registered, recipe)
    console.print(
        f"version {registered.version} is the challenger. {recipe} stays as it is until that is released",
        soft_wrap=True,
    )
    tell_idle_challenger(recipe)


@app.command("remove-expert")
def remove_expert(
    recipe: RecipeFile,
    name: Annotated[str, typer.Option(help="Name of the domain whose expert goes.")],
    quiet: Quiet = False,
    release: Release = True,
) -> None:
    """Remove an expert: register a bundle without it, update the recipe file. Nothing is retrained."""
    from routerretriever.pipeline.domains import remove_domain

    set_up_output(quiet)
    tell_registered(remove_domain(recipe, name, release), recipe)
