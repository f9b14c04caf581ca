"""What the benchmarks share: the machine's description, peak memory of a process tree, results on disk."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from routerretriever.config.loading import load_recipe
from routerretriever.config.recipe import Recipe
from routerretriever.methods.experts import Experts
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.runtime.machine import git_commit
from routerretriever.runtime.progress import figures_table, log, show

RESULTS = Path("runs/benchmarks")
_SAMPLING_SECONDS = 2.0
_WORKER = "ray::"
"""How Ray's workers are called among the processes."""


@dataclass
class Cost:
    """What a step took."""

    step: str
    seconds: float = 0.0
    peak_mib: float = 0.0
    """Largest sum of proportional set sizes of this process and all below it (Ray's among them)."""
    largest_mib: float = 0.0
    """The largest of any of them alone."""
    worker_mib: float = 0.0
    """The largest of Ray's workers, actors among them; 0 if there was none."""
    processes: int = 0
    """Largest number of processes below this one."""


@contextmanager
def measured(step: str) -> Iterator[Cost]:
    """Time a block, and sample the memory of this process and its descendants while it runs."""
    cost, done = Cost(step), threading.Event()

    def sample() -> None:
        while True:
            found = _memories("")
            each = [memory for _, memory in found]
            workers = [memory for name, memory in found if name.startswith(_WORKER)]
            cost.worker_mib = max(cost.worker_mib, *workers, 0.0)
            cost.peak_mib = max(cost.peak_mib, sum(each))
            cost.largest_mib = max(cost.largest_mib, *each)
            cost.processes = max(cost.processes, len(each) - 1)
            if done.wait(_SAMPLING_SECONDS):
                return

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    start = time.monotonic()
    try:
        yield cost
    finally:
        cost.seconds = time.monotonic() - start
        done.set()
        sampler.join()


def pipeline_under_load(recipe: Path, overrides: Sequence[str] | None) -> Pipeline:
    """A recipe whose service encodes every query, with replicas that stay as many as they are at first.

    Args:
        recipe: path of the recipe.
        overrides: as ``key=value``; they come before these.
    """
    found = load_recipe(recipe, ["serving.cached_vectors=0", *(overrides or [])])
    router = found.serving.router
    most = router.max_replicas or max(1, router.min_replicas)
    serving = found.serving.model_copy(update={"router": router.model_copy(update={"max_replicas": most})})
    return Pipeline(found.model_copy(update={"serving": serving}))


def memories_mib(name: str = "") -> list[float]:
    """Memory of this process and each of its descendants, or of those whose name begins so.

    Pages that several share are shared out.
    """
    return [memory for _, memory in _memories(name)]


def _memories(beginning: str) -> list[tuple[str, float]]:
    """Name and MiB of this process and each below it whose name begins so."""
    each = []
    root = psutil.Process()
    for process in (root, *root.children(recursive=True)):
        try:
            name = process.name()
            if not name.startswith(beginning):
                continue
            memory = process.memory_full_info()
        except psutil.Error:  # it ended meanwhile
            continue
        each.append((name, getattr(memory, "pss", memory.uss) / 2**20))
    return each


def wait_until(reached: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    """Ask twice a second whether something has come about.

    Raises:
        TimeoutError: it has not, in so many seconds.
    """
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.5)


def run_steps(recipe: Recipe) -> list[Cost]:
    """Run every step of a recipe up to the registered bundle, one after the other; Ray's start is its own."""
    from routerretriever.runtime.cluster import connect

    pipeline = Pipeline(recipe)
    steps: dict[str, Callable[[], object]] = {
        "start Ray": connect,
        "encode documents": lambda: pipeline.corpora,
        "train experts": lambda: pipeline.method(Experts).experts,
        "score queries": lambda: pipeline.method(Experts).scores,
        "fit the router": lambda: pipeline.method(Experts).router,
        "all other methods": pipeline.build,
        "evaluate": lambda: pipeline.evaluation,
        "register": pipeline.register,
    }
    costs = []
    for step, work in steps.items():
        with measured(step) as cost:
            work()
        log.info("%s: %.1f s, peak %.0f MiB", step, cost.seconds, cost.peak_mib)
        costs.append(cost)
    return costs


def hardware() -> str:
    """The machine in one line."""
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} x {model}, {torch.backends.cpu.get_cpu_capability()}, {memory:.0f} GiB, {gpu}"


def command(arguments: Sequence[str]) -> str:
    """How a benchmark was called, from its ``sys.argv``."""
    return shlex.join(["python", "-m", f"{__package__}.{Path(arguments[0]).stem}", *arguments[1:]])


def report(name: str, title: str, header: list[str], rows: list[list[str]], figures: dict[str, Any]) -> Path:
    """Print a table and write it and the figures, with command, machine, date and commit, as JSON.

    Returns:
        The file; ``docs/benchmarks/generate.py`` makes a page's table from it.
    """
    table, machine = figures_table(*header, title=title), hardware()
    for row in rows:
        table.add_row(*row)
    show(table)
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    facts = {
        "command": command(sys.argv),
        "hardware": machine,
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "commit": git_commit(),
        "title": title,
        "columns": header,
        "rows": rows,
    }
    assert not facts.keys() & figures.keys(), "a figure would take the place of the table or of a fact"
    path.write_text(json.dumps({**facts, **figures}, indent=2, default=asdict), encoding="utf-8")
    log.info("%s; wrote %s", machine, path)
    return path
