"""The command ``routerretriever``: thin, and quick to show its help. All work is done by the library."""

from __future__ import annotations

import io
import os
import sys
import traceback
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

import routerretriever
from routerretriever.cli import backups, exchange, releases, start, steps, studies
from routerretriever.cli.app import app
from routerretriever.cli.datasets import datasets_app
from routerretriever.errors import NO_ROOM, RouterRetrieverError, without_secrets, writing

COMMANDS = (start, steps, studies, releases, exchange, backups)
"""The modules whose commands the application has."""
app.add_typer(datasets_app, name="datasets")


def main() -> None:
    """Run the command; what a person can act on is one line, a mistake of ours is a traceback."""
    _print_anything()
    _require_filled(sys.argv)
    try:
        app()
    except RouterRetrieverError as error:
        _fail(error)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            _leave_stdout()
            _fail(f"{error.filename or 'what this command prints'}: {error.strerror}; make room for it")
        print(without_secrets(traceback.format_exc()), file=sys.stderr)
        print(
            f"error: this is a mistake of RouterRetriever {routerretriever.__version__}, not yours; please "
            "report it with the lines above and the command that you typed",
            file=sys.stderr,
        )
        sys.exit(70)


def _print_anything() -> None:
    """A character that this terminal does not have is shown by its number; it would end the command."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _require_filled(arguments: list[str]) -> None:
    """Refuse an empty argument: a shell's variable is not set, and as a path it is the working folder."""
    for before, argument in pairwise(arguments):
        option, equals, value = argument.partition("=")
        if not argument or (option.startswith("--") and equals and not value):
            where = option or f"the argument after {Path(before).name}"
            print(f"error: {where} is empty; is a variable of the shell not set?", file=sys.stderr)
            sys.exit(2)


def main_for(command: str) -> None:
    """Run one command with this process's arguments; logs are plain, as jobs have no terminal."""
    sys.argv[1:1] = [command]
    if "--quiet" not in sys.argv:
        sys.argv.append("--quiet")
    main()


def _fail(error: object) -> None:
    from routerretriever.datasets.texts import printable_lines

    print(f"error: {printable_lines(str(error))}", file=sys.stderr)
    sys.exit(1)


def _leave_stdout() -> None:
    """Python would try once more at its end to write what could not be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
        with writing(to):
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
