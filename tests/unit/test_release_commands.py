"""What the commands around releases print."""

from __future__ import annotations

from datetime import UTC, datetime
from io import StringIO

import pytest
from rich.console import Console
from routerretriever.cli import releases
from routerretriever.registry.registry import BundleVersion, versions_table
from support.paths import ROOT

RECIPE = ROOT / "jobs" / "recipes" / "sample.yaml"


class Aliases:
    """A registry of which only the challenger matters."""

    bundle_uri = "models:/sample@champion"

    def __init__(self):
        self.challenger = None

    def challenge(self, version):
        before, self.challenger = self.challenger, version
        return before


@pytest.fixture
def aliases(monkeypatch):
    aliases = Aliases()
    monkeypatch.setattr(releases, "open_registry", lambda *_: aliases)
    return aliases


def bundle(version, **changes):
    values = {"registered": datetime(2026, 1, 1, tzinfo=UTC), "experts": "fruit", "recipe": "tiny"}
    return BundleVersion(version=version, **{**values, "ndcg_at_10": {}, **changes})


def rows(table):
    out = StringIO()
    Console(file=out, width=200).print(table)
    lines = [line for line in out.getvalue().splitlines() if "2026-01-01" in line]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_a_challenger_without_a_share_is_said_to_have_no_effect(aliases, capsys):
    releases.release(RECIPE, 2, challenger=True)
    said = " ".join(capsys.readouterr().out.split())
    assert "is challenged by version 2 this recipe gives it no share" in said
    assert "serving.releases.challenger_share" in said
    assert "serving.releases.shadow_share" in said


@pytest.mark.parametrize("share", ["challenger_share", "shadow_share"])
def test_a_challenger_with_a_share_needs_no_remark(aliases, share, capsys):
    releases.release(RECIPE, 2, challenger=True, overrides=[f"serving.releases.{share}=0.1"])
    assert capsys.readouterr().out.rstrip().endswith("is challenged by version 2")


def test_taking_a_challenger_away_says_whether_there_was_one(aliases, capsys):
    releases.rollback(RECIPE, challenger=True)
    aliases.challenge(2)
    releases.rollback(RECIPE, challenger=True)
    assert capsys.readouterr().out.splitlines() == [
        "models:/sample@champion had no challenger",
        "models:/sample@champion is no longer challenged by version 2",
    ]


def test_the_list_of_versions_marks_the_released_one_and_the_challenger():
    bundles = [bundle(3), bundle(2), bundle(1)]
    marked = [row[0] for row in rows(versions_table(bundles, released=1, challenger=3))]
    assert marked == ["challenger", "", "*"]


def test_the_list_of_versions_compares_means_over_the_test_sets_that_all_have():
    """Version 2 has a set more; version 3 has two experts less, and a mean of 90 where it has one."""
    bundles = [
        bundle(4),
        bundle(3, ndcg_at_10={"fruit": 0.9, "metal": 0.5, "sport": 0.4}, experts="fruit"),
        bundle(2, ndcg_at_10={"fruit": 0.9, "metal": 0.7, "sport": 0.6}, experts="fruit, metal, sport"),
        bundle(1, ndcg_at_10={"fruit": 0.8, "metal": 0.7}, experts="fruit, metal"),
    ]
    table = versions_table(bundles, released=3)
    assert "mean of 2 common test set(s)" in str(table.columns[3].header)
    assert [row[3] for row in rows(table)] == ["", "70.0", "80.0", "75.0"]


def test_versions_without_a_common_test_set_have_no_figure():
    bundles = [bundle(2, ndcg_at_10={"fruit": 0.9}), bundle(1, ndcg_at_10={"metal": 0.7})]
    assert [row[3] for row in rows(versions_table(bundles, released=1))] == ["", ""]
