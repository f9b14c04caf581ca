"""Commands that back a storage up, and bring it back."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from routerretriever.cli.app import Overrides, Quiet, RecipeFile, app, set_up_output


@app.command()
def backup(
    recipe: RecipeFile,
    to: Annotated[Path, typer.Option(help="The new folder; or a new file, .tar or .tar.gz.")],
    minimal: Annotated[
        bool,
        typer.Option(
            "--minimal",
            help="Only what cannot be made again, and the documents that the released bundle searches.",
        ),
    ] = False,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Write storage and the registry in it as a folder or one file; runs and services may be at work."""
    from routerretriever import commands
    from routerretriever.config.loading import load_recipe
    from routerretriever.runtime.progress import at_work, console

    set_up_output(quiet)
    with at_work(f"writing {to}"):
        written = commands.backup(load_recipe(recipe, overrides), to, minimal)
    console.print(f"wrote {written.place} ({written.files} files)", soft_wrap=True)
    if written.left_out is not None:
        console.print(written.left_out, soft_wrap=True)


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(help="What `backup` wrote.", metavar="FILE_OR_FOLDER")],
    to: Annotated[Path, typer.Option(help="The new storage: a folder that is new or empty.")],
    quiet: Quiet = False,
) -> None:
    """Check a back-up and make a storage of it, at any place."""
    from routerretriever import commands
    from routerretriever.runtime.progress import at_work, console

    set_up_output(quiet)
    with at_work(f"restoring {to}"):
        files = commands.restore(source, to)
    storage = shlex.quote(str(to.expanduser().resolve()))
    console.print(f"restored {files} files", soft_wrap=True)
    console.print(f"next: name it as storage: --set storage={storage}", soft_wrap=True)
