"""The same steps through `ray job submit`, on a cluster that the test starts."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support.head import started_head
from support.paths import ROOT
from support.recipes import save_recipe, tiny_recipe

pytestmark = pytest.mark.integration


@pytest.fixture
def head(tmp_path):
    """A cluster of its own, which wants Ray's token, as the guide starts one."""
    with started_head(tmp_path / "head.log") as head:
        yield head


def test_a_submitted_job_evaluates_a_recipe(head, tiny_data):
    # One expert, and a collection without: every expert more starts processes and shows nothing new.
    domains = {"fruit": {"path": "fruit"}, "sport": {"path": "sport", "expert": False}}
    recipe = save_recipe(tiny_recipe(tiny_data, domains=domains), tiny_data / "recipe.yaml")
    done = head.submit("python", "-m", "jobs.evaluate", recipe)
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
