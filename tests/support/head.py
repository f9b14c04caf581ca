"""A Ray head as ``ray start --head`` starts one, apart from every other Ray of the machine."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from routerretriever.serving.deployments.run import free_port

from support.environment import users_environment
from support.paths import BIN, ROOT
from support.waiting import wait_for, wait_until

RAY = BIN / "ray"


@dataclass(frozen=True)
class Head:
    """A head that runs."""

    environment: dict[str, str]
    """Of a shell in which commands find this head, and no other."""
    url: str
    """Of the dashboard, which takes jobs."""
    temporary: Path
    """What is ``/tmp/ray`` to a user."""
    process: subprocess.Popen[bytes]

    def submit(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command as a job, with the checkout as its working directory."""
        submit = [RAY, "job", "submit", "--working-dir", ROOT, "--", *command]
        environment = {**self.environment, "RAY_ADDRESS": self.url}
        done: list[subprocess.CompletedProcess[str]] = []

        def accepted() -> bool:
            done[:] = [
                subprocess.run(
                    submit, env=environment, capture_output=True, text=True, timeout=1500, check=False
                )
            ]
            return "No available agent" not in done[0].stderr  # the dashboard answers before the agent

        wait_until(accepted)
        return done[0]

    def kill(self) -> None:
        """End all of it at once: asked to end, Ray takes half a minute."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=300)


@contextmanager
def started_head(log: Path) -> Iterator[Head]:
    """A head with two CPUs that wants Ray's token, for the length of a block; its output goes to ``log``."""
    # Ray's sockets lie in this folder, and the path of a socket must be short.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        environment = users_environment(
            RAY_AUTH_MODE="token",
            RAY_TMPDIR=folder,
            # A busy machine is no reason for a test to fail: Serve ends proxies that take 5 s to answer.
            RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S="60",
        )
        generate = [RAY, "get-auth-token", "--generate"]  # gives the token that is there, if one is
        token = subprocess.run(generate, env=environment, check=True, capture_output=True, text=True).stdout
        gcs, dashboard, agent = free_port(), free_port(), free_port()
        start = [RAY, "start", "--head", "--block", "--num-cpus=2", f"--port={gcs}"]
        # The agent's usual port is that of the cluster that other tests share.
        start += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
        with log.open("wb") as output:
            # A process group of its own, so that this cluster can be ended without ending others.
            process = subprocess.Popen(
                start, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            head = Head(environment, f"http://127.0.0.1:{dashboard}", Path(folder) / "ray", process)
            try:
                wait_for(f"{head.url}/api/version", process, log, token.strip())
                yield head
            finally:
                head.kill()
