"""Systems by a language model's grades: an endpoint that knows the answers, and ones that do not."""

from __future__ import annotations

import copy
import json
import re
import shutil
import sys

import numpy as np
import pytest
from routerretriever.cli.main import main
from routerretriever.errors import RecipeError, WriterError
from routerretriever.evaluation.significance import mean_interval
from routerretriever.generation.settings import JudgingSettings
from routerretriever.measures import measure
from routerretriever.methods.experts import OWN_EXPERT, ROUTED
from routerretriever.methods.hybrid import BM25, ROUTED_LEARNED
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.reports.plots import section_table
from routerretriever.studies.judging import judged_set, make_pool
from routerretriever.studies.judging_tables import estimate_table, judging_sections
from routerretriever.studies.runs import estimate_judging, judge_run, open_judge
from routerretriever.types import BASE
from support.collections import write_collections
from support.recipes import save_recipe, tiny_recipe, with_changes
from support.runs import put_fresh_experts
from support.workers import work_here
from support.writers import endpoint


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The tiny recipe with fresh adapters in the place of trained ones, evaluated without Ray."""
    root = write_collections(tmp_path_factory.mktemp("judged"))
    with pytest.MonkeyPatch.context() as patch:
        work_here(patch, "corpus.build", "runtime.shards")
        pipeline = Pipeline(tiny_recipe(root))
        put_fresh_experts(pipeline, root)
        _ = pipeline.evaluation
    return pipeline


@pytest.fixture
def changed(evaluated, tmp_path, monkeypatch):
    """Opens a copy of the run, with its data and storage in the test's folder and other settings."""
    work_here(monkeypatch, "corpus.build", "runtime.shards")
    shutil.copytree(evaluated.recipe.data_root, tmp_path / "data")
    shutil.copytree(evaluated.recipe.storage, tmp_path / "storage")
    return lambda **changes: Pipeline(tiny_recipe(tmp_path, **changes))


def judged_by(evaluated, name, url, **changes):
    """The evaluated run with a judge of its own name, who has graded nothing yet."""
    writer = {"kind": "endpoint", "url": url, "model": name, "attempts": 1}
    settings = {"writer": writer, "queries": 3, "repeated_queries": 1, **changes}
    judged = copy.copy(evaluated)  # with its evaluation
    judged.recipe = with_changes(evaluated.recipe, judging=settings)
    return judged


def knows(prompt):
    """Grade 3 for the one document with both words of the query, whatever the order of the prompt."""
    query = re.search(r"Query: where is (\w+) with (\w+)", prompt)
    document = re.search(r"Document: (\w+)\. (\w+)", prompt)
    assert query
    assert document
    return "013"[len(set(query.groups()) & set(document.groups()))]


def test_what_systems_find_when_asked_again_is_what_was_measured(evaluated):
    evaluation = evaluated.evaluation
    shown = {system.name: system for system in evaluation.headline if system.rank}
    assert {BASE, OWN_EXPERT, ROUTED, BM25, ROUTED_LEARNED} <= shown.keys()
    for system in shown.values():
        for dataset, measured in system.measured.items():
            ids = evaluation.query_ids[dataset]
            found = measure(evaluated.collections[dataset].qrels("test"), system.rank(dataset, ids, 100), ids)
            np.testing.assert_allclose(found.ndcg_at_10, measured.ndcg_at_10, err_msg=system.name)
            one = system.rank(dataset, ids[-1:], 5)
            assert list(one) == ids[-1:]
            assert len(one[ids[-1]]) <= 5


def test_queries_in_chunks_of_another_size_have_the_same_figures(evaluated, changed):
    again = changed(scoring={"workers": 1, "chunk_size": 3}).evaluation
    for name, system in evaluated.evaluation.measured.items():
        for dataset, measured in system.items():
            found = again.measured[name][dataset].ndcg_at_10
            np.testing.assert_allclose(found, measured.ndcg_at_10, err_msg=name)


def test_documents_that_are_cut_later_are_measured_as_documents(evaluated, changed):
    """They are short, so that each is a passage of its own and is found as before."""
    own = {name: {"path": name} for name in ("fruit", "metal")}
    sport = {"path": "sport", "expert": False, "passages": {"tokens": 8, "overlap": 2}}
    again = changed(domains={**own, "sport": sport}).evaluation
    for name, system in evaluated.evaluation.measured.items():
        if "sport" in system:
            found, before = again.measured[name]["sport"].ndcg_at_10, system["sport"].ndcg_at_10
            np.testing.assert_allclose(found, before, err_msg=name)


def test_queries_in_another_order_keep_their_figures(evaluated, changed, tmp_path):
    """What lies in storage is in the order that the file had when it was measured."""
    file = tmp_path / "data" / "fruit" / "queries.jsonl"
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    pipeline = changed()
    before, after = (
        dict(zip(each.query_ids["fruit"], each.measured[BASE]["fruit"].ndcg_at_10.tolist(), strict=True))
        for each in (evaluated.evaluation, pipeline.evaluation)
    )
    assert before == after
    asked = pipeline.collections["fruit"].queries("test")
    told = pipeline.evaluation.query_ids["fruit"], pipeline.evaluation.texts["fruit"]
    assert dict(zip(*told, strict=True)) == asked
    for name in (BASE, ROUTED_LEARNED):
        system = pipeline.evaluation.system(name)
        found = measure(
            pipeline.collections["fruit"].qrels("test"), system.rank("fruit", list(asked), 100), list(asked)
        )
        measured = dict(zip(told[0], system.measured["fruit"].ndcg_at_10, strict=True))
        np.testing.assert_allclose(found.ndcg_at_10, [measured[query] for query in asked], err_msg=name)


def test_a_judge_that_knows_agrees_with_people_and_with_itself(evaluated):
    with endpoint() as server:
        server.answer = knows
        pipeline = judged_by(evaluated, "knows", server.url)
        before = estimate_judging(pipeline)
        assert server.requests == []
        judging = judge_run(pipeline)
        assert len(server.requests) == sum(one.calls for one in before.values())
        after = estimate_judging(pipeline)
        assert {one.calls for one in after.values()} == {0}
        assert estimate_table(after).row_count == 4
        assert judge_run(pipeline).as_dict() == judging.as_dict()
        assert len(server.requests) == sum(one.calls for one in before.values())
    for one in judging.sets:
        assert (one.queries, one.dropped) == (3, {})
        assert one.noise.equal == one.noise.kappa == 1
        assert one.noise.system_shift == one.noise.query_shift == 0
        # People judge a single document of each query, and it has both words.
        assert one.agreement.relevant_graded == 1
        assert one.agreement.unjudged_graded == 0
        assert one.agreement.pearson > 0.5
    assert set(judging.means) >= {BASE, OWN_EXPERT, ROUTED, BM25}
    assert OWN_EXPERT not in next(one for one in judging.sets if one.dataset == "sport").ndcg_at_10
    written = json.loads((pipeline.report_folder / "judging.json").read_text())
    assert written == judging.as_dict()
    assert "The judge and people" in (pipeline.report_folder / "judging.html").read_text()
    for section in judging_sections(judging):
        assert section_table(section).row_count


def test_the_command_says_what_it_will_ask_then_asks_and_shows_it(evaluated, tmp_path, monkeypatch, capsys):
    with endpoint() as server:
        server.answer = knows
        recipe = save_recipe(judged_by(evaluated, "typed", server.url).recipe, tmp_path / "recipe.yaml")
        command = ["routerretriever", "evaluate", str(recipe), "--quiet", "--judge"]
        for last, told in (("--dry-run", "calls to come"), (None, "The judge and people")):
            monkeypatch.setattr(sys, "argv", [*command, last] if last else command)
            assert not server.requests
            with pytest.raises(SystemExit) as ended:
                main()
            assert not ended.value.code
            assert told in capsys.readouterr().out
        assert server.requests


def test_a_judge_that_is_moody_has_a_noise_floor(evaluated):
    with endpoint() as server:
        server.answer = lambda prompt: "3" if prompt.startswith("Document") else knows(prompt)
        judging = judge_run(judged_by(evaluated, "moody", server.url))
    for one in judging.sets:
        assert one.noise.equal < 0.5
        assert one.noise.query_shift > 0
        assert 0 < one.noise.system_shift <= 1


def test_pairs_without_a_grade_count_neither_way(evaluated):
    with endpoint() as server:
        server.answer = lambda prompt: "no idea" if knows(prompt) == "0" else knows(prompt)
        some = judge_run(judged_by(evaluated, "unsure", server.url))
        server.answer = lambda prompt: "no idea"
        with pytest.raises(WriterError, match=r"judging\.writer: none of \d+ pairs of fruit has a grade"):
            judge_run(judged_by(evaluated, "lost", server.url))
    for one in some.sets:
        (count,) = one.dropped.values()
        assert 0 < count < one.pairs * 2
        assert one.ndcg_at_10[BM25].mean() > 0


def test_a_collection_without_judgements_is_judged_and_nothing_is_said_of_people(evaluated):
    with endpoint() as server:
        server.answer = knows
        pipeline = judged_by(evaluated, "knows", server.url)
        pool = make_pool(evaluated.evaluation, evaluated.collections["sport"], pipeline.recipe.judging)
        grades = open_judge(pipeline).grade("sport", pool.asked)
    unjudged = {query: {"d0": 0, "d1": -1} for query in pool.query_ids}
    one = judged_set(pool, grades, 0, evaluated.evaluation, unjudged)
    assert one.agreement is None
    assert one.ndcg_at_10[BASE].shape == (3,)


def test_a_larger_sample_keeps_the_smaller_ones_queries(evaluated):
    few, many = (
        make_pool(
            evaluated.evaluation,
            evaluated.collections["fruit"],
            JudgingSettings(queries=number, repeated_queries=1),
        )
        for number in (3, 5)
    )
    assert many.query_ids[:3] == few.query_ids
    assert few.repeated == many.repeated
    assert few.pairs.items() <= many.pairs.items()


def test_an_estimate_trains_nothing(evaluated):
    with endpoint() as server:
        untrained = Pipeline(with_changes(judged_by(evaluated, "knows", server.url).recipe, training__seed=5))
        with pytest.raises(RecipeError, match="not trained"):
            estimate_judging(untrained)


def test_an_interval_holds_its_mean_and_shrinks_with_the_queries():
    random = np.random.default_rng(0)
    few, many = random.uniform(0, 1, 10), random.uniform(0, 1, 1000)
    wide, narrow = mean_interval([few]), mean_interval([many])
    assert wide.low < wide.mean < wide.high
    assert narrow.high - narrow.low < wide.high - wide.low
    both = mean_interval([few, many])
    assert both.mean == pytest.approx((few.mean() + many.mean()) / 2)
    assert mean_interval([np.array([0.5])]) == mean_interval([np.full(4, 0.5)])
