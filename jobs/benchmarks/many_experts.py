"""How time, memory and processes grow with the number of experts, on whatever machine this is.

    python -m jobs.benchmarks.many_experts --counts 2 --counts 10 --counts 50

Every expert is tiny (28 documents, 14 training queries, 4 steps, the fake encoder), so that what is measured
is what an expert costs beside its training. Trainers beyond the room of the cluster wait; a run that is ended
goes on when it is started again with the same --storage.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from routerretriever.cluster import connect
from routerretriever.config import parse_recipe
from routerretriever.console import set_up
from routerretriever.pipeline import Pipeline

from jobs.benchmarks.measure import measured, report

WORDS = ("apple", "banana", "cherry", "damson", "elder", "fig", "grape", "hazel")


def write_collection(folder: Path, name: str) -> None:
    """A collection whose queries ask for the document that holds both of their words."""
    (folder / "qrels").mkdir(parents=True)
    pairs = list(itertools.combinations(WORDS, 2))
    with (folder / "corpus.jsonl").open("w") as corpus, (folder / "queries.jsonl").open("w") as queries:
        for number, (a, b) in enumerate(pairs):
            corpus.write(json.dumps({"_id": f"d{number}", "title": a, "text": f"{b} {name}"}) + "\n")
            queries.write(json.dumps({"_id": f"q{number}", "text": f"{name} {b} with {a}"}) + "\n")
    for place, split in enumerate(("train", "dev")):
        lines = [f"q{number}\td{number}\t1\n" for number in range(place, len(pairs), 2)]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))


def main(
    counts: Annotated[list[int] | None, typer.Option(help="Numbers of experts.")] = None,
    storage: Annotated[Path | None, typer.Option(help="Keeps what is done; it is not done again.")] = None,
) -> None:
    """Train that many experts, and show what it took."""
    set_up(quiet=True)
    connect()
    rows, figures = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for number in counts or [2, 10]:
            root = (storage or Path(scratch)) / str(number)
            names = [f"domain{index:02d}" for index in range(number)]
            for name in names:
                if not (root / "data" / name).exists():
                    write_collection(root / "data" / name, name)
            recipe = parse_recipe(
                {
                    "name": f"experts-{number}",
                    "storage": str(root / "storage"),
                    "data_root": str(root / "data"),
                    "domains": {name: {"path": name} for name in names},
                    "encoder": {"name": "fake"},
                    "training": {"max_steps": 4, "evaluate_every": 2, "batch_size": 8},
                }
            )
            pipeline = Pipeline(recipe)
            _ = pipeline.corpora
            left = len(pipeline.untrained())
            with measured(f"{number} experts") as cost:
                _ = pipeline.experts
            each = cost.seconds / left if left else 0.0
            rows.append([str(number), str(left), *(f"{x:.1f}" for x in (cost.seconds, each)),
                         f"{cost.peak_mib:.0f}", str(cost.processes)])  # fmt: skip
            figures.append({"experts": number, "trained": left, "seconds": cost.seconds,
                            "peak_mib": cost.peak_mib, "processes": cost.processes})  # fmt: skip
    report(
        "many-experts",
        "experts on this machine",
        ["experts", "trained now", "seconds", "seconds each", "peak MiB", "most processes"],
        rows,
        {"figures": figures},
    )


if __name__ == "__main__":
    typer.run(main)
