"""Commands that serve, and say what is served."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from routerretriever.cli.app import (
    Overrides,
    Quiet,
    RecipeFile,
    app,
    open_registry,
    set_up_output,
    tell_idle_challenger,
)


@app.command()
def serve(recipe: RecipeFile, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Serve the released bundle over HTTP until interrupted."""
    from routerretriever import commands
    from routerretriever.config.loading import load_recipe

    set_up_output(quiet)
    commands.serve(load_recipe(recipe, overrides))


@app.command()
def versions(recipe: RecipeFile, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """List the registered bundles; a star marks the released one, a word the challenger."""
    from routerretriever.registry.registry import versions_table
    from routerretriever.runtime.progress import console, show

    registry = open_registry(recipe, overrides, quiet)
    bundles = registry.bundles()
    if not bundles:
        console.print(
            f"nothing is registered yet for {registry.bundle_uri} in {registry.tracking_uri}", soft_wrap=True
        )
        return
    show(versions_table(bundles, registry.released(), registry.challenger()))


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

    if take_over and challenger:
        raise typer.BadParameter("--take-over is for a release; a challenger takes nothing over")
    if version is None and (take_over or challenger):
        raise typer.BadParameter("--challenger and --take-over go with --version")
    if retry:
        _retry_refused(recipe, overrides, quiet)
    if version is None:
        if not retry:
            raise typer.BadParameter("give --version or --retry")
        return
    registry = open_registry(recipe, overrides, quiet)
    if challenger:
        registry.challenge(version)
        console.print(f"{registry.bundle_uri} is challenged by version {version}")
        tell_idle_challenger(recipe, overrides)
    else:
        before = registry.release(version, take_over)
        replaced = f", before {before}" if before not in (None, version) else ""
        console.print(f"{registry.bundle_uri} is version {version}{replaced}")
        _follow(recipe, overrides)


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

    registry = open_registry(recipe, overrides, quiet)
    if challenger:
        before = registry.challenge(None)
        told = "had no challenger" if before is None else f"is no longer challenged by version {before}"
        console.print(f"{registry.bundle_uri} {told}")
    else:
        console.print(f"{registry.bundle_uri} is version {registry.roll_back()} again")
        _follow(recipe, overrides)


@app.command()
def migrate(recipe: RecipeFile, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Bring the recipe's MLflow database to the installed MLflow's schema; copy it first."""
    from routerretriever.runtime.progress import console

    changed = open_registry(recipe, overrides, quiet).migrate()
    console.print("migrated" if changed else "nothing to do: the database is up to date")


def _follow(recipe: Path, overrides: list[str] | None) -> None:
    from routerretriever.pipeline.learning import follow_release

    follow_release(recipe, overrides)


def _retry_refused(recipe: Path, overrides: list[str] | None, quiet: bool) -> None:
    from routerretriever.config.loading import load_recipe
    from routerretriever.pipeline.places import open_storage
    from routerretriever.runtime.progress import console
    from routerretriever.serving.releases import ask_for_retry

    set_up_output(quiet)
    settings = load_recipe(recipe, overrides)
    ask_for_retry(open_storage(settings), settings)
    console.print("services on this storage will try the bundles again that they refused")
