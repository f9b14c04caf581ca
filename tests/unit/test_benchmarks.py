"""What the benchmarks add up; the figures themselves are taken by people, on an idle machine."""

import json
import os
import sys
import threading
from contextlib import suppress
from subprocess import CalledProcessError

import numpy as np
import pytest
import typer
from routerretriever.datasets.collection import open_collection
from routerretriever.generation.folder import Generated
from support.collections import WORDS, write_collection

from jobs.benchmarks import lexical, seeds
from jobs.benchmarks import measure as measuring
from jobs.benchmarks.documents_only import examples_of, outcome, summary, without_labels
from jobs.benchmarks.first_run import first_seen, run
from jobs.benchmarks.load import Load, background_load
from jobs.benchmarks.measure import Cost
from jobs.benchmarks.search import Searched, Way, make, search
from jobs.benchmarks.serving import Results, measure
from jobs.benchmarks.serving_faults import Soak
from jobs.benchmarks.stages import Seen, means, totals


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


def test_clients_that_cannot_start_are_no_reason_to_wait_for_them(monkeypatch):
    monkeypatch.setattr("jobs.benchmarks.load._child", os._exit)  # ends at once: it takes one argument
    ended = []

    def put_load():
        with suppress(EOFError), background_load("http://127.0.0.1:1", [{}], 1):
            pass
        ended.append(True)

    thread = threading.Thread(target=put_load, daemon=True)
    thread.start()
    thread.join(60)
    assert ended


def test_what_a_command_shows_is_timed_when_it_is_first_seen(tmp_path):
    command = [sys.executable, "-c", "print('start'); print('expert a: dev'); print('expert b: dev')"]
    seen = first_seen(
        run(command, tmp_path), {"a line": ".", "an expert": r"expert \w+: dev", "an answer": "hit"}
    )
    assert list(seen) == ["a line", "an expert", ""]
    assert 0 < seen["a line"] <= seen["an expert"] <= seen[""]
    with pytest.raises(CalledProcessError):
        first_seen(run([sys.executable, "-c", "raise SystemExit(3)"], tmp_path), {})


def test_results_are_kept_with_machine_date_and_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    kept = json.loads(measuring.report("name", "title", ["way"], [["base"]], {"measured": 1}).read_text())
    assert {"command", "hardware", "date", "commit", "title", "columns", "rows", "measured"} == kept.keys()


def test_a_figure_does_not_take_the_place_of_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    with pytest.raises(AssertionError, match="the table"):
        measuring.report("name", "title", ["way"], [["base"]], {"rows": 1000})


def test_an_engine_that_is_not_known_is_not_left_out_without_a_word():
    with pytest.raises(typer.BadParameter, match="no engine 'lucene'; there are ours, bm25s"):
        lexical.main(engines=["ours", "lucene"])


def test_seeds_are_told_by_their_mean_and_range():
    found = [
        {"base": {"law": 40.0, "mean": 40.0}, "own expert": {"law": 50.0}},
        {"base": {"law": 40.04, "mean": 40.0}, "own expert": {"law": 53.0}},
    ]
    assert seeds.table(found) == [["law", "40.0", "51.5 (50.0–53.0)"], ["mean", "40.0", "–"]]


EXPORTED = """
# TYPE ray_routerretriever_stage_seconds histogram
ray_routerretriever_stage_seconds_bucket{le="0.1",stage="routing",WorkerId="a"} 3
ray_routerretriever_stage_seconds_sum{stage="routing",WorkerId="a"} 0.5
ray_routerretriever_stage_seconds_count{stage="routing",WorkerId="a"} 3
ray_routerretriever_stage_seconds_sum{stage="routing",WorkerId="b"} 0.25
ray_routerretriever_stage_seconds_count{stage="routing",WorkerId="b"} 2
# TYPE ray_routerretriever_request_seconds histogram
ray_routerretriever_request_seconds_sum{route="/v1/search",WorkerId="a"} 2
ray_routerretriever_request_seconds_count{route="/v1/search",WorkerId="a"} 4
"""


def test_times_of_all_replicas_are_read_from_what_prometheus_reads():
    assert totals(EXPORTED) == {"routing": (0.75, 5.0), "/v1/search": (2.0, 4.0)}


def test_a_mean_time_is_of_what_came_between_two_readings():
    before, after = (
        {"routing": (1.0, 10.0), "search": (5.0, 5.0)},
        {"routing": (1.5, 20.0), "search": (5.0, 5.0)},
    )
    assert means(before, after) == {"routing": pytest.approx(50.0)}


def test_the_parts_of_a_request_add_up_to_what_its_client_waited_for():
    stages = {"tokenizer": 1.0, "routing": 2.0, "experts": 9.0, "search": 3.0}
    seen = Seen(client=30.0, replica=24.0, stages=stages, reading=0.5, answering=0.25)
    parts = seen.parts(base_pass=6.0)
    assert sum(parts.values()) == pytest.approx(30.0)
    assert (parts["HTTP and Serve"], parts["pass: base"], parts["pass: experts"]) == (6.0, 6.0, 3.0)
    assert parts["waiting, and the rest of the replica"] == pytest.approx(8.25)


@pytest.mark.parametrize("mode", ["dense", "hybrid", "lexical"])
def test_a_made_query_finds_its_document_in_every_mode_and_a_filter_leaves_its_share(mode, tmp_path):
    made = make(str(tmp_path), size=300, dimension=16, share=0.1)
    plain = search(made, Way("exact", mode))
    assert sum(f"d{row}" in found for row, found in enumerate(plain.found)) > 0.9 * len(made.texts)
    filtered = search(made, Way("exact", mode, {"field": "part", "equals": 0}))
    left = {id for found in filtered.found for id in found}
    assert left
    assert left <= {f"d{row}" for row in range(0, 300, 10)}


def test_recall_is_the_share_of_the_exact_answers_that_were_found():
    exact = Searched(0.0, 0.0, [], [["a", "b"], ["c"], []])
    assert Searched(0.0, 0.0, [], [["b", "x"], ["c"], []]).recall(exact) == 0.75


def test_a_soak_says_how_memory_grew_and_which_changes_failed():
    soak = Soak(80.0, Load(60.0, [5.0], ["503"]), [1000.0, 1040.0, 1020.0], 2, 100, ["503"])
    assert soak.told() == "2 releases, 100 changes (1 failed), 1000 to 1020 MiB (+2.0%)"
    figures = soak.figures()
    assert (figures["failures"], figures["changes_failed"]) == ({"503": 1}, ["503"])
    assert figures["growth"] == pytest.approx(0.02)


def made_from_documents(folder, deployed, expert=(0.4, 0.6, 0.8)):
    made = Generated(folder, {"counts": {"calls": 50, "kept": 30}})
    cost = Cost("generate", seconds=20.0, worker_mib=900.0)
    return outcome("fruit", np.array([0.5, 0.5, 0.5]), np.array(expert), deployed, made, cost)


def test_an_expert_from_documents_is_measured_against_the_base_as_it_is_deployed(tmp_path):
    better = made_from_documents(tmp_path, True)
    assert (better.base, better.expert) == (0.5, pytest.approx(0.6))
    assert better.gain.mean == pytest.approx(0.1)
    assert better.figures()["kept_per_second"] == 1.5
    assert better.row()[6:] == ["30 of 50", "1.50", "900"]
    refused = made_from_documents(tmp_path, False, (0.1, 0.2, 0.3))
    assert (refused.expert, refused.gain.mean) == (pytest.approx(0.2), 0.0)
    worse = made_from_documents(tmp_path, True, (0.1, 0.2, 0.3))
    assert summary([better, refused]) == {"mean_gain": pytest.approx(0.05), "below_base": []}
    assert summary([better, worse])["below_base"] == ["fruit"]


def test_documents_only_leaves_the_real_test_queries_and_shows_a_few_others(tmp_path):
    labelled = open_collection("fruit", write_collection(tmp_path / "fruit", WORDS["fruit"]))
    bare = without_labels(labelled, tmp_path / "bare")
    assert bare.splits() == ("test",)
    assert bare.qrels("test") == labelled.qrels("test")
    assert bare.corpus_hash() == labelled.corpus_hash()
    shown = examples_of(labelled, 8)
    assert len(shown) == 8
    assert {one.query for one in shown} <= set(labelled.queries("train").values())
    assert all(one.document.split(".")[0] in one.query for one in shown)
    assert examples_of(labelled, 0) == examples_of(bare, 8) == ()
