"""What happens when things break: each fault is caused, and the table tells what became of the run.

    python -m jobs.benchmarks.faults
    python -m jobs.benchmarks.faults --only "driver killed"

Runs two domains of the sample on the fake encoder, with small shards, so that every fault finds work half
done. "Repeated" is finished work that was done again. Nodes are `ray start` processes of this machine; a lost
one is noticed after some 3 seconds, where Ray's own setting takes about 15. A killed training worker is a
test of its own (tests/integration/test_training.py). The full disk needs root, for a small file system.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from routerretriever.runtime.haproxy import free_port
from routerretriever.runtime.progress import log, set_up
from ruamel.yaml import YAML

from jobs.benchmarks.measure import report

ROOT = Path(__file__).parents[2]
_PATIENCE_SECONDS = 240
_QUICK_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


class Trial:
    """A recipe in an empty folder, and jobs that run it."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        self.storage = folder / "storage"
        self.environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}",
            "RAY_AUTH_MODE": "disabled",
            "ROUTERRETRIEVER_CACHE": str(folder / "cache"),
        }
        self.environment.pop("RAY_ADDRESS", None)
        self._jobs = 0
        recipe = {
            "name": "faults",
            "storage": str(self.storage),
            "domains": {"kitchen": {"path": "sample:kitchen"}, "shell": {"path": "sample:shell"}},
            "encoder": {"name": "fake"},
            "corpus": {"shard_size": 4},
            "training": {"max_steps": 60, "evaluate_every": 4, "patience": 1000, "batch_size": 8},
            "scoring": {"chunk_size": 4},
            **changes,
        }
        with (folder / "recipe.yaml").open("w") as file:
            YAML().dump(recipe, file)

    def start(self, step: str) -> tuple[subprocess.Popen[bytes], Path]:
        """Start a step's job; returns it and its log."""
        self._jobs += 1
        output = self.folder / f"{self._jobs}-{step}.log"
        command = [sys.executable, "-m", f"jobs.{step}", str(self.folder / "recipe.yaml")]
        with output.open("wb") as file:
            job = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=file, stderr=subprocess.STDOUT
            )
        return job, output

    def run(self, step: str) -> tuple[int, str]:
        """Run a step's job to its end; returns its exit code and its log."""
        job, output = self.start(step)
        return job.wait(_PATIENCE_SECONDS), output.read_text()

    def files(self, pattern: str) -> dict[Path, int]:
        """Finished files of storage, and when they were written."""
        return {path: path.stat().st_mtime_ns for path in self.storage.glob(pattern)}

    def checkpointed(self) -> bool:
        """Whether a trainer has left a whole checkpoint."""
        return any(self.storage.glob("training/*/*/artifact.json"))

    def resumed(self) -> str:
        """From which steps trainers went on."""
        cards = [json.loads(path.read_text()) for path in self.storage.glob("experts/*/artifact.json")]
        return ", ".join(f"{card['domain']} at {card['resumed_at'] or 'nothing'}" for card in cards)


EMBEDDINGS, PARTS = "corpora/*/embeddings/*.npy", "scores/*/*/*/part-*.parquet"


def node_lost(folder: Path) -> tuple[str, str]:
    """Kill the only working machine during encoding, its successor in training, the next in scoring."""
    trial = Trial(folder)
    with head() as (address, add_node):
        trial.environment["RAY_ADDRESS"] = address
        node = add_node()
        job, output = trial.start("score")
        finished: dict[Path, int] = {}
        for reached in (
            lambda: len(trial.files(EMBEDDINGS)) >= 8,
            trial.checkpointed,
            lambda: len(trial.files(PARTS)) >= 8,
        ):
            await_that(reached, job, output)
            finished |= {**trial.files(EMBEDDINGS), **trial.files(PARTS)}
            kill(node)
            node = add_node()
        code = job.wait(_PATIENCE_SECONDS)
        kill(node)
    again = [path for path, written in finished.items() if path.stat().st_mtime_ns != written]
    return (
        f"three nodes lost, job ended with {code}",
        f"{len(again)} of {len(finished)} finished shards; trainers went on: {trial.resumed()}",
    )


def driver_killed(folder: Path) -> tuple[str, str]:
    """Kill the driver, and with it its cluster, in training; submit it again."""
    trial = Trial(folder)
    job, output = trial.start("score")
    await_that(trial.checkpointed, job, output)
    finished = trial.files(EMBEDDINGS)
    kill(job)
    code, _ = trial.run("score")
    again = [path for path, written in trial.files(EMBEDDINGS).items() if finished.get(path) != written]
    return (
        f"killed, run again, ended with {code}",
        f"{len(again)} of {len(finished)} finished shards; trainers went on: {trial.resumed()}",
    )


def registry_away(folder: Path) -> tuple[str, str]:
    """Register while MLflow's server is down; start it; register again."""
    port = free_port()
    trial = Trial(folder, registry={"tracking_uri": f"http://127.0.0.1:{port}"})
    trial.environment["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "2"
    failed, told = trial.run("register")
    made = {**trial.files(EMBEDDINGS), **trial.files(PARTS), **trial.files("experts/*/*")}
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "mlflow.log").open("wb") as file:
        server = subprocess.Popen(
            [*command, "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"],
            cwd=folder,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        await_that(lambda: answers(port), server, folder / "mlflow.log")
        code, _ = trial.run("register")
    finally:
        kill(server)
    kept = {**trial.files(EMBEDDINGS), **trial.files(PARTS), **trial.files("experts/*/*")} == made
    return (
        f"ended with {failed} ({last_line(told)}); with the server, run again, ended with {code}",
        "nothing" if kept else "some finished work",
    )


def storage_away(folder: Path) -> tuple[str, str]:
    """Take an S3 server away for 20 seconds while documents are encoded and experts trained."""
    from moto.server import ThreadedMotoServer

    port = free_port()
    trial = Trial(folder, storage="s3://bucket/faults")
    trial.environment |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    subprocess.run(
        [sys.executable, "-c", "import fsspec; fsspec.filesystem('s3').mkdir('bucket')"],
        env=trial.environment,
        check=True,
    )
    job, output = trial.start("train")
    await_that(lambda: "Ray:" in output.read_text(), job, output)
    absences = 0
    while job.poll() is None and absences < 2:
        time.sleep(15)
        server.stop()
        time.sleep(20)
        server.start()
        absences += 1
    code = job.wait(_PATIENCE_SECONDS)
    server.stop()
    told = output.read_text()
    return (
        f"away {absences} times, job ended with {code}",
        f"nothing; {told.count('trying again')} warnings",
    )


def full_disk(folder: Path) -> tuple[str, str]:
    """Encode onto a file system without room, make room, run again."""
    if os.geteuid() != 0:
        return "not run: needs root", ""
    trial = Trial(folder)
    trial.storage.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", trial.storage], check=True)
    try:
        failed, told = trial.run("encode")
        finished = trial.files(EMBEDDINGS)
        half = list(trial.storage.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=64m", trial.storage], check=True)
        code, _ = trial.run("encode")
        again = [path for path, written in finished.items() if path.stat().st_mtime_ns != written]
    finally:
        subprocess.run(["umount", trial.storage], check=True)
    return (
        f"ended with {failed} ({last_line(told)}), {len(half)} half-written files; "
        f"with room, run again, ended with {code}",
        f"{len(again)} of {len(finished)} finished shards",
    )


def corrupted(folder: Path) -> tuple[str, str]:
    """Alter one shard of embeddings and one expert, and run again."""
    trial = Trial(folder)
    trial.run("train")
    before = {**trial.files(EMBEDDINGS), **trial.files("experts/*/adapter_model.safetensors")}
    shard = sorted(trial.files("corpora/kitchen-*/embeddings/*.npy"))[0]
    (expert,) = trial.files("experts/shell-*/adapter_model.safetensors")
    for path in (shard, expert):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    code, told = trial.run("train")
    noticed = sum("hash mismatch" in line for line in told.splitlines())
    after = {**trial.files(EMBEDDINGS), **trial.files("experts/*/adapter_model.safetensors")}
    again = [path for path, written in before.items() if after[path] != written]
    extra = len(set(again) - {shard, expert})
    return f"{noticed} of 2 named in the log, ended with {code}", f"the 2 altered files, and {extra} others"


def two_at_once(folder: Path) -> tuple[str, str]:
    """Run the same recipe twice at the same time, each on a cluster of its own."""
    trial = Trial(folder)
    jobs = [trial.start("score"), trial.start("score")]
    codes = [job.wait(_PATIENCE_SECONDS) for job, _ in jobs]
    lines = [line for _, output in jobs for line in output.read_text().splitlines()]
    made = {work: sum(work in line for line in lines) for work in ("encoded kitchen", "expert shell: dev")}
    waited = sum("waiting for another run" in line for line in lines)
    return (
        f"ended with {codes[0]} and {codes[1]}; {waited} times one waited for the other",
        "nothing" if set(made.values()) == {1} else str(made),
    )


FAULTS: dict[str, Callable[[Path], tuple[str, str]]] = {
    "node lost": node_lost,
    "driver killed": driver_killed,
    "MLflow away": registry_away,
    "storage away": storage_away,
    "disk full": full_disk,
    "artifact altered": corrupted,
    "two runs at once": two_at_once,
}


@contextmanager
def head() -> Iterator[tuple[str, Callable[[], subprocess.Popen[bytes]]]]:
    """A cluster whose head takes no work: its address, and how to add a node of two CPUs."""
    ray, port = Path(sys.executable).with_name("ray"), free_port()
    environment = {**os.environ, **_QUICK_HEALTH_CHECKS, "RAY_AUTH_MODE": "disabled"}
    environment["PYTHONPATH"] = f"{ROOT / 'platform'}:{ROOT}"
    environment.pop("RAY_ADDRESS", None)
    # The path of a socket, which Ray makes below it, must be short.
    scratch = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    small = ["--block", "--object-store-memory=200000000"]

    def start(*options: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [ray, "start", *options, *small],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    first = start(
        "--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={scratch}"
    )
    try:
        await_that(lambda: answers(port), first, None)
        address = f"127.0.0.1:{port}"
        # Addresses of their own, so that the driver takes the head for its machine.
        numbers = itertools.count(2)
        yield (
            address,
            lambda: start(
                f"--address={address}", "--num-cpus=2", f"--node-ip-address=127.0.0.{next(numbers)}"
            ),
        )
    finally:
        kill(first)
        shutil.rmtree(scratch, ignore_errors=True)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and all below it at once, as a machine that loses its power."""
    try:
        below = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        below = []
    for each in (*below, process):
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def await_that(reached: Callable[[], bool], process: subprocess.Popen[bytes], output: Path | None) -> None:
    """Wait until something holds, while a process lives."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not reached():
        if process.poll() is not None or time.monotonic() > deadline:
            told = output.read_text()[-2000:] if output else ""
            raise RuntimeError(f"what was waited for did not come; exit code {process.poll()}\n{told}")
        time.sleep(0.05)


def answers(port: int) -> bool:
    """Whether somebody listens."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or [""])[-1][:160]


def main(
    only: Annotated[list[str] | None, typer.Option(help="Faults by name; by default all.")] = None,
) -> None:
    """Cause the faults, one after the other, and show what happened."""
    set_up(quiet=True)
    rows = []
    for name in only or FAULTS:
        folder = Path(tempfile.mkdtemp(prefix="fault-"))
        begin = time.monotonic()
        outcome, repeated = FAULTS[name](folder)
        seconds = time.monotonic() - begin
        log.info("%s: %s; repeated: %s (%.0f s)", name, outcome, repeated, seconds)
        rows.append([name, outcome, repeated, f"{seconds:.0f}"])
        shutil.rmtree(folder, ignore_errors=True)
    header = ["fault", "what happened", "repeated", "seconds"]
    report(
        "faults", "faults", header, rows, {"faults": [dict(zip(header, row, strict=True)) for row in rows]}
    )


if __name__ == "__main__":
    typer.run(main)
