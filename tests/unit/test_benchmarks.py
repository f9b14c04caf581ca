"""What the benchmarks add up; the figures themselves are taken by people, on an idle machine."""

import json

import pytest

from jobs.benchmarks import measure as measuring
from jobs.benchmarks.load import Load
from jobs.benchmarks.serving import Results, measure


def test_ways_are_measured_in_turns_after_each_has_been_warmed_up():
    asked = []

    def way(name):
        def run(seconds):
            asked.append((name, seconds))
            return Load(seconds, [1.0])

        return run

    loads = measure({"a": way("a"), "b": way("b")}, seconds=5.0, rounds=2)
    assert asked == [("a", 1.0), ("b", 1.0), ("a", 5.0), ("b", 5.0), ("a", 5.0), ("b", 5.0)]
    assert [len(each) for each in loads.values()] == [2, 2]


def test_rounds_of_a_way_become_one_row_with_its_refusals():
    results = Results()
    results.add(1, "bulk", 64, [Load(2.0, [10.0, 30.0], ["503"], 0.1), Load(2.0, [20.0, 40.0], [], 0.2)])
    assert results.rows == [["1", "bulk", "64", "1.0", "25.0", "38.5", "1"]]
    assert results.texts_per_second("bulk") == 64.0
    assert results.p95("bulk") == pytest.approx(38.5)
    (figures,) = results.figures
    assert (figures["failures"], figures["longest_gap_s"]) == ({"503": 1}, 0.2)


def test_results_are_kept_with_machine_date_and_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    kept = json.loads(measuring.report("name", "title", ["way"], [["base"]], {"measured": 1}).read_text())
    assert {"hardware", "date", "commit", "measured"} == kept.keys()
