"""Commands for the first hour: a recipe for the collections that are there, and what would fail here."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from routerretriever.cli.app import Overrides, app


@app.command()
def init(
    folders: Annotated[
        list[str],
        typer.Argument(help="Collections, or folders of such; sample:<domain>.", metavar="FOLDER..."),
    ],
    to: Annotated[Path, typer.Option(help="The new file.")] = Path("recipe.yaml"),
    name: Annotated[str | None, typer.Option(help="The run's name; by default the file's.")] = None,
) -> None:
    """Write a commented recipe for collections; asks nothing, says what it found."""
    from routerretriever import commands
    from routerretriever.runtime.progress import console

    written = commands.init(folders, to, name)
    console.print(written.read_text(encoding="utf-8"), soft_wrap=True)
    command = f"routerretriever run {shlex.quote(str(written))} --dry-run"
    console.print(f"wrote {written}; next: {command}", soft_wrap=True)


@app.command()
def doctor(
    recipe: Annotated[
        str | None, typer.Argument(help="Also look at what this recipe needs.", metavar="RECIPE")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Say what is installed, what this machine can do, and what would fail; exit code 1 if anything would."""
    from routerretriever.config.loading import load_recipe
    from routerretriever.pipeline.doctor import Verdict, examine, findings_table
    from routerretriever.runtime.progress import show

    findings = examine(None if recipe is None else load_recipe(recipe, overrides))
    show(findings_table(findings))
    if any(finding.verdict is Verdict.FAIL for finding in findings):
        raise typer.Exit(1)
