"""Data at scale: memory and time of importing, checking and describing collections, as a user would.

python -m jobs.benchmarks.data
python -m jobs.benchmarks.data --rows 20000 --documents 5000
python -m jobs.benchmarks.data --formats csv --formats parquet

Texts are made: words of 2 to 10 letters, drawn by Zipf's law, 60 to 100 a passage. One row in ten has an
earlier row's passage. Every command runs in a process of its own; its peak memory and its CPU seconds are
the kernel's (``wait4``), its start among them, which the table gives alone too. An import ends with a check.
``preflight`` is what a run does before it starts, without the start of a process.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import typer
from routerretriever.runtime.progress import log, set_up

from jobs.benchmarks.measure import report

_COMMAND = "from routerretriever.cli.main import main; main()"
_PREFLIGHT = """
import sys, time
from routerretriever.datasets.collection import open_collection
from routerretriever.datasets.preflight import preflight
collection = open_collection("made", sys.argv[1])
wall, cpu = time.perf_counter(), time.process_time()
preflight([collection], {"made": collection.splits()})
print(time.perf_counter() - wall, time.process_time() - cpu)
"""
# A process's peak begins with that of its parent, so the parent has to be a small one.
_WAIT = """
import os, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(child, 0)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""
_WORDS = 50_000
_BATCH = 10_000


@dataclass(frozen=True)
class Run:
    """What one process took."""

    step: str
    wall_s: float
    cpu_s: float
    peak_mib: float

    def row(self) -> list[str]:
        """For the table."""
        return [self.step, f"{self.cpu_s:.1f}", f"{self.wall_s:.1f}", f"{self.peak_mib:.0f}"]


def main(
    rows: Annotated[int, typer.Option(help="Rows that are imported, of each format.")] = 1_000_000,
    documents: Annotated[int, typer.Option(help="Documents of the collection that is checked.")] = 200_000,
    formats: Annotated[
        list[str] | None, typer.Option(help="Of jsonl, csv, parquet, hugging-face, ms-marco.")
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="For the data, removed afterwards.")] = None,
) -> None:
    """Import each format, then check, describe and preflight a collection."""
    set_up(quiet=True)
    runs = []
    for name in formats if formats is not None else list(_FORMATS):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            source, made = Path(scratch) / "source", Path(scratch) / "made"
            source.mkdir()
            _FORMATS[name](source, rows)
            runs.append(_run(f"import {name}", "datasets", "import", str(source), "--to", str(made)))
            log.info("%s", runs[-1].row())
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for step, size in (("start", 30), ("", documents)):
            made = Path(scratch) / f"made-{size}"
            write_collection(made, size)
            runs.append(_run(step or "check", "datasets", "check", str(made)))
        runs.append(_run("statistics", "datasets", "statistics", str(made)))
        runs.append(_preflight(made))
        for run in runs[-4:]:
            log.info("%s", run.row())
    report(
        "data",
        f"imports of {rows:,} rows, a collection of {documents:,} documents",
        ["step", "CPU s", "wall s", "peak MiB"],
        [run.row() for run in runs],
        {"imported": rows, "documents": documents, "measured": runs},
    )


def write_collection(folder: Path, documents: int) -> None:
    """A BEIR folder with a query for 20 documents, each judged twice; a tenth is dev, a tenth test."""
    (folder / "qrels").mkdir(parents=True)
    queries = max(10, documents // 20)
    _lines(
        folder / "corpus.jsonl",
        ({"_id": f"d{n}", **_document(n, t)} for n, t in enumerate(made_texts(documents))),
    )
    _lines(
        folder / "queries.jsonl",
        ({"_id": f"q{n}", "text": t} for n, t in enumerate(made_texts(queries, 5, 12, 1))),
    )
    random = np.random.default_rng(2)
    files = {}
    for number in range(queries):
        split = {0: "dev", 1: "test"}.get(number % 10, "train")
        if split not in files:
            files[split] = (folder / "qrels" / f"{split}.tsv").open("w", encoding="utf-8")
            files[split].write("query-id\tcorpus-id\tscore\n")
        for document in random.choice(documents, size=2, replace=False):
            files[split].write(f"q{number}\td{document}\t1\n")
    for file in files.values():
        file.close()


def _run(step: str, *arguments: str) -> Run:
    return _measured(step, [sys.executable, "-c", _COMMAND, *arguments])[0]


def _preflight(folder: Path) -> Run:
    run, output = _measured("preflight", [sys.executable, "-c", _PREFLIGHT, str(folder)])
    wall, cpu = (float(each) for each in output.split())
    return Run(run.step, wall, cpu, run.peak_mib)


def _measured(step: str, command: list[str]) -> tuple[Run, str]:
    """Run a command to its end; returns what it took, and its output."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-S", "-c", _WAIT, *command], stdout=subprocess.PIPE, text=True)
    wall = time.perf_counter() - start
    if done.returncode != 0:
        raise RuntimeError(f"{step} ended with {done.returncode}: {done.stdout[-2000:]}")
    output, _, usage = done.stdout.rstrip().rpartition("\n")
    cpu, peak = (float(each) for each in usage.split())
    return Run(step, wall, cpu, peak), output


def made_texts(count: int, shortest: int = 60, longest: int = 100, seed: int = 0) -> Iterator[str]:
    """Texts of words by Zipf's law; ``longest`` is the most words."""
    random = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(
        ["".join(random.choice(letters, size=size)) for size in random.integers(2, 11, size=_WORDS)],
        dtype=object,
    )
    shares = 1 / np.arange(1, _WORDS + 1)
    bounds = np.cumsum(shares / shares.sum())
    while count > 0:
        lengths = random.integers(shortest, longest + 1, size=min(count, _BATCH))
        drawn = words[np.searchsorted(bounds, random.random(lengths.sum())).clip(max=_WORDS - 1)].tolist()
        end = 0
        for length in lengths.tolist():
            end += length
            yield " ".join(drawn[end - length : end])
        count -= len(lengths)


def _document(number: int, text: str) -> dict[str, str]:
    return {"title": f"Passage {number}", "text": text}


def _pairs(count: int) -> Iterator[tuple[str, str]]:
    """Query and passage; one passage in ten is an earlier one's."""
    earlier = ""
    for number, (query, passage) in enumerate(
        zip(made_texts(count, 5, 12, 1), made_texts(count), strict=True)
    ):
        if number % 10 == 5:
            earlier = passage
        yield query, (earlier if number % 10 == 9 else passage)


def _pairs_jsonl(folder: Path, count: int) -> None:
    _lines(folder / "pairs.jsonl", ({"query": query, "positive": text} for query, text in _pairs(count)))


def _pairs_csv(folder: Path, count: int) -> None:
    with (folder / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["query", "positive"])
        writer.writerows(_pairs(count))


def _pairs_parquet(folder: Path, count: int) -> None:
    _parquet(folder / "pairs.parquet", ({"query": query, "positive": text} for query, text in _pairs(count)))


def _hugging_face(folder: Path, count: int) -> None:
    """Documents, and a query for 20 of them."""
    for name in ("corpus", "queries", "qrels"):
        (folder / name).mkdir()
    _parquet(
        folder / "corpus/corpus.parquet",
        ({"_id": f"d{n}", **_document(n, text)} for n, text in enumerate(made_texts(count))),
    )
    _parquet(
        folder / "queries/queries.parquet",
        ({"_id": f"q{n}", "text": text} for n, text in enumerate(made_texts(count // 20, 5, 12, 1))),
    )
    _parquet(
        folder / "qrels/train.parquet",
        ({"query-id": f"q{n}", "corpus-id": f"d{n * 20}", "score": 1} for n in range(count // 20)),
    )


def _ms_marco(folder: Path, count: int) -> None:
    """Documents, and a query for 2 of them, as MS MARCO has one for 17 in train and many unjudged."""
    queries = count // 2
    texts: dict[str, Any] = {"collection": made_texts(count), "queries.train": made_texts(queries, 5, 12, 1)}
    for name, each in texts.items():
        with (folder / f"{name}.tsv").open("w", encoding="utf-8") as file:
            file.writelines(f"{number}\t{text}\n" for number, text in enumerate(each))
    with (folder / "qrels.train.tsv").open("w", encoding="utf-8") as file:
        file.writelines(f"{number}\t0\t{number * 2}\t1\n" for number in range(queries))


_FORMATS: dict[str, Callable[[Path, int], None]] = {
    "jsonl": _pairs_jsonl,
    "csv": _pairs_csv,
    "parquet": _pairs_parquet,
    "hugging-face": _hugging_face,
    "ms-marco": _ms_marco,
}


def _lines(path: Path, records: Iterator[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _parquet(path: Path, records: Iterator[dict[str, Any]]) -> None:
    first = list(islice(records, _BATCH))
    with parquet.ParquetWriter(path, arrow.Table.from_pylist(first).schema) as writer:
        while first:
            writer.write_table(arrow.Table.from_pylist(first))
            first = list(islice(records, _BATCH))


if __name__ == "__main__":
    typer.run(main)
