"""A real Prometheus with the files that we ship, beside a Ray head and a service as users start them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from routerretriever.client import Client
from routerretriever.runtime.haproxy import free_port
from support.head import Head, started_head
from support.paths import BIN, ROOT
from support.recipes import save_recipe, with_changes
from support.waiting import wait_for, wait_until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.xdist_group("services"),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed"),
]
SHIPPED = ROOT / "serve_configs" / "prometheus"
DASHBOARD = json.loads((ROOT / "serve_configs" / "grafana" / "routerretriever.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
LATER = "## What is there only later"


class Prometheus:
    """Asks a Prometheus over HTTP."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/api/v1"

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer."""
        answer = httpx.get(f"{self._url}/{path}", params=parameters, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def targets(self) -> dict[tuple[str, str], str]:
        """Job and address of each endpoint -> whether it is up."""
        found = self.ask("targets")["activeTargets"]
        return {(one["labels"]["job"], one["labels"]["instance"]): one["health"] for one in found}

    def alerts(self) -> dict[str, str]:
        """Name of each alert that is not silent -> pending or firing."""
        return {one["labels"]["alertname"]: one["state"] for one in self.ask("alerts")["alerts"]}


@contextmanager
def started_prometheus(head: Head, folder: Path) -> Iterator[Prometheus]:
    """Prometheus with the shipped files, which look below the head's folder, and more often."""
    shutil.copytree(SHIPPED, folder / "config")
    config = folder / "config" / "prometheus.yml"
    text, paths = re.subn(r"/tmp/ray/", f"{head.temporary}/", config.read_text())
    text, intervals = re.subn(r"_interval: \d+s", "_interval: 2s", text)
    assert (paths, intervals) == (1, 2)
    config.write_text(text)
    port, log = free_port(), folder / "prometheus.log"
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_for(f"http://127.0.0.1:{port}/-/ready", process, log)
            yield Prometheus(f"http://127.0.0.1:{port}")
        finally:
            process.kill()
            process.wait(60)


@contextmanager
def started_service(head: Head, recipe: Path, port: int, log: Path) -> Iterator[Client]:
    """``routerretriever serve`` on the head; it is stopped, as by Ctrl-C, when the block ends."""
    environment = {**head.environment, "RAY_ADDRESS": "auto"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [BIN / "routerretriever", "serve", recipe, "--quiet"],
            cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            wait_for(f"http://127.0.0.1:{port}/readyz", process, log)
            with Client(f"http://127.0.0.1:{port}") as client:
                yield client
        finally:
            process.terminate()
            process.wait(300)


def documented_as_later() -> set[str]:
    """Metrics of which the guide says what has to happen first."""
    page = (ROOT / "docs" / "how-to" / "monitor.md").read_text()
    section = page.partition(f"{LATER}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"`(ray_\w+)`", section))


def test_prometheus_finds_every_metric_and_tells_of_a_service_and_a_head_that_are_gone(run, tmp_path):
    port = free_port()
    recipe = save_recipe(with_changes(run.pipeline.recipe, serving__port=port), tmp_path / "recipe.yaml")
    rules = (SHIPPED / "alerts.yaml").read_text()
    asked = set(re.findall(r"\bray_\w+", rules + " ".join(EXPRESSIONS)))
    with started_head(tmp_path / "head.log") as head, started_prometheus(head, tmp_path) as prometheus:
        with started_service(head, recipe, port, tmp_path / "serve.log") as client:
            wait_until(lambda: set(prometheus.targets().values()) == {"up"}, found=prometheus.targets)
            assert {job for job, _ in prometheus.targets()} == {"ray"}

            def missing() -> set[str]:
                client.search("where is grape with fig", "fruit")  # a gauge that is not set any more goes
                return asked - documented_as_later() - set(prometheus.ask("label/__name__/values"))

            wait_until(lambda: not missing(), seconds=180, found=missing)
            for expression in EXPRESSIONS:
                prometheus.ask("query", query=expression.replace("$__rate_interval", "1m"))
            groups = prometheus.ask("rules")["groups"]
            assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}, groups
            assert "ServiceIsDown" not in prometheus.alerts()
        wait_until(lambda: "ServiceIsDown" in prometheus.alerts(), found=prometheus.alerts)
        assert "MachineIsSilent" not in prometheus.alerts()
        head.kill()
        wait_until(lambda: "MachineIsSilent" in prometheus.alerts(), found=prometheus.alerts)
