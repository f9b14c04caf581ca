"""The README's first command on the built-in sample, then jobs and `serve run` on what it left. Minutes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from routerretriever.runtime.haproxy import free_port
from ruamel.yaml import YAML
from support.environment import users_environment
from support.head import started_head
from support.paths import BIN, ROOT
from support.waiting import wait_for

pytestmark = [pytest.mark.end_to_end, pytest.mark.xdist_group("services")]
EXPERTS = ["kitchen", "support", "debate", "tenancy", "shell", "health"]


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return tmp_path_factory.mktemp("sample")


@pytest.fixture(scope="module")
def run(storage):
    command = [BIN / "routerretriever", "run", "jobs/recipes/sample.yaml", "--set", f"storage={storage}"]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=users_environment()
    )


def test_the_main_job_ends_with_an_answer_over_http(run):
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "expert     tenancy" in run.stdout
    assert "bundle models:/sample@champion (version 1" in run.stdout
    assert "Traceback" not in run.stdout + run.stderr


def test_experts_and_routing_differ_visibly_from_the_base(run, storage):
    figures = json.loads((storage / "reports" / "sample" / "evaluation.json").read_text())
    means = {way: mean["with_expert"] for way, mean in figures["mean_ndcg_at_10"].items()}
    own = sum(figures["ndcg_at_10"][name][name] for name in EXPERTS) / len(EXPERTS)
    assert own > means["base"] + 0.05
    assert means["RouterRetriever"] > means["base"] + 0.05
    assert means["InstanceOracle"] > means["DatasetOracle"] + 0.02
    assert figures["mean_ndcg_at_10"]["base"]["zero_shot"] > 0


def test_the_base_scores_what_it_did(run, storage):
    figures = json.loads((storage / "reports" / "sample" / "evaluation.json").read_text())["ndcg_at_10"]
    case = YAML(typ="safe", pure=True).load(ROOT / "jobs" / "reproduction.yaml")["cases"]["sample-base"]
    for name, expected in case["expected"]["base"].items():
        assert 100 * figures["base"][name] == pytest.approx(expected, abs=case["tolerance"])


def test_the_notebook_finds_what_it_shows(run, storage, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "sample").symlink_to(storage)
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "examples" / "sample.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    found: dict[str, Any] = {}
    exec(compile(code, "sample.ipynb", "exec"), found)
    assert found["table"].loc["RouterRetriever", "mean"] > found["table"].loc["base", "mean"] + 5
    # The third query is about the third document, but of a domain without an expert.
    assert found["similarity"].argmax(axis=1).tolist() == [1, 0, 2]


def test_serve_run_answers_from_the_shipped_configuration(run, storage, tmp_path):
    with serve_run(storage, tmp_path, users_environment()) as url:
        assert_answers(url)


def test_on_a_head_with_tokens_a_submitted_job_leaves_what_serve_run_answers_from(run, storage, tmp_path):
    """The guide's sequence, where a local run has been before."""
    with started_head(tmp_path / "head.log") as head:
        job = ["python", "-m", "jobs.run", "jobs/recipes/sample.yaml", "--no-ask", "--set"]
        done = head.submit(*job, f"storage={storage}")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert "bundle models:/sample@champion (version 1" in done.stdout
        assert "dev nDCG@10" not in done.stdout, "what is there is not trained again"
        with serve_run(storage, tmp_path, head.environment) as url:
            assert_answers(url)


def assert_answers(url: str) -> None:
    body = {"query": "undo my last commit but keep the files", "collection": "shell"}
    answer = httpx.post(f"{url}/v1/search", json=body, timeout=300).raise_for_status().json()
    assert set(answer["weights"]) <= {*EXPERTS, "base"}
    assert len(answer["results"]) == 10


@contextmanager
def serve_run(storage: Path, folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """``serve run`` with the shipped configuration, on another port and storage, while a block runs."""
    yaml, port = YAML(), free_port()
    config = yaml.load((ROOT / "serve_configs" / "local.yaml").read_text())
    config["http_options"]["port"] = port
    config["applications"][0]["args"]["set"] = [f"storage={storage}"]
    path, log = folder / "serve.yaml", folder / "serve.log"
    with path.open("w") as file:
        yaml.dump(config, file)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [BIN / "serve", "run", path],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A shell's background jobs ignore Ctrl-C, and so would their children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            env=environment,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(f"{url}/healthz", process, log)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(timeout=600)
            finally:
                # Its HAProxy would keep the ports from the services of other tests.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
