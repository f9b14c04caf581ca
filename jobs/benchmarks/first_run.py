"""A newcomer's first minutes, with a clock: the README's commands in an empty folder, and what is seen when.

    python -m jobs.benchmarks.first_run

Clones this repository and installs from the package index: set-up depends on the network and on pip's cache.
"Seconds" are of each command, from its start on.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
from routerretriever.runtime.haproxy import free_port
from routerretriever.runtime.progress import set_up

from jobs.benchmarks.measure import report

ROOT = Path(__file__).parents[2]
SAMPLE = {
    "the first line": r"recipe \w+;",
    "the first documents are encoded": r"encoded \w+:",
    "the first expert is trained": r"expert \w+: dev",
    "the table of all systems": r"nDCG@10 x 100",
    "an answer over HTTP": r"^question",
    "the prompt again": r"^next:",
}
"""What is seen -> the first line that shows it."""


def run(command: list[str], folder: Path) -> Iterator[tuple[float, str]]:
    """Seconds since the command began, and a line that it printed; the last is empty.

    Raises:
        CalledProcessError: it failed.
    """
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    begin = time.monotonic()
    with subprocess.Popen(
        command, cwd=folder, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield time.monotonic() - begin, line.strip()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    yield time.monotonic() - begin, ""


def first_seen(lines: Iterator[tuple[float, str]], wanted: Mapping[str, str]) -> dict[str, float]:
    """When each of some lines was first printed, and when the command ended (``""``)."""
    seen: dict[str, float] = {}
    for seconds, line in lines:
        if not line:
            seen[""] = seconds
        for name, pattern in wanted.items():
            if line and re.search(pattern, line):
                seen.setdefault(name, seconds)
    return seen


def served(clone: Path) -> dict[str, float]:
    """Seconds until the service has answered a search, and of another search."""
    port = free_port()
    body = {"query": "my thumb tingles at night", "collection": "health", "top_k": 1}
    command = [".venv/bin/routerretriever", "serve", "jobs/recipes/sample.yaml"]
    begin = time.monotonic()
    service = subprocess.Popen(
        [*command, "--set", f"serving.port={port}"], cwd=clone, stdout=subprocess.DEVNULL
    )
    try:
        while True:
            assert service.poll() is None, "the service has ended"
            try:
                answer = httpx.post(f"http://127.0.0.1:{port}/v1/search", json=body, timeout=60)
                answer.raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        first = time.monotonic() - begin
        httpx.post(f"http://127.0.0.1:{port}/v1/search", json=body, timeout=60).raise_for_status()
        return {"the first answer": first, "another answer": time.monotonic() - begin - first}
    finally:
        service.terminate()
        service.wait(120)


def main() -> None:
    """Follow the README, and say what was seen when."""
    set_up(quiet=True)
    with tempfile.TemporaryDirectory(prefix="first-run-") as scratch:
        clone = Path(scratch) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        steps = {
            "make install": {"set up": first_seen(run(["make", "install"], clone), {})[""]},
            "make sample": first_seen(run(["make", "sample"], clone), SAMPLE),
            "routerretriever serve": served(clone),
        }
    rows = [
        [command, name, f"{seconds:.0f}" if seconds >= 1 else f"{seconds:.2f}"]
        for command, seen in steps.items()
        for name, seconds in seen.items()
        if name
    ]
    report("first-run", "the first run", ["command", "what is seen", "seconds"], rows, {"steps": steps})


if __name__ == "__main__":
    main()
