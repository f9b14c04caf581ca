"""A language model's grades: what counts as one, and that no pair is asked twice."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.errors import WriterError
from routerretriever.generation.grading import NOT_A_GRADE, Judge, Pair, parse_grade
from routerretriever.generation.settings import EndpointSettings, ExtractSettings, LocalSettings
from support.writers import endpoint, write_language_model

PAIRS = [Pair(f"where is fig {number}", f"text of fig {number}") for number in range(9)]


def judge(root, url, **changes):
    own = {"kind": "endpoint", "url": url, "model": "m", "attempts": 1, "concurrency": 1, **changes}
    return Judge(ArtifactStore.open(str(root)), EndpointSettings(**own), 16, "judging.writer")


def digit(prompt):
    return prompt.rpartition("fig ")[2][0]


@pytest.mark.parametrize(
    ("answer", "grade"),
    [
        ("2", 2),
        (" Grade: 3\nIt answers.", 3),
        ("**1**", 1),
        ("３。", 3),
        ("Grade：2", 2),
        ("##final score: 0", 0),
        ("<think>3, or perhaps</think>\n2.", 2),
        ("3, or perhaps\n</think>\n\n2", 2),
        ("**Grade:** 2", 2),
        ("Grade: **2**", 2),
        ("2*3", None),
        ("4", None),
        ("-1", None),
        ("2/3", None),
        ("2 or 3", None),
        ("It is a 2", None),
        ("22", None),
        ("<think>2", None),
        ("", None),
    ],
)
def test_only_a_digit_from_0_to_3_is_a_grade(answer, grade):
    assert parse_grade(answer) == grade


@given(st.text())
def test_whatever_is_answered_is_a_grade_or_none(answer):
    assert parse_grade(answer) in (None, 0, 1, 2, 3)


@given(st.integers(0, 3), st.text("*_` .[]()#\t", max_size=5), st.sampled_from(["", "Grade: ", "score = "]))
def test_marks_and_labels_around_a_grade_change_nothing(grade, marks, label):
    assert parse_grade(f"{marks}{label}{grade}{marks}") == grade


def test_a_pair_is_asked_once_at_temperature_0_and_what_is_no_grade_is_counted(tmp_path):
    with endpoint() as server:
        server.answer = digit
        own = judge(tmp_path, server.url, temperature=0.9)
        assert own.estimate("fruit", PAIRS).calls == 9
        grades = own.grade("fruit", [*PAIRS, *PAIRS])
        assert [grades.of(pair) for pair in PAIRS] == [0, 1, 2, 3, *[None] * 5]
        assert grades.dropped == {NOT_A_GRADE: 5}
        assert {body["temperature"] for body in server.requests} == {0.0}
        again = judge(tmp_path, server.url).grade("fruit", PAIRS)
        assert again == grades
        assert len(server.requests) == 9
        assert own.tokens("fruit") == 900
        # The same pair by the other prompt is another question, and another model another judge.
        assert own.estimate("fruit", [Pair(PAIRS[0].query, PAIRS[0].document, swapped=True)]).calls == 1
        assert judge(tmp_path, server.url, model="other").estimate("fruit", PAIRS).graded == 0


@pytest.mark.parametrize("where", ["grades", "hashes/grades"])
def test_grades_in_a_damaged_or_lost_file_are_asked_again_and_the_others_not(tmp_path, where):
    with endpoint() as server:
        server.answer = lambda prompt: "1"
        grades = judge(tmp_path, server.url).grade("fruit", PAIRS)
        assert len(server.requests) == 9
        for damage in (Path.unlink, lambda path: path.write_bytes(b"")):
            file = min((path for path in (tmp_path / where).rglob("*.parquet")), key=lambda path: path.name)
            damage(file)
            again = judge(tmp_path, server.url)
            assert again.grade("fruit", PAIRS) == grades
            assert again.grade("fruit", PAIRS) == grades
    assert 9 < len(server.requests) < 9 + 2 * 9


def test_requests_that_fail_are_counted_and_asked_again_by_the_next_run(tmp_path):
    with endpoint() as server:
        server.answer = digit
        server.fails = lambda number: number % 2 == 0
        grades = judge(tmp_path, server.url).grade("fruit", PAIRS[:4])
        assert sum(grades.dropped.values()) == 2
        server.fails = lambda number: False
        whole = judge(tmp_path, server.url).grade("fruit", PAIRS[:4])
        assert whole.dropped == {}
        assert len(server.requests) == 6


def test_a_budget_that_runs_out_keeps_what_was_graded(tmp_path):
    with endpoint() as server:
        server.answer = digit
        server.tokens = 600
        with pytest.raises(WriterError, match=r"judging\.writer\.token_budget: 1400 tokens"):
            judge(tmp_path, server.url, token_budget=1400).grade("fruit", PAIRS[:4])
        graded = judge(tmp_path, server.url).estimate("fruit", PAIRS[:4]).graded
        assert graded == len(server.requests) == 2
        with pytest.raises(WriterError, match="token_budget"):
            judge(tmp_path, server.url, token_budget=1000).grade("fruit", PAIRS[:4])
        assert len(server.requests) == 2
        judge(tmp_path, server.url, token_budget=4000).grade("fruit", PAIRS[:4])
        assert len(server.requests) == 4


def test_an_endpoint_that_answers_html_or_refuses_is_one_line_after_a_few_requests(tmp_path):
    with endpoint() as server:
        server.html = True
        with pytest.raises(WriterError) as refused:
            judge(tmp_path, server.url).grade("fruit", PAIRS)
        assert "judging.writer: none of 2 requests was answered (answered text/html" in str(refused.value)
        assert len(str(refused.value).splitlines()) == 1
        server.html, server.status = False, 401
        with pytest.raises(WriterError, match=r"judging\.writer: .* refused a request without a key"):
            judge(tmp_path, server.url).grade("fruit", PAIRS)
        assert len(server.requests) == 3


def test_a_judge_must_be_a_language_model_that_is_there(tmp_path):
    store = ArtifactStore.open(str(tmp_path))
    with pytest.raises(WriterError, match=r"generation\.writer\.kind: 'extract' is no language model"):
        Judge(store, ExtractSettings(kind="extract"), 16, "generation.writer").check()
    with pytest.raises(WriterError, match=r"judging\.writer\.model: no folder"):
        Judge(store, LocalSettings(model=str(tmp_path / "no")), 16, "judging.writer").check()


def test_a_local_model_is_asked_too_and_its_answers_are_kept_as_text(tmp_path):
    model = write_language_model(tmp_path / "model")
    store = ArtifactStore.open(str(tmp_path / "storage"))
    own = Judge(store, LocalSettings(model=str(model)), 4, "judging.writer")
    grades = own.grade("fruit", PAIRS[:3])
    assert len(grades.by_pair) + sum(grades.dropped.values()) == 3
    (folder,) = (tmp_path / "storage" / "grades").iterdir()
    kept = [row for file in folder.iterdir() for row in parquet.read_table(file).to_pylist()]
    assert {row["pair"] for row in kept} == {pair.key for pair in PAIRS[:3]}
    assert own.grade("fruit", PAIRS[:3]) == grades
