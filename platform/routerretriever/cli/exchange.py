"""Commands that take bundles and experts to other sites and tools, and bring them in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from routerretriever.cli.app import Overrides, RecipeFile, Release, app, set_up_output

if TYPE_CHECKING:
    from routerretriever.config.recipe import Recipe

_Version = Annotated[
    int | None, typer.Option(help="The bundle's number; by default the released one.", show_default=False)
]


@app.command("export-expert")
def export_expert(
    recipe: RecipeFile,
    name: Annotated[str, typer.Option("--expert", help="The expert's name.")],
    to: Annotated[Path, typer.Option(help="The new folder.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="With the base's weights, the adapter added to them.")
    ] = False,
    version: _Version = None,
    overrides: Overrides = None,
) -> None:
    """Write an expert as a folder that PEFT and sentence-transformers open on any machine."""
    from routerretriever import commands
    from routerretriever.runtime.progress import console

    settings = _settings(recipe, overrides)
    written = commands.export_expert(settings, name, to, merged, version)
    console.print(f"wrote {written}", soft_wrap=True)


@app.command("export")
def export(
    recipe: RecipeFile,
    to: Annotated[Path, typer.Option(help="The new file, .tar or .tar.gz.")],
    documents: Annotated[
        bool, typer.Option(help="With the encoded documents of its collections, which a service needs.")
    ] = True,
    version: _Version = None,
    overrides: Overrides = None,
) -> None:
    """Write a bundle and the documents that it searches as one file, for `import` at another site."""
    from routerretriever import commands
    from routerretriever.runtime.progress import console

    settings = _settings(recipe, overrides)
    written = commands.export(settings, to, documents, version)
    console.print(f"wrote {written} ({written.stat().st_size / 1e6:.1f} MB)", soft_wrap=True)


@app.command("import")
def import_bundle(
    recipe: RecipeFile,
    archive: Annotated[Path, typer.Argument(help="What `export` wrote.", metavar="FILE")],
    release: Release = True,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Also if another recipe made what is released now.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Register an exported bundle here, under the recipe's registry.name; its documents go into storage."""
    from routerretriever import commands
    from routerretriever.runtime.progress import console

    uri = commands.import_bundle(_settings(recipe, overrides), archive, release, take_over)
    console.print(f"{uri} is {archive}", soft_wrap=True)


def _settings(recipe: Path, overrides: list[str] | None) -> Recipe:
    from routerretriever.config.loading import load_recipe

    set_up_output(quiet=True)
    return load_recipe(recipe, overrides)
