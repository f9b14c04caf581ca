"""The command's application, the options that commands share, and what they open."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from routerretriever.evaluation.evaluation import Evaluation
    from routerretriever.generation.folder import Generated
    from routerretriever.pipeline.pipeline import Pipeline, Registered
    from routerretriever.registry.registry import Registry

app = typer.Typer(
    help="Many expert retrievers behind one endpoint. A recipe (YAML) names the collections and settings; "
    "each step makes what it needs and skips what is there.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

RecipeFile = Annotated[
    Path, typer.Argument(help="A YAML file, or a shipped recipe's name, as sample.", metavar="RECIPE")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Replace a setting: dotted.key=value.", metavar="KEY=VALUE")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Plain log lines, no progress bars.")]
Release = Annotated[bool, typer.Option(help="Move the registry's alias to the new bundle.")]


def check_numbers(text: str | None) -> str | None:
    """Numbers from 1 up, separated by commas."""
    # typer has no type for several numbers in one option, but it names the option whose callback complains.
    if text is not None and not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise typer.BadParameter(f"found {text!r}; give numbers from 1 up, separated by commas: 1,2,4")
    return text


def numbers(text: str) -> list[int]:
    """The numbers of such an option."""
    return [int(number) for number in text.split(",")]


def open_pipeline(recipe: Path, overrides: list[str] | None, quiet: bool) -> Pipeline:
    """A recipe at work; results go where the first line says.

    Raises:
        EncoderError: the files of its encoder are not whole.
    """
    from routerretriever.config.loading import load_recipe
    from routerretriever.runtime.progress import log, set_up

    set_up(quiet)
    settings = load_recipe(recipe, overrides)
    from routerretriever.encoder.whole import require_whole

    require_whole(settings.encoder)  # before the pipeline's imports and the data, which take much longer
    from routerretriever.pipeline.pipeline import Pipeline

    pipeline = Pipeline(settings)
    log.info("recipe %s; results under %s", settings.name, pipeline.store.uri)
    return pipeline


def open_registry(recipe: Path, overrides: list[str] | None, quiet: bool) -> Registry:
    """The registry of a recipe; nothing is changed."""
    from routerretriever import commands
    from routerretriever.config.loading import load_recipe

    set_up_output(quiet)
    return commands.open_registry(load_recipe(recipe, overrides))


def set_up_output(quiet: bool) -> None:
    """Choose between bars and plain log lines."""
    from routerretriever.runtime.progress import set_up

    set_up(quiet)


def repeated(overrides: list[str] | None) -> str:
    """The options that replace settings, as a person types them again."""
    return "".join(f" --set {shlex.quote(each)}" for each in overrides or [])


def show_evaluation(evaluation: Evaluation) -> None:
    """The table of the systems that matter most, and what it says in words."""
    from routerretriever.reports.tables import terminal_table
    from routerretriever.reports.verdict import verdict
    from routerretriever.runtime.progress import console, show

    show(terminal_table(evaluation))
    for sentence in verdict(evaluation):
        console.print(sentence, soft_wrap=True)


def tell_registered(registered: Registered, recipe: Path, overrides: list[str] | None = None) -> None:
    """What was registered, what is to be known of an expert that was added, and how to release it."""
    from routerretriever.runtime.progress import console

    versions = ", ".join(f"{name} v{version}" for name, version in registered.expert_versions.items())
    version = f"version {registered.version}{'' if registered.released else ', not released'}"
    console.print(
        f"bundle {registered.uri} ({version}; experts: {versions})\nregistry {registered.tracking_uri}",
        soft_wrap=True,
    )
    if registered.verdict is not None:
        console.print(registered.verdict, soft_wrap=True)
    if not registered.released:
        command = f"routerretriever release {shlex.quote(str(recipe))} --version {registered.version}"
        console.print(f"next: {command}{repeated(overrides)}", soft_wrap=True)


def tell_idle_challenger(recipe: Path, overrides: list[str] | None = None) -> None:
    """Say so where a service with the recipe's settings gives a challenger nothing to do."""
    from routerretriever.config.loading import load_recipe
    from routerretriever.runtime.progress import console

    releases = load_recipe(recipe, overrides).serving.releases
    if releases.challenger_share == 0 and releases.shadow_share == 0:
        console.print(
            "this recipe gives it no share: set serving.releases.challenger_share (of the requests) or "
            "serving.releases.shadow_share (of the searches, unseen by users), and start the service with it",
            soft_wrap=True,
        )


def tell_generated(generated: Generated) -> None:
    """What became of the queries that were written."""
    from routerretriever.runtime.progress import console, figures_table, show

    table = figures_table("query", "number", title=f"{generated.facts['counts']['calls']} queries")
    for name, count in generated.rows():
        table.add_row(name, str(count))
    show(table)
    console.print(f"wrote {generated.folder}", soft_wrap=True)
