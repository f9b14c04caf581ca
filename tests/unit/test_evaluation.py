import re
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import faiss
import numpy as np
import pytest
import routerretriever
from hypothesis import given, settings
from hypothesis import strategies as st
from routerretriever.errors import RouterRetrieverError
from routerretriever.evaluation.evaluation import assemble
from routerretriever.evaluation.significance import compare, compare_all, holm
from routerretriever.evaluation.system import Kind, Routing, System
from routerretriever.index.dense import SearchIndex
from routerretriever.measures import Measured, measure
from routerretriever.methods.experts import (
    BASELINE_ROUTERS,
    DATASET_ORACLE,
    INSTANCE_ORACLE,
    OWN_EXPERT,
    PAPER,
    ROUTED,
    oracles,
    single_systems,
)
from routerretriever.reports.page import write_page
from routerretriever.reports.plots import Lines, Scatter, Section, section_table, write_sections
from routerretriever.reports.tables import as_dict, markdown
from routerretriever.reports.verdict import verdict
from routerretriever.routing.data import RoutingData
from routerretriever.routing.fit import fit_router
from routerretriever.routing.settings import RoutingSettings
from routerretriever.runtime.machine import git_commit
from routerretriever.scoring.mixed_vectors import MixedVectors, mix
from routerretriever.scoring.table import SplitScores
from routerretriever.studies.analyses import project
from routerretriever.studies.offline import OfflineEvaluator
from routerretriever.studies.tuning import tune
from routerretriever.types import BASE

EXPERTS = [BASE, "a", "b"]
DOCUMENTS, DIMENSION, QUERIES = 30, 8, 12


def world(seed):
    """Two domains with an expert and one without: documents, and query vectors of every expert."""
    random = np.random.default_rng(seed)
    scores, qrels, indexes = {}, {}, {}
    for offset, dataset in enumerate(("a", "b", "c")):
        documents = random.normal(size=(DOCUMENTS, DIMENSION)).astype(np.float32)
        flat = faiss.IndexFlatIP(DIMENSION)
        flat.add(documents)
        index = SearchIndex(flat, [f"d{row}" for row in range(DOCUMENTS)])
        ids = [f"q{row}" for row in range(QUERIES)]
        grades = {i: {f"d{random.integers(DOCUMENTS)}": 1} for i in ids}
        target = np.stack([documents[int(next(iter(grades[i]))[1:])] for i in ids])
        noise = random.normal(size=(QUERIES, len(EXPERTS), DIMENSION)).astype(np.float32)
        noise[:, EXPERTS.index(dataset) if dataset in EXPERTS else 0] *= 0.3
        noise += 2 * np.eye(DIMENSION, dtype=np.float32)[offset]  # where a query is from can be seen
        vectors = target[:, None] * 0.5 + noise
        runs = [measure(grades, index.run(ids, vectors[:, e], 20), ids) for e in range(len(EXPERTS))]
        measured = type(runs[0])(
            *(np.stack([getattr(run, name) for run in runs], axis=1) for name in runs[0].__dataclass_fields__)
        )
        scores[dataset] = SplitScores(dataset, "test", ids, EXPERTS, measured, vectors)
        qrels[dataset], indexes[dataset] = grades, index
    return scores, qrels, indexes


def fit_data(scores, qrels, indexes):
    return RoutingData(
        ["a", "b"],
        {name: scores[name].utilities(["a", "b"]) for name in ("a", "b")},
        {name: scores[name].base_vectors for name in ("a", "b")},
        answered=MixedVectors(scores=scores, qrels=qrels, indexes=indexes).mixed_ndcg,
    )


def evaluated(seed):
    scores, qrels, indexes = world(seed)
    systems = [*single_systems(scores), *oracles(scores)]
    routers = {ROUTED: RoutingSettings(features="embedding"), PAPER: BASELINE_ROUTERS[PAPER]}
    for name, chosen in routers.items():
        router = fit_router(fit_data(scores, qrels, indexes), chosen)
        weights, measured, encodings = {}, {}, {}
        for dataset, table in scores.items():
            weights[dataset] = router.weights(table.base_vectors)
            vectors = mix(table, router.experts, weights[dataset])
            run = indexes[dataset].run(table.query_ids, vectors, 20)
            measured[dataset] = measure(qrels[dataset], run, table.query_ids)
            encodings[dataset] = float((weights[dataset] > 0).sum(axis=1).mean())
        routing = Routing(router.experts, weights)
        systems.append(System(name, Kind.ROUTER, measured, routing, encodings, headline=True, rival=True))
    queries = {name: {i: f"<query {i}>" for i in table.query_ids} for name, table in scores.items()}
    described = {"name": "world", "encoder": {"name": "none"}, "routing": {"router": "posterior"}}
    notes = {"a": ["2 x equal-queries: the same <question>"], "b": []}
    encoder = {"query_prompt": {"value": "query: <text>", "source": "files"}}
    return assemble(systems, ROUTED, ["a", "b"], queries, described, notes, encoder), scores


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=20)
def test_searching_with_the_mixed_vector_is_mixing_the_scores(seed):
    scores, _, indexes = world(seed)
    weights = np.random.default_rng(seed).dirichlet(np.ones(3), size=QUERIES).astype(np.float32)
    table, index = scores["a"], indexes["a"]
    found, rows = index.search(mix(table, EXPERTS, weights), DOCUMENTS)
    for expert in range(3):
        each, each_rows = index.search(table.vectors_QEd[:, expert], DOCUMENTS)
        for query in range(QUERIES):
            by_row = dict(zip(each_rows[query], each[query], strict=True))
            found[query] -= weights[query, expert] * np.array([by_row[row] for row in rows[query]])
    np.testing.assert_allclose(found, 0, atol=1e-3)


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=5)
def test_oracles_bound_what_they_are_oracles_of(seed):
    evaluation, scores = evaluated(seed)
    figures = evaluation.ndcg_at_10
    for dataset in scores:
        experts = scores[dataset].utilities(["a", "b"])
        assert figures[DATASET_ORACLE][dataset] == pytest.approx(experts.mean(axis=0).max())
        assert figures[INSTANCE_ORACLE][dataset] == pytest.approx(experts.max(axis=1).mean())
        assert figures[PAPER][dataset] <= figures[INSTANCE_ORACLE][dataset] + 1e-9
        choice = evaluation.upper_bound.routing.shares(dataset)
        assert sum(choice.values()) == pytest.approx(1)
        assert 1 <= evaluation.system(ROUTED).encodings[dataset] <= 3
        assert evaluation.system(PAPER).encodings[dataset] == 1
    assert evaluation.zero_shot == ["c"]
    assert evaluation.mean(OWN_EXPERT) == pytest.approx(np.mean([figures["a"]["a"], figures["b"]["b"]]))
    assert evaluation.mean(OWN_EXPERT, zero_shot=True) is None


def test_tables_and_report_tell_the_same(tmp_path):
    evaluation, _ = evaluated(3)
    figures = as_dict(evaluation)
    mean = f"{100 * figures['mean_ndcg_at_10'][ROUTED]['with_expert']:.1f}"
    (row,) = [line for line in markdown(evaluation).splitlines() if line.startswith(f"| {ROUTED} ")]
    assert mean in row
    page = write_page(evaluation, tmp_path).read_text()
    assert mean in page
    assert "&lt;query q" in page or "0 of 12 queries lose" in page
    assert "<query" not in page
    assert "the same &lt;question&gt;" in page
    assert "- a: 2 x equal-queries: the same <question>" in markdown(evaluation)
    assert figures["encoder"] == {"query_prompt": {"value": "query: <text>", "source": "files"}}
    told = page[page.index("<td>query_prompt</td>") :]
    assert "query: " in told
    assert told.index("query: ") < told.index("<td>files</td>")
    assert as_dict(evaluation)["data_notes"] == {"a": ["2 x equal-queries: the same <question>"]}


def test_a_page_without_experts_has_no_losses_to_them(tmp_path):
    evaluation, _ = evaluated(3)
    systems = [each for each in evaluation.systems if each.kind in (Kind.BASE, Kind.ROUTER)]
    assert "Largest losses" in write_page(evaluation, tmp_path).read_text()
    assert "Largest losses" not in write_page(replace(evaluation, systems=systems), tmp_path).read_text()
    alone = [replace(each, routing=None) for each in systems if each.kind is Kind.ROUTER]
    assert "Largest losses" not in write_page(replace(evaluation, systems=alone), tmp_path).read_text()


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (
            {"a": (0.2, 0.5), "b": (0.4, 0.4), "c": (0.3, 0.2)},
            [
                "RouterRetriever has an nDCG@10 of 45.0 on the 2 test sets with an expert, the base 30.0: "
                "a gain of 15.0.",
                "Surely better than the base on 1 of 3 sets (a), surely worse on 1 of 3 sets (c).",
                "On c, which has no expert: 20.0, the base 30.0.",
                "Searches as they are served, with words beside the vectors (both): 45.0 with an expert, "
                "20.0 without.",
            ],
        ),
        (
            {"a": (0.5, 0.4)},
            [
                "RouterRetriever has an nDCG@10 of 40.0 on a, the base 50.0: experts gain nothing here, so "
                "serve the base, with words beside its vectors.",
                "Surely better than the base on none, surely worse on 1 of 1 sets (a).",
                "Searches as they are served, with words beside the vectors (both): 40.0 with an expert.",
            ],
        ),
    ],
)  # fmt: skip
def test_a_verdict_says_where_routing_gains_and_where_it_loses(sets, said):
    base, ours = (
        {name: Measured(*[np.full(60, pair[row])] * 4) for name, pair in sets.items()} for row in (0, 1)
    )
    systems = [
        System(BASE, Kind.BASE, base, rival=True),
        System(ROUTED, Kind.ROUTER, ours, rival=True),
        System("both", Kind.HYBRID, ours, served=True),
    ]
    queries = {name: {f"q{row}": "?" for row in range(60)} for name in sets}
    assert verdict(assemble(systems, ROUTED, ["a", "b"], queries, {})) == said


def test_a_page_says_when_and_by_what_it_was_made_and_draws_the_means(tmp_path):
    evaluation, _ = evaluated(3)
    page = write_page(evaluation, tmp_path).read_text()
    assert f"RouterRetriever {routerretriever.__version__}" in page
    assert str(datetime.now(UTC).year) in page
    assert all(f"<li>{sentence}</li>" in page for sentence in verdict(evaluation))
    drawn = page[page.index("<svg") : page.index("</svg>")]
    named = re.findall(r">([\w ]+)</text>", drawn)
    assert {"a", "b", "c", BASE, OWN_EXPERT, ROUTED} <= set(named)


def test_the_commit_is_that_of_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    Path("one").write_text("1")
    for command in (["init", "-q"], ["add", "one"], ["commit", "-q", "-m", "one"], ["tag", "v1"]):
        subprocess.run([*git, *command], check=True)
    commit = git_commit()
    assert re.fullmatch("[0-9a-f]{12}", commit)
    Path("one").write_text("2")
    assert git_commit() == f"{commit}+"


def test_a_projection_keeps_apart_what_lies_apart():
    random = np.random.default_rng(0)
    vectors = {
        name: (random.normal(size=(count, DIMENSION)) + 20 * np.eye(DIMENSION)[row]).astype(np.float32)
        for row, (name, count) in enumerate((("a", 300), ("b", 20)))
    }
    # One of b's queries looks like those of a.
    vectors["b"][0] -= 20 * (np.eye(DIMENSION)[1] - np.eye(DIMENSION)[0])
    found = project("embedding", vectors)
    assert found == project("embedding", vectors)
    a, b = (np.array(found.points[name]) for name in ("a", "b"))
    assert (len(a), len(b)) == (200, 20)
    assert found.among_their_own == {"a": pytest.approx(1, abs=0.02), "b": 0.95}
    # Rows keep their order: the stray one is drawn among its like.
    middle_a, middle_b = a.mean(axis=0), b[1:].mean(axis=0)
    assert np.linalg.norm(b[0] - middle_a) < np.linalg.norm(b[0] - middle_b)


@pytest.mark.parametrize("count", [1, 25])
def test_queries_that_are_all_the_same_are_projected_onto_one_point(count):
    found = project("embedding", {"a": np.ones((count, 8), dtype=np.float32)})
    assert found.points == {"a": [[0, 0]] * count}
    assert found.among_their_own == {"a": float(count > 1)}


def test_a_page_of_sections_draws_what_it_is_given(tmp_path):
    lines = Lines("growth", ["1", "2", "3"], "<experts>", {"ours": [60.0, None, 62.5], "base": [55, 55, 55]})
    scatter = Scatter("plane", {"a": [[0, 0], [1, 2]], "b": [[3, 3]]})
    section = Section("One & all", "Why.", ["set", "ours"], [["<a>", "62.5"]], [lines, scatter])
    page = write_sections("analyses", [section], tmp_path / "reports" / "page.html").read_text()
    assert page.count("<svg") == 2
    assert re.findall(r">(ours|base|a|b)</text>", page) == ["ours", "base", "a", "b"]
    assert "&lt;experts&gt;" in page
    again = write_sections("analyses", [section], tmp_path / "again.html").read_text()
    assert again == page
    assert "<td>&lt;a&gt;</td><td>62.5</td>" in page
    assert section_table(section).row_count == 1


def test_a_clear_difference_is_told_from_luck():
    random = np.random.default_rng(0)
    theirs = random.uniform(size=200)
    clear = compare(theirs + random.normal(0.1, 0.1, 200), theirs)
    assert clear.significant
    assert clear.low < clear.mean < clear.high
    assert clear.low > 0
    lucky = compare(theirs + random.normal(0.0, 0.1, 200), theirs)
    assert lucky.low < 0 < lucky.high
    assert compare(theirs, theirs).p_value == 1


def test_the_same_gain_on_every_query_is_no_luck():
    gain = compare(np.ones(50), np.zeros(50))
    assert gain.significant
    assert gain.low == gain.mean == gain.high == 1
    assert compare(np.ones(1), np.zeros(1)).p_value == 1  # of one query nothing can be told


def test_differences_are_found_among_any_number_of_comparisons():
    random = np.random.default_rng(0)
    base = random.uniform(size=40)
    clear, none = base + random.normal(0.3, 0.05, 40), base + random.normal(0, 0.05, 40)
    few = compare_all(dict.fromkeys(range(3), (clear, base)))
    many = compare_all({**dict.fromkeys(range(150), (clear, base)), "none": (none, base)})
    assert all(many[number].significant for number in range(150))
    assert (many[0].mean, many[0].low, many[0].high) == (few[0].mean, few[0].low, few[0].high)
    assert few[0].p_value == compare(clear, base).p_value
    assert many["none"].p_value == compare(none, base).p_value
    assert not many["none"].significant


def test_many_comparisons_are_corrected_for_their_number():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    evaluation, _ = evaluated(3)
    differences = [d for rivals in evaluation.differences.values() for d in rivals.values()]
    assert differences
    for difference in differences:
        assert difference.p_value <= difference.adjusted_p_value <= 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holms_correction_keeps_the_order_and_never_lowers_a_p_value(p_values):
    adjusted = holm(p_values)
    assert all(one >= own for one, own in zip(adjusted, p_values, strict=True))
    ranked = [adjusted[row] for row in np.argsort(p_values, kind="stable")]
    assert ranked == sorted(ranked)


def test_a_notebook_draws_an_evaluation(tmp_path):
    evaluation, _ = evaluated(3)
    drawn = routerretriever.plot(evaluation)
    shown = drawn._repr_svg_()  # what notebooks ask for
    assert all(f">{name}</text>" in shown for name in (*evaluation.datasets, *drawn.series))
    assert shown in write_page(evaluation, tmp_path).read_text()


def test_an_evaluation_is_a_table_of_means():
    evaluation, _ = evaluated(1)
    table = evaluation.frame()
    assert list(table.columns) == ["a", "b", "c", "mean", "zero-shot"]
    assert list(table.index) == [system.name for system in evaluation.systems]
    assert table.loc[BASE, "mean"] == pytest.approx(table.loc[BASE, ["a", "b"]].mean())
    assert table.loc[BASE, "zero-shot"] == pytest.approx(table.loc[BASE, "c"])
    assert np.isnan(table.loc[OWN_EXPERT, "zero-shot"])


def test_two_systems_of_one_name_are_refused():
    _, scores = evaluated(1)
    twice = [*single_systems(scores), *single_systems(scores)]
    with pytest.raises(RouterRetrieverError, match="two systems are named 'base'"):
        assemble(twice, "base", ["a"], {}, {})


def test_tuning_measures_each_domain_once_as_if_unseen():
    scores, qrels, indexes = world(5)
    inside = {name: scores[name] for name in ("a", "b")}
    features = {name: table.base_vectors for name, table in inside.items()}
    bench = OfflineEvaluator(
        fit_data=lambda _: fit_data(scores, qrels, indexes),
        scores=inside,
        features=lambda _: features,
        qrels=qrels,
        indexes=indexes,
    )
    trials = tune(bench, layers=[], unseen_share=0.25)
    for trial in trials:
        # With its own expert hidden, the other is all that is left, but for the base.
        for domain, other in (("a", "b"), ("b", "a")):
            alone = scores[domain].utilities([other]).mean()
            if trial.settings.fallback is None or trial.settings.fallback.answer == "uniform":
                assert trial.unseen[domain] == pytest.approx(alone)
        means = [np.mean(list(v.values())) for v in (trial.in_domain, trial.unseen)]
        assert trial.score == pytest.approx(0.75 * means[0] + 0.25 * means[1])
    with pytest.raises(RouterRetrieverError, match="unseen_share"):
        tune(bench, layers=[], unseen_share=2)
