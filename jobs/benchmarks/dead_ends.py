"""What cannot be reached: each dead end is caused, and the table tells how long it took to be told, and how.

    python -m jobs.benchmarks.dead_ends

"Seconds" are of the whole command, its start included; the first row, where all is well, is that start alone.
No Ray is started.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from routerretriever.runtime.haproxy import free_port
from ruamel.yaml import YAML

from jobs.benchmarks.measure import report

ROOT = Path(__file__).parents[2]
_SECRET = "planted-Pa55"
_S3 = {"AWS_ACCESS_KEY_ID": "anna", "AWS_SECRET_ACCESS_KEY": _SECRET, "AWS_DEFAULT_REGION": "us-east-1"}


class _Refuses(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def servers() -> Iterator[tuple[str, str, str]]:
    """Addresses of a server that refuses everybody, one that never answers, and none at all."""
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), _Refuses) as refuses,
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):
        threading.Thread(target=refuses.serve_forever, daemon=True).start()
        ports = refuses.server_port, silent.getsockname()[1], free_port()
        first, second, third = (f"127.0.0.1:{port}" for port in ports)
        yield first, second, third
        refuses.shutdown()


def run(folder: Path, command: str, environment: dict[str, str], *settings: str) -> tuple[str, str]:
    """Run a command on the recipe in a folder; its seconds, and what it told last."""
    arguments = [
        sys.executable,
        "-c",
        "from routerretriever.cli.main import main; main()",
        command,
        "recipe.yaml",
    ]
    arguments += [part for setting in settings for part in ("--set", setting)]
    own = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}", **environment}
    begin = time.monotonic()
    done = subprocess.run(arguments, cwd=folder, env=own, capture_output=True, text=True, timeout=300)
    seconds = time.monotonic() - begin
    told = done.stdout + done.stderr
    assert _SECRET not in told, f"{command}: a password was told"
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    return f"{seconds:.0f}", errors[0].removeprefix("error: ") if errors else f"exit code {done.returncode}"


def main() -> None:
    """Cause them one after the other."""
    with (
        tempfile.TemporaryDirectory(prefix="dead-ends-") as scratch,
        servers() as (refuses, silent, nobody),
    ):
        folder = Path(scratch)
        with (folder / "recipe.yaml").open("w") as file:
            YAML().dump(
                {"name": "dead", "domains": {"shell": {"path": "sample:shell"}}, "encoder": {"name": "fake"}},
                file,
            )
        mlflow = "registry.tracking_uri=http://anna:" + _SECRET + "@"
        rows = [
            ["none", *run(folder, "versions", {})],
            ["nobody at RAY_ADDRESS", *run(folder, "encode", {"RAY_ADDRESS": nobody})],
            ["nobody at the MLflow server", *run(folder, "versions", {}, mlflow + nobody)],
            ["MLflow never answers", *run(folder, "versions", {}, mlflow + silent)],
            ["MLflow refuses the password", *run(folder, "versions", {}, mlflow + refuses)],
            ["storage never answers", *_storage(folder, silent)],
            ["storage refuses", *_storage(folder, refuses)],
        ]
    header = ["dead end", "seconds", "what was told"]
    report(
        "dead-ends",
        "dead ends",
        header,
        rows,
        {},
    )


def _storage(folder: Path, address: str) -> tuple[str, str]:
    environment = {**_S3, "AWS_ENDPOINT_URL": f"http://{address}"}
    return run(
        folder, "encode", environment, "storage=s3://bucket/dead", "registry.tracking_uri=http://127.0.0.1:1"
    )


if __name__ == "__main__":
    main()
