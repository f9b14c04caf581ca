"""The command ``routerretriever``: thin, and quick to show its help. All work is done by the library."""

from __future__ import annotations

import re
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import routerretriever
from routerretriever.cli.datasets import datasets_app
from routerretriever.errors import RouterRetrieverError

if TYPE_CHECKING:
    from routerretriever.pipeline.pipeline import Pipeline, Registered
    from routerretriever.registry.registry import Registry

app = typer.Typer(
    help="Many expert retrievers behind one endpoint. A recipe (YAML) names the collections and settings; "
    "each step makes what it needs and skips what is there.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(datasets_app, name="datasets")

RecipeFile = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", metavar="RECIPE")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Replace a setting: dotted.key=value.", metavar="KEY=VALUE")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Plain log lines, no progress bars.")]
Release = Annotated[bool, typer.Option(help="Move the registry's alias to the new bundle.")]


def main() -> None:
    """Run the command; what a person can act on is one line, a mistake of ours is a traceback."""
    try:
        app()
    except RouterRetrieverError as error:
        _fail(error)
    except Exception:
        traceback.print_exc()
        print(
            f"error: this is a mistake of RouterRetriever {routerretriever.__version__}, not yours; please "
            "report it with the lines above and the command that you typed",
            file=sys.stderr,
        )
        sys.exit(70)


def main_for(command: str) -> None:
    """Run one command with this process's arguments; logs are plain, as jobs have no terminal."""
    sys.argv[1:1] = [command]
    if "--quiet" not in sys.argv:
        sys.argv.append("--quiet")
    main()


def _fail(error: Exception) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)


def _check_numbers(text: str | None) -> str | None:
    # typer has no type for several numbers in one option, but it names the option whose callback complains.
    if text is not None and not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise typer.BadParameter(f"found {text!r}; give numbers from 1 up, separated by commas: 1,2,4")
    return text


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _pipeline(recipe: Path, overrides: list[str] | None, quiet: bool) -> Pipeline:
    from routerretriever.config.loading import load_recipe
    from routerretriever.runtime.progress import log, set_up

    set_up(quiet)
    settings = load_recipe(recipe, overrides)
    from routerretriever.pipeline.pipeline import Pipeline

    pipeline = Pipeline(settings)
    log.info("recipe %s; results under %s", settings.name, pipeline.store.uri)
    return pipeline


@app.command()
def encode(recipe: RecipeFile, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Encode the documents of all collections, once, with the base encoder."""
    _pipeline(recipe, overrides, quiet).build(["encode"])


@app.command()
def train(recipe: RecipeFile, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Train the experts, in parallel; finished ones are skipped."""
    _pipeline(recipe, overrides, quiet).build(["train"])


@app.command()
def score(recipe: RecipeFile, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Score the training queries with every expert and the base."""
    _pipeline(recipe, overrides, quiet).build(["score"])


@app.command()
def pilots(recipe: RecipeFile, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Build the pilot library, or fit the recipe's other router, from the scores."""
    from routerretriever.runtime.progress import log

    router = _pipeline(recipe, overrides, quiet).deployed.deployment().router
    log.info("router %s over %s", router.kind, ", ".join(router.experts))


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
    """Choose the router by dev queries: tries kinds, features, mixings and gates, and shows a table."""
    from routerretriever.pipeline.domains import set_routing
    from routerretriever.runtime.progress import log, show
    from routerretriever.studies import runs as studies
    from routerretriever.studies.tuning import describe, trials_table

    trials = studies.tune_router(_pipeline(recipe, overrides, quiet), unseen_share)
    show(trials_table(trials, rows))
    if write:
        set_routing(recipe, trials[0].settings)
        log.info("%s: routing is now: %s", recipe, describe(trials[0].settings))


@app.command()
def evaluate(recipe: RecipeFile, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Evaluate base, experts, router and oracles on the test sets."""
    from routerretriever.reports.tables import terminal_table
    from routerretriever.runtime.progress import show

    show(terminal_table(_pipeline(recipe, overrides, quiet).evaluation))


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
        typer.Option(help="Pilot centroids per group to try.", metavar="NUMBERS", callback=_check_numbers),
    ] = "1,2,4,8",
) -> None:
    """The paper's analyses: with and without an expert, experts one by one, centroids, queries in a plane."""
    from routerretriever.reports.plots import section_table
    from routerretriever.runtime.progress import show
    from routerretriever.studies.analyses import analyses_sections

    names = order.split(",") if order else None
    from routerretriever.studies import runs as studies

    analyses = studies.analyse_run(_pipeline(recipe, overrides, quiet), names, _numbers(clusters))
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
    """How much of InstanceOracle's gain is luck: the same oracle over copies of a single expert."""
    from routerretriever.reports.plots import section_table
    from routerretriever.runtime.progress import show
    from routerretriever.studies import runs as studies
    from routerretriever.studies.analyses import noise_floor_section

    floor = studies.measure_noise_floor(_pipeline(recipe, overrides, quiet), domain, copies)
    show(section_table(noise_floor_section(floor)))


@app.command("learning-curve")
def learning_curve(
    recipe: RecipeFile,
    domain: Annotated[str, typer.Option(help="The domain whose expert is trained on fewer queries.")],
    sizes: Annotated[
        str | None,
        typer.Option(
            help="Numbers of training queries beside all; by default an eighth, a quarter and a half.",
            metavar="NUMBERS",
            callback=_check_numbers,
        ),
    ] = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Quality by number of training queries: experts trained on nested samples, measured on test."""
    from routerretriever.reports.plots import section_table
    from routerretriever.runtime.progress import show
    from routerretriever.studies import runs as studies
    from routerretriever.studies.analyses import learning_curve_section

    counts = _numbers(sizes) if sizes else None
    curve = studies.draw_learning_curve(_pipeline(recipe, overrides, quiet), domain, counts)
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

    _set_up(quiet)
    from routerretriever.studies import reproduction

    outcomes = reproduction.reproduce(file, only or [], overrides or [])
    show(reproduction.reproduction_table(outcomes))
    if any(one.verdict == "FAIL" for one in outcomes):
        raise typer.Exit(1)


@app.command()
def register(
    recipe: RecipeFile, overrides: Overrides = None, quiet: Quiet = False, release: Release = True
) -> None:
    """Register the experts and the router bundle in MLflow."""
    _tell(_pipeline(recipe, overrides, quiet).register(release))


@app.command()
def schema(
    to: Annotated[
        Path | None, typer.Option(help="File to write; by default the schema is printed.", metavar="FILE")
    ] = None,
) -> None:
    """Write the recipe's JSON schema, which lets an editor complete and check recipes."""
    from routerretriever.config.loading import recipe_schema

    if to is None:
        typer.echo(recipe_schema(), nl=False)
    else:
        to.write_text(recipe_schema(), encoding="utf-8")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"routerretriever {routerretriever.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def versions(recipe: RecipeFile, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """List the registered bundles; a star marks the released one."""
    from routerretriever.registry.registry import versions_table
    from routerretriever.runtime.progress import show

    registry = _registry(recipe, overrides, quiet)
    show(versions_table(registry.bundles(), registry.released()))


@app.command()
def release(
    recipe: RecipeFile,
    version: Annotated[
        int | None, typer.Option(help="The bundle's number; `versions` lists them.", show_default=False)
    ] = None,
    challenger: Annotated[
        bool, typer.Option("--challenger", help="Only beside the released one: see serving.releases.")
    ] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Also if another recipe made what is released now.")
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Have running services try bundles again that they refused.")
    ] = False,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Release a registered bundle: move the alias. Running services validate it and follow."""
    from routerretriever.runtime.progress import console

    if retry:
        _retry_refused(recipe, overrides, quiet)
    if version is None:
        if not retry:
            raise typer.BadParameter("give --version or --retry")
        return
    registry = _registry(recipe, overrides, quiet)
    if challenger:
        registry.challenge(version)
        console.print(f"{registry.bundle_uri} is challenged by version {version}")
    else:
        before = registry.release(version, take_over)
        replaced = f", before {before}" if before not in (None, version) else ""
        console.print(f"{registry.bundle_uri} is version {version}{replaced}")


@app.command()
def rollback(
    recipe: RecipeFile,
    challenger: Annotated[
        bool, typer.Option("--challenger", help="Take the challenger away; the released bundle stays.")
    ] = False,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Release again what was released before."""
    from routerretriever.runtime.progress import console

    registry = _registry(recipe, overrides, quiet)
    if challenger:
        registry.challenge(None)
        console.print(f"{registry.bundle_uri} has no challenger")
    else:
        console.print(f"{registry.bundle_uri} is version {registry.roll_back()} again")


@app.command()
def migrate(recipe: RecipeFile, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Bring the recipe's MLflow database to the installed MLflow's schema; copy it first."""
    from routerretriever.runtime.progress import console

    changed = _registry(recipe, overrides, quiet).migrate()
    console.print("migrated" if changed else "nothing to do: the database is up to date")


@app.command()
def serve(recipe: RecipeFile, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Serve the released bundle over HTTP until interrupted."""
    pipeline = _pipeline(recipe, overrides, quiet)
    from routerretriever.serving.deployments.run import serve_forever

    serve_forever(pipeline)


@app.command("add-expert")
def add_expert(
    recipe: RecipeFile,
    name: Annotated[str, typer.Option(help="Name of the new domain.")],
    path: Annotated[str, typer.Option(help="Its collection: a BEIR folder, or sample:<domain>.")],
    quiet: Quiet = False,
    release: Release = True,
) -> None:
    """Add a domain: train its expert, score what is missing, register a bundle, update the recipe file."""
    from routerretriever.pipeline.domains import add_domain

    _set_up(quiet)
    _tell(add_domain(recipe, name, path, release))


@app.command("remove-expert")
def remove_expert(
    recipe: RecipeFile,
    name: Annotated[str, typer.Option(help="Name of the domain whose expert goes.")],
    quiet: Quiet = False,
    release: Release = True,
) -> None:
    """Remove an expert: register a bundle without it, update the recipe file. Nothing is retrained."""
    from routerretriever.pipeline.domains import remove_domain

    _set_up(quiet)
    _tell(remove_domain(recipe, name, release))


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
    from routerretriever.reports.tables import terminal_table
    from routerretriever.runtime.progress import log, show

    pipeline = _pipeline(recipe, overrides, quiet)
    if dry_run:
        _ = pipeline.preflight
        show(plan_table(plan_run(pipeline)))
        return
    show(terminal_table(pipeline.evaluation))
    registered = pipeline.register()
    if ask:
        from routerretriever.serving.deployments.run import ask_once

        ask_once(pipeline)
    _tell(registered)
    log.info("figures and tables: %s", pipeline.report_folder)


def _registry(recipe: Path, overrides: list[str] | None, quiet: bool) -> Registry:
    from routerretriever.artifacts.store import ArtifactStore
    from routerretriever.config.loading import load_recipe
    from routerretriever.registry.registry import Registry

    _set_up(quiet)
    settings = load_recipe(recipe, overrides)
    store = ArtifactStore.open(settings.storage)
    return Registry(settings.registry, store, settings.serving.releases.challenger_alias)


def _retry_refused(recipe: Path, overrides: list[str] | None, quiet: bool) -> None:
    from routerretriever.artifacts.store import ArtifactStore
    from routerretriever.config.loading import load_recipe
    from routerretriever.runtime.progress import console
    from routerretriever.serving.releases import ask_for_retry

    _set_up(quiet)
    settings = load_recipe(recipe, overrides)
    ask_for_retry(ArtifactStore.open(settings.storage), settings)
    console.print("services on this storage will try the bundles again that they refused")


def _set_up(quiet: bool) -> None:
    from routerretriever.runtime.progress import set_up

    set_up(quiet)


def _tell(registered: Registered) -> None:
    from routerretriever.runtime.progress import console

    versions = ", ".join(f"{name} v{version}" for name, version in registered.expert_versions.items())
    console.print(
        f"bundle {registered.uri} (version {registered.version}; experts: {versions})\n"
        f"registry {registered.tracking_uri}",
        soft_wrap=True,
    )
    if registered.verdict is not None:
        console.print(registered.verdict, soft_wrap=True)
