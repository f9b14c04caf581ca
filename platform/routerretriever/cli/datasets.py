"""The commands ``routerretriever datasets ...``: collections before any recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from routerretriever.cli.app import Overrides, Quiet, RecipeFile, set_up_output, tell_generated
from routerretriever.errors import writing

if TYPE_CHECKING:
    from routerretriever.datasets.checking import CheckReport
    from routerretriever.datasets.collection import Collection

datasets_app = typer.Typer(
    help="Import, check, split, export, download and generate collections (BEIR folders).",
    no_args_is_help=True,
)

Source = Annotated[str, typer.Argument(help="A BEIR folder, or sample:<domain>.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")]


@datasets_app.command("check")
def check(
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH]...", help="BEIR folders, or sample:<domain>.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Check this recipe's collections, each with its domain's settings.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="List every issue, not the first five.")] = False,
    as_json: AsJson = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings too.")] = False,
) -> None:
    """List what is wrong with collections, by kind, with file and line.

    With a recipe, the splits are required that a run reads; what passes, a run reads.

    Exit codes: 0 it can be used; 1 it has errors; 2 the command was mistyped.
    """
    from routerretriever.datasets.checking import check_collection
    from routerretriever.datasets.collection import Collection
    from routerretriever.datasets.preflight import learned_elsewhere, told_elsewhere

    if not paths and recipe is None:
        raise typer.BadParameter("name folders, or a recipe with --recipe")
    collections = {path: Collection(path, _folder(path)) for path in paths or ()}
    if recipe is not None:
        collections |= _collections_of(recipe)
    reports = {
        name: check_collection(one.folder, None if every else 5, one.settings)
        for name, one in collections.items()
    }
    sound = [one for name, one in collections.items() if reports[name].ok]
    elsewhere = learned_elsewhere(sound, {one.name: one.splits() for one in sound})
    if as_json:
        found = {name: report.as_json() for name, report in reports.items()}
        for name, others in elsewhere.items():
            found[name]["equal_queries"] |= {f"test in train of {other}": n for other, n in others.items()}
        _print(json.dumps(found if len(found) > 1 else next(iter(found.values())), indent=2))
    else:
        for path, report in reports.items():
            if len(reports) > 1:
                _print(f"{path}:")
            _print_report(report)
        for name, others in elsewhere.items():
            for each in others.items():
                _print(f"warning: {name}: {told_elsewhere(*each)}")
    if any(not report.ok or (strict and report.warnings) for report in reports.values()) or (
        strict and elsewhere
    ):
        raise typer.Exit(1)


@datasets_app.command("statistics")
def statistics(
    path: Source,
    recipe: Annotated[
        Path | None, typer.Option(help="Count in tokens of this recipe's encoder, not in words.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Lengths, judgements a query, overlap of splits, copies and scripts of a collection."""
    from routerretriever.datasets.statistics import describe, tokens_of

    tokens = None
    if recipe is not None:
        from routerretriever.config.loading import load_recipe

        tokens = tokens_of(load_recipe(recipe, None).encoder)
    found = describe(_folder(path), tokens)
    _print(json.dumps(found.as_json(), indent=2) if as_json else found.page())


@datasets_app.command("split")
def split(
    source: Annotated[str, typer.Argument(help="A BEIR folder.")],
    target: Annotated[Path, typer.Argument(help="The new folder to write.")],
    test_fraction: Annotated[
        float, typer.Option(help="Share of train to hold out if test is missing.")
    ] = 0.2,
    close: Annotated[
        float | None,
        typer.Option(help="Keep queries together that are so similar, e.g. 0.7; 1 is equal.", min=0.1, max=1),
    ] = None,
) -> None:
    """Write a collection with explicit train, dev and test splits, held out by hash of the query id.

    Queries with equal texts stay together, and those that were generated about one document.
    """
    from routerretriever.datasets.collection import Collection
    from routerretriever.datasets.download import write_split

    collection = Collection(target.name, _folder(source))
    fraction = 0.0 if "test" in collection.splits() else test_fraction
    with writing(target):
        _print(f"wrote {write_split(collection, target, fraction, close)}{_left_out(collection.folder)}")


@datasets_app.command("download")
def download(
    names: Annotated[list[str], typer.Argument(help="BEIR collections, e.g. scifact nfcorpus.")],
    to: Annotated[Path, typer.Option(help="Folder that receives them.")] = Path("datasets"),
    generated: Annotated[
        bool,
        typer.Option("--generated", help="Also make <name>-generated, with BEIR's generated train queries."),
    ] = False,
) -> None:
    """Download BEIR collections through beir's own downloader."""
    from routerretriever.datasets.download import download as fetch
    from routerretriever.datasets.published import download_generated

    for name in names:
        with writing(to):
            _print(f"{name}: {download_generated(name, to).told() if generated else fetch(name, to)}")


@datasets_app.command("import")
def import_source(
    source: Annotated[Path, typer.Argument(help="A file, folder, or zip or tar archive of data.")],
    to: Annotated[Path, typer.Option(help="The new BEIR folder.")],
    split_name: Annotated[
        str | None,
        typer.Option(
            "--split", help="The split of judgements that name none; by default train.", metavar="NAME"
        ),
    ] = None,
    passage_tokens: Annotated[
        int | None,
        typer.Option(help="Cut files of a folder into passages of so many words.", min=8, max=8192),
    ] = None,
    relevant_from: Annotated[
        float | None,
        typer.Option(help="Scores are no grades: from this one on a document is relevant, below it is not."),
    ] = None,
) -> None:
    """Write a BEIR folder from other formats; says what it understood and ends with a check.

    Reads Hugging Face's retrieval layout and mteb tasks on disk, pairs and triplets (JSONL, CSV, Parquet,
    Arrow), lists of questions and answers, LlamaIndex's question sets, TREC topics, documents and qrels, MS
    MARCO's TSV, and folders of text files.
    """
    from routerretriever.datasets.checking import check_collection
    from routerretriever.datasets.importing import import_data

    with writing(to):
        understood = import_data(source, to, split_name, passage_tokens, relevant_from)
    _print(understood.told())
    if understood.counts["documents"] and not understood.judgements:
        return  # documents are a fine start, and what is missing was said
    report = check_collection(to, 5)
    _print_report(report)
    if not report.ok:
        raise typer.Exit(1)


@datasets_app.command("generate")
def generate(
    recipe: RecipeFile,
    domain: Annotated[str, typer.Option(help="The domain whose documents are asked about.")],
    to: Annotated[
        Path | None, typer.Option(help="The new BEIR folder; by default <data_root>/generated/<domain>.")
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option(
            help='Up to eight queries as people write them: JSONL, {"query": ..., "document": ...}.'
        ),
    ] = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only try a few calls, and say what all will take.")
    ] = False,
) -> None:
    """Write queries about a domain's documents; makes a collection with train and dev queries.

    Labelled queries of the domain become dev, and its test split stays. A run that was stopped goes on where
    it was.
    """
    from routerretriever.config.loading import load_recipe
    from routerretriever.pipeline.documents import generated_folder, generation, with_examples

    set_up_output(quiet)
    settings = with_examples(load_recipe(recipe, overrides), examples)
    made = generation(settings, domain)
    if dry_run:
        _print(made.estimate().told())
        return
    tell_generated(made.run(to or generated_folder(settings, domain)))


@datasets_app.command("export")
def export(
    source: Annotated[str, typer.Argument(help="A BEIR folder.")],
    to: Annotated[Path, typer.Option(help="The new folder.")],
) -> None:
    """Write a collection in Hugging Face's retrieval layout: Parquet files of corpus, queries and qrels."""
    from routerretriever.datasets.export import export_parquet

    folder = _folder(source)
    with writing(to):
        _print(f"wrote {export_parquet(folder, to)}{_left_out(folder)}")


def _left_out(folder: Path) -> str:
    """What to say of judgements that a new collection does not have."""
    from routerretriever.datasets.contents import split_files, unread_judgements
    from routerretriever.datasets.settings import DomainSettings

    unread = unread_judgements(folder, split_files(folder, DomainSettings(path="")))
    names = ", ".join(path.relative_to(folder).as_posix() for path in unread)
    return f"; left out, for they are no train, dev or test: {names}" if names else ""


def _collections_of(recipe: Path) -> dict[str, Collection]:
    from routerretriever.config.loading import load_recipe
    from routerretriever.pipeline.collections import open_collections

    return open_collections(load_recipe(recipe, None))


def _folder(path: str) -> Path:
    from routerretriever.datasets.collection import open_collection, sample_domains
    from routerretriever.datasets.files import require_folder
    from routerretriever.errors import DatasetError

    name = path.removeprefix("sample:")
    if name != path:
        if name not in sample_domains():
            raise DatasetError(f"{path}: no such built-in sample; there are {', '.join(sample_domains())}")
        return open_collection(name, path).folder
    require_folder(Path(path))
    return Path(path)


def _print_report(report: CheckReport) -> None:
    from routerretriever.datasets.checking import relative

    for each in report.kinds:
        _print(f"{each.kind.severity}: {each.kind.name} ({each.count}): {each.kind.meaning}")
        for issue in each.first:
            place = relative(report.folder, issue)
            _print(f"    {place if issue.line is None else f'{place}:{issue.line}'}: {issue.message}")
        if each.more:
            _print(f"    ... and {each.more} more; --all lists them")
        _print(f"    what to do: {each.kind.remedy}")
    judgements = ", ".join(f"{name} {count}" for name, count in report.judgements.items()) or "none"
    _print(f"{report.documents} documents, {report.queries} queries, judgements: {judgements}")
    _print(f"{report.errors} errors, {report.warnings} warnings")


def _print(text: str) -> None:
    from routerretriever.datasets.texts import printable_lines
    from routerretriever.runtime.progress import console

    console.print(printable_lines(text), markup=False, emoji=False, soft_wrap=True)
