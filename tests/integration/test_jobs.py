"""The same steps through `ray job submit`, on a cluster that the test starts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import WORDS, tiny_recipe, write_collection
from ruamel.yaml import YAML

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def head(tmp_path):
    """The dashboard address of a cluster of its own, and the environment to reach it."""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PATH": f"{RAY.parent}:{os.environ['PATH']}"}
    environment.pop("RAY_ADDRESS", None)
    gcs, dashboard = free_port(), free_port()
    start = [RAY, "start", "--head", f"--port={gcs}", f"--dashboard-port={dashboard}", "--num-cpus=2"]
    subprocess.run(start, check=True, env=environment, capture_output=True, timeout=120)
    yield {**environment, "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    subprocess.run([RAY, "stop", "--force"], check=False, env=environment, capture_output=True)


def test_a_submitted_job_evaluates_a_recipe(head, tmp_path):
    for name, words in WORDS.items():
        write_collection(tmp_path / "data" / name, words)
    recipe = tmp_path / "recipe.yaml"
    with recipe.open("w") as file:
        YAML().dump(tiny_recipe(tmp_path).model_dump(mode="json"), file)
    submit = [RAY, "job", "submit", "--working-dir", ROOT, "--", "python", "-m", "jobs.evaluate", recipe]
    done = subprocess.run(submit, env=head, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    figures = json.loads((tmp_path / "storage" / "reports" / "tiny" / "evaluation.json").read_text())
    assert set(figures["ndcg_at_10"]["RouterRetriever"]) == set(WORDS)
