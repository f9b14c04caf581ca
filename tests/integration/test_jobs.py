"""The same steps through `ray job submit`, on a cluster that the test starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile

import pytest
from routerretriever.serving.deployments.run import free_port
from support.environment import users_environment
from support.paths import BIN, ROOT
from support.recipes import save_recipe, tiny_recipe
from support.waiting import wait_for, wait_until

pytestmark = pytest.mark.integration
RAY = BIN / "ray"


@pytest.fixture
def short_folder():
    """Ray's sockets lie under it, and the path of a socket must be short; it also keeps this cluster's
    address out of the place where other programs look for one."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.fixture
def head(tmp_path, short_folder):
    """The environment to reach a cluster of its own, which wants Ray's token, as the guide starts one."""
    environment = users_environment(RAY_AUTH_MODE="token")
    generate = [RAY, "get-auth-token", "--generate"]  # gives the token that is there, if one is
    token = subprocess.run(generate, env=environment, check=True, capture_output=True, text=True).stdout
    gcs, dashboard, agent = free_port(), free_port(), free_port()
    start = [RAY, "start", "--head", "--block", f"--port={gcs}", f"--dashboard-port={dashboard}"]
    # The agent's usual port is that of the cluster that other tests share.
    start += [f"--dashboard-agent-listen-port={agent}", "--num-cpus=2", f"--temp-dir={short_folder}"]
    log = (tmp_path / "head.log").open("wb")
    # A process group of its own, so that this cluster can be ended without ending others on the machine.
    process = subprocess.Popen(
        start,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{dashboard}"
    try:
        wait_for(f"{url}/api/version", process, tmp_path / "head.log", token.strip())
        yield {**environment, "RAY_ADDRESS": url}
    finally:
        # Asked to end, Ray takes half a minute. Nothing of this cluster is needed any more.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=300)
        log.close()


def test_a_submitted_job_evaluates_a_recipe(head, tiny_data):
    # One expert, and a collection without: every expert more starts processes and shows nothing new.
    domains = {"fruit": {"path": "fruit"}, "sport": {"path": "sport", "expert": False}}
    recipe = save_recipe(tiny_recipe(tiny_data, domains=domains), tiny_data / "recipe.yaml")
    submit = [RAY, "job", "submit", "--working-dir", ROOT, "--", "python", "-m", "jobs.evaluate", recipe]
    done = None

    def accepted() -> bool:
        nonlocal done
        done = subprocess.run(submit, env=head, capture_output=True, text=True, timeout=1500, check=False)
        return (
            "No available agent" not in done.stderr
        )  # the dashboard answers before the agent that starts jobs

    wait_until(accepted)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    figures = json.loads((tiny_data / "storage" / "reports" / "tiny" / "evaluation.json").read_text())
    assert set(figures["ndcg_at_10"]["RouterRetriever"]) == set(domains)


def test_cli_reports_a_users_mistake_without_a_traceback(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"name: r\ndata_root: {tmp_path}\ndomains:\n  a: {{path: scifact}}\n")
    command = [sys.executable, "-m", "jobs.train", str(recipe)]
    failed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert failed.returncode == 1
    assert "domains.a.path: no folder" in failed.stderr
    assert "Traceback" not in failed.stderr
