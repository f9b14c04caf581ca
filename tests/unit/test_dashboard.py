"""The Grafana dashboard and the alerts ask for what the code measures, by the names that Prometheus has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "serve_configs" / "grafana" / "routerretriever.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALERTS = [
    rule
    for group in yaml.safe_load((ROOT / "serve_configs" / "prometheus" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
# As Ray exports them; the test of the live endpoint looks for those that need no GPU.
RAYS_OWN = {
    "ray_gcs_placement_group_count",
    "ray_node_cpu_utilization",
    "ray_node_disk_free",
    "ray_node_gpus_utilization",
    "ray_node_mem_total",
    "ray_node_mem_used",
    "ray_serve_deployment_processing_latency_ms_bucket",
    "ray_serve_deployment_queued_queries",
    "ray_serve_deployment_replica_healthy",
    "ray_serve_replica_processing_queries",
}
# Of what happens once, a rate shows nothing: Prometheus takes a counter's first value for its start.
AS_THEY_ARE = {
    "ray_gcs_placement_group_count",
    "ray_node_mem_total",
    "ray_routerretriever_releases_total",
    "ray_routerretriever_step_seconds_total",
    "ray_routerretriever_storage_retries_total",
    "ray_routerretriever_workers_replaced_total",
}
SUFFIXES = {"Counter": ["_total"], "Gauge": [""], "Histogram": ["_bucket", "_sum", "_count"]}


def defined() -> dict[str, str]:
    """Every metric that the code makes, with its kind."""
    kinds: dict[str, str] = {}
    for path in (ROOT / "platform").rglob("*.py"):
        text = path.read_text()
        if path.parent.name == "runtime" and path.name == "metrics.py":
            found = [("Counter", name) for name in re.findall(r'= "(routerretriever_\w+)"', text)]
        else:
            found = re.findall(r'(Counter|Gauge|Histogram)\(\s*"(routerretriever_\w+)"', text)
        assert len(re.findall('"routerretriever_[a-z_]+"', text)) == len(found), path
        kinds |= {name: kind for kind, name in found}
    return kinds


def used() -> set[str]:
    return {name for expression in EXPRESSIONS for name in re.findall(r"\bray_\w+", expression)}


def test_every_metric_of_the_code_is_shown_and_nothing_is_shown_that_nobody_measures():
    kinds = defined()
    assert len(kinds) > 10
    exported = {f"ray_{name}{suffix}": name for name, kind in kinds.items() for suffix in SUFFIXES[kind]}
    assert used() - exported.keys() == RAYS_OWN
    assert {exported[name] for name in used() & exported.keys()} == kinds.keys()


def test_alerts_ask_for_what_the_dashboard_shows_and_say_what_to_do():
    for rule in ALERTS:
        names = set(re.findall(r"\bray_\w+|\bup\b", rule["expr"]))
        assert names, rule
        assert names <= used() | {"up"}, rule  # Prometheus's own, of every machine that it asks
        assert rule["expr"].count("(") == rule["expr"].count(")"), rule
        assert rule["labels"]["severity"] in ("page", "ticket"), rule
        assert len(rule["annotations"]["summary"]) > 40, rule
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)


def test_every_alert_has_its_section_of_the_runbook_and_no_other_is_there():
    sections = re.findall(r"(?m)^## (\w+)$", (ROOT / "docs" / "runbook.md").read_text())
    assert sections == [rule["alert"] for rule in ALERTS]
    for rule in ALERTS:
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (of Prometheus) is not installed")
def test_alerts_come_and_go_as_they_should():
    folder = ROOT / "serve_configs" / "prometheus"
    done = subprocess.run(
        ["promtool", "test", "rules", folder / "alerts.test.yaml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_shown_to_come_and_not_to_come():
    tests = yaml.safe_load((ROOT / "serve_configs" / "prometheus" / "alerts.test.yaml").read_text())["tests"]
    checks = [check for test in tests for check in test["alert_rule_test"]]
    for rule in ALERTS:
        outcomes = {bool(one["exp_alerts"]) for one in checks if one["alertname"] == rule["alert"]}
        assert outcomes == {True, False}, rule["alert"]


def test_only_tags_that_a_metric_has_are_asked_for():
    source = "".join(path.read_text() for path in (ROOT / "platform").rglob("*.py"))
    asked = {tag for expression in EXPRESSIONS for tag in re.findall(r"\{(\w+)[=!]", expression)}
    for panel in PANELS:
        for target in panel["targets"]:
            grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
            tags = {tag.strip() for group in grouped for tag in group.split(",")} - {"le"}
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert shown == tags or "ray_node_" in target["expr"], target
            asked |= tags if "ray_routerretriever_" in target["expr"] else set()
    assert {tag for tag in asked if f'"{tag}"' not in source} == set()


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows_and_of_which_source(panel):
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == source
    assert all(target["datasource"] == source for target in panel["targets"])
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for target in panel["targets"]:
        assert target["expr"].count("(") == target["expr"].count(")")
        # Counts and buckets only ever grow: what they say is their rate.
        for name in re.findall(r"ray_\w+_(?:total|bucket|sum|count)\b", target["expr"]):
            if name not in AS_THEY_ARE:
                assert re.search(rf"(rate|increase)\({name}(\{{[^}}]*\}})?\[", target["expr"]), target


def test_panels_have_their_own_ids_and_places():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert len(set(titles)) == len(titles)
    cells = [
        (column, line)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for column in range(place["x"], place["x"] + place["w"])
        for line in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert {column for column, _ in cells} <= set(range(24))
    (source,) = DASHBOARD["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
