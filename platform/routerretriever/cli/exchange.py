"""Commands that take bundles and experts to other sites and tools, and bring them in."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from routerretriever.cli.app import Overrides, RecipeFile, Release, app, open_registry, writing

if TYPE_CHECKING:
    from routerretriever.registry.registry import Registry

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
    from routerretriever.bundle.export import export_expert as write
    from routerretriever.runtime.progress import console

    with writing(to), _bundle(open_registry(recipe, overrides, quiet=True), version) as bundle:
        console.print(f"wrote {write(bundle, name, to, merged)}", soft_wrap=True)


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
    from routerretriever.bundle.archive import pack
    from routerretriever.runtime.progress import console

    registry = open_registry(recipe, overrides, quiet=True)
    with writing(to), _bundle(registry, version) as bundle:
        written = pack(bundle, to, registry.store if documents else None)
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
    from routerretriever.bundle.archive import unpack
    from routerretriever.runtime.progress import console

    registry = open_registry(recipe, overrides, quiet=True)
    with tempfile.TemporaryDirectory() as scratch:
        bundle = unpack(archive, Path(scratch), registry.store)
        version = registry.register_folder(bundle, release, take_over)
    console.print(f"{registry.version_uri(version)} is {archive}", soft_wrap=True)


@contextmanager
def _bundle(registry: Registry, version: int | None) -> Iterator[Path]:
    """The files of a version, or of the released one, while a block uses them."""
    from routerretriever.registry.loading import fetch_bundle

    uri = registry.bundle_uri if version is None else registry.version_uri(version)
    with tempfile.TemporaryDirectory() as scratch:
        yield fetch_bundle(uri, Path(scratch), registry.tracking_uri)
