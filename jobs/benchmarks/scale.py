"""How time and memory grow with documents, experts and machines, and where they stop being linear.

    python -m jobs.benchmarks.scale documents --sizes 10000 --sizes 100000
    python -m jobs.benchmarks.scale experts --counts 2 --counts 10 --counts 50
    python -m jobs.benchmarks.scale machines --counts 1 --counts 2 --counts 4

Collections are made, and encoded by the fake encoder, so that what is measured is the platform's own cost: a
real encoder's comes on top, is far larger, and is the same for every document. Each command leaves a page
with the curve beside its figures. Machines are Ray nodes of two CPUs each on this one, which gets no more
cores for it.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from routerretriever.config.loading import parse_recipe
from routerretriever.config.recipe import Recipe
from routerretriever.index.dense import open_index
from routerretriever.methods.experts import Experts
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.reports.plots import Lines, Section, write_sections
from routerretriever.runtime.cluster import connect
from routerretriever.runtime.progress import log, set_up

from jobs.benchmarks.faults import head, kill
from jobs.benchmarks.measure import Cost, measured, report, wait_until

app = typer.Typer(help="How time and memory grow.", no_args_is_help=True)

_PROJECTED = 10_000_000
"""Documents for which the step from the second largest size to the largest is drawn out."""
_VOCABULARY, _WORDS = 5000, 60
_SEARCHES = 100
WORDS = ("apple", "banana", "cherry", "damson", "elder", "fig", "grape", "hazel")

Sizes = Annotated[list[int] | None, typer.Option(help="Documents in the collection, ascending.")]
Counts = Annotated[list[int] | None, typer.Option(help="How many, ascending.")]


@app.command()
def documents(sizes: Sizes = None) -> None:
    """Encode, open and search collections of made documents with the exact index."""
    set_up(quiet=True)
    connect()
    sizes = sizes or [3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000]
    encoded, opened, searched, bytes_each = [], [], [], []
    for size in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            pipeline = Pipeline(_searched_recipe(Path(scratch), size))
            with measured("encode") as encoding:
                corpus = pipeline.corpora["made"]
            with measured("open") as opening:
                index = open_index(corpus, pipeline.recipe.corpus.index, pipeline.store)
            queries = corpus.lookup(np.arange(_SEARCHES))
            start = time.perf_counter()
            for query in queries:
                index.search(query[None], 10)
            encoded.append(encoding)
            opened.append(opening)
            searched.append((time.perf_counter() - start) / _SEARCHES)
            files = [path for path in corpus.folder.rglob("*") if path.is_file()]
            bytes_each.append(sum(path.stat().st_size for path in files) / size)
        log.info("%d documents: %.1f s to encode", size, encoding.seconds)
    rows = [
        [f"{size:,}", *_cells(encoding), f"{opening.seconds:.2f}", f"{1000 * search:.2f}", f"{each:.0f}"]
        for size, encoding, opening, search, each in zip(
            sizes, encoded, opened, searched, bytes_each, strict=True
        )
    ]
    if len(sizes) > 1:
        rows.append(
            [
                f"{_PROJECTED:,} (drawn out)",
                *(
                    f"{_drawn_out(sizes, [float(getattr(cost, name)) for cost in encoded]):,.0f}"
                    for name in ("seconds", "peak_mib", "largest_mib")
                ),
                f"{_drawn_out(sizes, [cost.seconds for cost in opened]):.0f}",
                f"{1000 * _drawn_out(sizes, searched):.0f}",
                f"{bytes_each[-1]:.0f}",
            ]
        )
    _publish(
        "scale-documents",
        "documents, fake encoder, exact index",
        ["documents", "encode s", "peak MiB", "largest process MiB", "open s", "search ms", "bytes each"],
        rows,
        Lines(
            "Microseconds a document, level where time is linear",
            [f"{size:,}" for size in sizes],
            "documents",
            {
                "encode": [1e6 * cost.seconds / size for cost, size in zip(encoded, sizes, strict=True)],
                "open": [1e6 * cost.seconds / size for cost, size in zip(opened, sizes, strict=True)],
                "one search": [1e6 * each / size for each, size in zip(searched, sizes, strict=True)],
            },
        ),
        {"sizes": sizes, "encode": encoded, "open": opened, "search_s": searched, "bytes": bytes_each},
    )


@app.command()
def experts(
    counts: Counts = None,
    storage: Annotated[Path | None, typer.Option(help="Keeps what is done; it is not done again.")] = None,
) -> None:
    """Train tiny experts: 28 documents, 14 train queries, 4 steps each."""
    set_up(quiet=True)
    connect()
    counts, trained, costs = counts or [2, 10], [], []
    with tempfile.TemporaryDirectory() as scratch:
        for count in counts:
            pipeline = Pipeline(_experts_recipe((storage or Path(scratch)) / str(count), count))
            _ = pipeline.corpora
            trained.append(len(pipeline.untrained()))
            with measured(f"{count} experts") as cost:
                _ = pipeline.method(Experts).experts
            costs.append(cost)
    each = [cost.seconds / left if left else 0.0 for cost, left in zip(costs, trained, strict=True)]
    _publish(
        "scale-experts",
        "tiny experts, fake encoder",
        ["experts", "trained now", "seconds", "peak MiB", "largest process MiB", "seconds each", "processes"],
        [
            [str(count), str(left), *_cells(cost), f"{share:.1f}", str(cost.processes)]
            for count, left, cost, share in zip(counts, trained, costs, each, strict=True)
        ],
        Lines("Seconds an expert", [str(count) for count in counts], "experts", {"seconds": each}),
        {"counts": counts, "trained": trained, "costs": costs},
    )


@app.command()
def machines(
    counts: Counts = None,
    size: Annotated[int, typer.Option(help="Documents that they encode together.")] = 20_000,
) -> None:
    """Encode one collection on ever more Ray nodes."""
    import ray

    set_up(quiet=True)
    counts, costs = counts or [1, 2, 4], []
    for count in counts:
        with tempfile.TemporaryDirectory() as scratch, head() as (address, add_machine):
            os.environ["RAY_ADDRESS"] = address
            connect()
            added = [_joined(add_machine) for _ in range(count)]
            pipeline = Pipeline(_searched_recipe(Path(scratch), size))
            with measured("encode") as cost:
                _ = pipeline.corpora
            costs.append(cost)
            ray.shutdown()
            for machine in added:
                kill(machine)
        del os.environ["RAY_ADDRESS"]
    _publish(
        "scale-machines",
        f"Ray nodes on this machine, {size:,} documents, fake encoder",
        ["nodes", "encode s", "peak MiB", "largest process MiB"],
        [[str(count), *_cells(cost)] for count, cost in zip(counts, costs, strict=True)],
        Lines(
            "Seconds", [str(count) for count in counts], "nodes", {"encode": [cost.seconds for cost in costs]}
        ),
        {"counts": counts, "size": size, "costs": costs},
    )


def _joined(add_machine: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    """Add a Ray node and wait for it: several at once would time out on a small machine."""
    import ray

    def alive() -> int:
        return sum(node["Alive"] for node in ray.nodes())

    before = alive()
    machine = add_machine()
    wait_until(lambda: alive() > before, "another Ray node joins")
    return machine


def _publish(
    name: str, title: str, header: list[str], rows: list[list[str]], curve: Lines, figures: dict[str, object]
) -> None:
    path = report(name, title, header, rows, figures).with_suffix(".html")
    note = "One run each. The plot draws its steps equally far apart."
    log.info("wrote %s", write_sections(title, [Section(title, note, header, rows, [curve])], path))


def _cells(cost: Cost) -> list[str]:
    return [f"{cost.seconds:.1f}", f"{cost.peak_mib:.0f}", f"{cost.largest_mib:.0f}"]


def _drawn_out(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The line through the last two points, at ``_PROJECTED``; level if it falls, since no cost shrinks."""
    slope = max(0.0, (values[-1] - values[-2]) / (sizes[-1] - sizes[-2]))
    return values[-1] + slope * (_PROJECTED - sizes[-1])


def _searched_recipe(root: Path, size: int) -> Recipe:
    """One collection of made documents, which is only encoded."""
    folder = root / "data"
    (folder / "qrels").mkdir(parents=True)
    random = np.random.default_rng(0)
    with (folder / "corpus.jsonl").open("w") as corpus:
        for number in range(size):
            # Squared, so that some words are common and most are rare.
            words = (_VOCABULARY * random.random(_WORDS) ** 2).astype(int)
            text = " ".join(f"word{word}" for word in words)
            corpus.write(json.dumps({"_id": f"d{number}", "title": "", "text": text}) + "\n")
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "word1 word2"}\n')
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq\td0\t1\n")
    return _recipe(root, {"made": {"path": "data"}})


def _experts_recipe(root: Path, count: int) -> Recipe:
    """Collections whose queries ask for the document that holds both of their words."""
    names = [f"domain{number:02d}" for number in range(count)]
    pairs = list(itertools.combinations(WORDS, 2))
    for name in names:
        folder = root / name
        if folder.exists():
            continue
        (folder / "qrels").mkdir(parents=True)
        with (folder / "corpus.jsonl").open("w") as corpus, (folder / "queries.jsonl").open("w") as queries:
            for number, (a, b) in enumerate(pairs):
                corpus.write(json.dumps({"_id": f"d{number}", "title": a, "text": f"{b} {name}"}) + "\n")
                queries.write(json.dumps({"_id": f"q{number}", "text": f"{name} {b} with {a}"}) + "\n")
        for place, split in enumerate(("train", "dev")):
            lines = [f"q{number}\td{number}\t1\n" for number in range(place, len(pairs), 2)]
            (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return _recipe(root, {name: {"path": name} for name in names})


def _recipe(root: Path, domains: Mapping[str, Mapping[str, object]]) -> Recipe:
    return parse_recipe(
        {
            "name": "scale",
            "storage": str(root / "storage"),
            "data_root": str(root),
            "domains": domains,
            "encoder": {"name": "fake"},
            "training": {"max_steps": 4, "evaluate_every": 2, "batch_size": 8},
        }
    )


if __name__ == "__main__":
    app()
