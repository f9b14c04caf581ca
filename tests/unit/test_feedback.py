"""What users click and mark: kept before it is answered, deleted on demand, and turned into judgements."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import replace

import pyarrow.parquet as parquet
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from routerretriever.artifacts.filesystem import FileSystem
from routerretriever.client import AsyncClient
from routerretriever.config.serving import FeedbackSettings, ServingSettings
from routerretriever.datasets.feedback import Feedback, FeedbackLog, judge
from routerretriever.errors import StorageError
from routerretriever.serving.deployments.metrics import Metrics
from routerretriever.serving.http.api import build_api
from routerretriever.serving.http.auth import Authenticator, Token
from schemathesis.specs.openapi.checks import positive_data_acceptance
from support.service import StandIn, application, ask, sent_to

BODY = {
    "query": "where is fig",
    "collection": "fruit",
    "shown": ["d1", "d2"],
    "clicked": ["d2"],
    "user": "ann",
}


@pytest.fixture
def log(tmp_path):
    return FeedbackLog(FileSystem.open(str(tmp_path)))


def app(log, tokens=None, **limits):
    serving = ServingSettings(feedback=FeedbackSettings(**limits))
    return build_api(lambda _: StandIn(), serving, Authenticator(tokens or {}, not tokens), Metrics(), log)


def report(number=0, query="where is fig", **given) -> Feedback:
    own = {"id": f"r{number}", "time": float(number), "client": "", "user": f"u{number}"}
    asked = {"collection": "fruit", "query": query, "shown": ("d1", "d2", "d3")}
    return Feedback(**{**own, **asked, **given})


class Nowhere(FeedbackLog):
    """Keeps nothing."""

    def __init__(self):
        pass

    def append(self, report):
        pass

    def forget(self, user, of):
        return 0


schema = schemathesis.openapi.from_asgi("/openapi.json", app(Nowhere())).include(path_regex="/v1/feedback")


def test_it_is_off_unless_a_setting_says_so():
    assert (
        ask(application(StandIn(), allow_anonymous=True), "POST", "/v1/feedback", json=BODY).status_code
        == 404
    )


def test_a_report_is_in_storage_when_it_is_answered(log):
    answered = ask(app(log), "POST", "/v1/feedback", json=BODY)
    assert answered.status_code == 200
    (kept,) = log.read()
    assert kept.id == answered.json()["id"]
    assert (kept.query, kept.shown, kept.clicked, kept.user) == ("where is fig", ("d1", "d2"), ("d2",), "ann")


def test_the_searchs_request_is_kept_with_the_report_and_older_files_have_none(log, tmp_path):
    log.append(report())
    (old,) = (tmp_path / "feedback").glob("*.parquet")
    parquet.write_table(parquet.read_table(old).drop_columns(["request"]), old)
    answered = ask(app(log), "POST", "/v1/feedback", json={**BODY, "request": "4f1c"})
    assert answered.status_code == 200
    log.compact()
    assert [one.request for one in log.read()] == ["", "4f1c"]
    too_long = ask(app(log), "POST", "/v1/feedback", json={**BODY, "request": "x" * 129})
    assert too_long.status_code == 422


@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        ({"clicked": ["d9"]}, 422, "clicked: 'd9' is not among those shown"),
        ({"relevant": ["d1"], "not_relevant": ["d1"]}, 409, "'d1' is marked not_relevant too"),
        ({"shown": ["d"] * 4, "clicked": []}, 422, "shown: 4 are more than 3"),
        ({"query": "long " * 10}, 422, "query: 50 characters are more than 20"),
        ({"query": ""}, 422, "query"),
        ({"collection": "fruits"}, 404, "collection: found 'fruits'; there are fruit, metal"),
        ({"thumb": 1}, 422, "thumb"),
    ],
)
def test_a_wrong_report_names_the_field_and_is_not_kept(log, change, status, told):
    answered = ask(app(log, documents=3, query_length=20), "POST", "/v1/feedback", json={**BODY, **change})
    assert answered.status_code == status
    assert told in answered.json()["error"]["message"]
    assert log.read() == []


def test_a_token_reports_on_its_own_collections_only(log):
    digest = hashlib.sha256(b"page").hexdigest()
    own = app(log, {"page": Token(sha256=digest, collections=["metal"])})
    as_page = {"Authorization": "Bearer page"}
    denied = ask(own, "POST", "/v1/feedback", json=BODY, headers=as_page)
    assert denied.status_code == 404
    assert denied.json()["error"]["message"] == "collection: found 'fruit'; there are metal"
    allowed = ask(own, "POST", "/v1/feedback", json={**BODY, "collection": "metal"}, headers=as_page)
    assert allowed.status_code == 200
    assert [report.collection for report in log.read()] == ["metal"]


def test_reporting_needs_a_token_and_deleting_one_that_may_write(log):
    def token(secret, write):
        return Token(sha256=hashlib.sha256(secret.encode()).hexdigest(), write=write)

    own = app(log, {"page": token("page", False), "admin": token("admin", True)})
    as_page, as_admin = ({"Authorization": f"Bearer {name}"} for name in ("page", "admin"))
    assert ask(own, "POST", "/v1/feedback", json=BODY).status_code == 401
    assert ask(own, "POST", "/v1/feedback", json=BODY, headers=as_page).status_code == 200
    assert log.read()[0].client == "page"
    ann = {"user": "ann"}
    assert ask(own, "POST", "/v1/feedback/delete", json=ann, headers=as_page).status_code == 403
    assert ask(own, "POST", "/v1/feedback/delete", json=ann, headers=as_admin).json() == {"deleted": 1}
    assert log.read() == []


def test_a_token_forgets_users_on_the_collections_that_it_may_change_only(log):
    digest = hashlib.sha256(b"tenant").hexdigest()
    own = app(log, {"tenant": Token(sha256=digest, collections=["fruit", "metal"], write=["metal"])})
    as_tenant = {"Authorization": "Bearer tenant"}
    for collection in ("fruit", "metal"):
        body = {**BODY, "collection": collection}
        assert ask(own, "POST", "/v1/feedback", json=body, headers=as_tenant).status_code == 200
    log.compact()
    answered = ask(own, "POST", "/v1/feedback/delete", json={"user": "ann"}, headers=as_tenant)
    assert answered.json() == {"deleted": 1}
    assert [one.collection for one in log.read()] == ["fruit"]


def test_the_client_reports_and_forgets(log):
    async def use():
        client = AsyncClient("http://localhost", transport=sent_to(app(log)))
        async with client:
            await client.feedback("where is fig", "fruit", ["d1"], relevant=["d1"], user="bob")
            await client.feedback("where is fig", "fruit", ["d1"], clicked=["d1"], user="ann")
            return await client.forget("bob")

    assert asyncio.run(use()) == 1
    assert [one.user for one in log.read()] == ["ann"]


def test_a_report_that_came_twice_counts_once_and_compacting_changes_nothing(log):
    for one in (report(1), report(2), report(1), report(3, collection="metal")):
        log.append(one)
    before = log.read()
    assert [one.id for one in before] == ["r1", "r2", "r3"]
    log.compact()
    assert log.read() == before
    assert len(log.files()) == 1
    assert [one.id for one in log.read("metal")] == ["r3"]
    assert log.forget("u2") == 1
    assert [one.id for one in log.read()] == ["r1", "r3"]


def test_clients_that_number_their_reports_alike_keep_all_of_them(log):
    for client in ("app", "page"):
        for number in range(5):
            log.append(report(number, client=client, user=""))
    log.append(report(0, client="app", user="ann", time=9.0))  # sent twice
    assert len(log.read()) == 10
    log.compact()
    assert len(log.read()) == 10
    assert judge(log.read(), discount=0.5, least=2, passed_over=0.5) == []
    marked = [replace(one, relevant=("d3",)) for one in log.read()]
    (judged,) = judge(marked, discount=0.5, least=10, passed_over=0.5)
    assert judged.grades == {"d3": 1}


def test_forgetting_a_user_leaves_another_clients_report_with_the_same_id(log):
    log.append(report(1, client="app", user="ann"))
    log.append(report(1, client="page", user="bob"))
    log.compact()
    assert log.forget("ann") == 1
    assert [one.user for one in log.read()] == ["bob"]


def interrupted(folder, happen):
    """A log that has something else happen before it writes a file for the first time."""
    todo = [happen]

    class Interrupted(FileSystem):
        def put(self, path, write, lasting=False):
            if todo:
                todo.pop()()
            return super().put(path, write, lasting)

    return FeedbackLog(Interrupted(str(folder)))


def stored_users(folder):
    """Whose reports are on disk, listed as forgotten or not."""
    tables = [parquet.read_table(path) for path in (folder / "feedback").rglob("*.parquet")]
    return sorted({user for table in tables for user in table["user"].to_pylist()})


def test_a_user_who_is_forgotten_while_reports_are_compacted_stays_forgotten(log, tmp_path):
    for number in range(4):
        log.append(report(number, user="ann" if number % 2 else "bob"))
    seen = []

    def forget():
        assert log.forget("ann") == 2
        log.append(report(9, user="cid"))
        seen.append([one.user for one in log.read()])

    interrupted(tmp_path, forget).compact()
    assert seen == [["bob", "bob", "cid"]]
    assert [one.user for one in log.read()] == ["bob", "bob", "cid"]
    assert stored_users(tmp_path) == ["bob", "cid"]
    log.append(report(1, user="ann", time=20.0))
    assert [one.user for one in log.read()] == ["bob", "bob", "cid", "ann"]  # asked again since


def test_compactions_at_once_lose_nothing_and_reads_meanwhile_see_all(log, tmp_path):
    for number in range(4):
        log.append(report(number))
    before = log.read()
    seen = []

    def compact():
        log.compact()
        seen.append(log.read())

    interrupted(tmp_path, compact).compact()
    assert [*seen, log.read()] == [before, before]


def test_a_read_sees_reports_that_are_compacted_between_listing_and_reading(log, tmp_path):
    for number in range(4):
        log.append(report(number))
    before = log.read()

    class Reading(FileSystem):
        def read(self, path):
            log.compact()
            return super().read(path)

    assert FeedbackLog(Reading(str(tmp_path))).read() == before


def test_a_user_who_is_forgotten_after_a_compaction_has_read_them_twice_is_forgotten(log, tmp_path):
    """Two compactions hold the user's reports when they are forgotten."""
    for number in range(2):
        log.append(report(number, user="ann"))
        log.append(report(number + 2, user="bob"))

    def others():
        log.compact()
        log.forget("ann")
        log.compact()

    interrupted(tmp_path, others).compact()
    assert stored_users(tmp_path) == ["bob"]


def test_who_was_not_forgotten_as_a_disk_was_full_is_forgotten_by_the_next_attempt(log, tmp_path):
    for number in range(4):
        log.append(report(number, user="ann" if number % 2 else "bob"))
    log.compact()

    class Full(FileSystem):
        def put(self, path, write, lasting=False):
            if path.endswith(".parquet"):
                raise StorageError("no space left")
            return super().put(path, write, lasting)

    with pytest.raises(StorageError):
        FeedbackLog(Full(str(tmp_path))).forget("ann")
    assert log.forget("ann") == 2
    assert stored_users(tmp_path) == ["bob"]
    assert log.forget("ann") == 0


def test_to_forget_a_user_each_file_is_read_once(log, tmp_path):
    """Whoever asks waits for it, and there is a file for each report."""
    for number in range(6):
        log.append(report(number, user="ann" if number % 2 else "bob"))
    before, seen = set(log.files()), []

    class Reading(FileSystem):
        def read(self, path):
            seen.append(path.rpartition("/")[2])
            return super().read(path)

    assert FeedbackLog(Reading(str(tmp_path))).forget("ann") == 3
    assert stored_users(tmp_path) == ["bob"]
    assert sorted(name for name in seen if name in before) == sorted(before)


def test_lists_of_what_was_forgotten_go_once_no_compaction_can_hold_it(log, tmp_path, monkeypatch):
    log.append(report(1, user="ann"))
    log.forget("ann")
    log.compact()
    assert len(list((tmp_path / "feedback").rglob("*.json"))) == 1
    later = time.time() + 2 * 86_400
    monkeypatch.setattr(time, "time", lambda: later)
    log.compact()
    assert list((tmp_path / "feedback").rglob("*.json")) == []


def test_one_click_is_not_enough_and_several_users_are():
    clicks = [report(number, clicked=("d2",)) for number in range(2)]
    assert judge(clicks[:1], 0.5, 1.0, 1.0) == []
    (judged,) = judge(clicks, 0.5, 1.0, 1.0)
    assert judged.grades == {"d2": 1}


@pytest.mark.parametrize(("discount", "users"), [(0.8, 5), (0.9, 10)])
def test_clicks_that_add_up_to_exactly_what_is_asked_are_enough(discount, users):
    clicks = [report(number, clicked=("d1",)) for number in range(users)]
    assert judge(clicks[1:], discount, 1.0, 1.0) == []
    assert [one.grades for one in judge(clicks, discount, 1.0, 1.0)] == [{"d1": 1}]


def test_a_click_on_what_was_shown_twice_counts_as_at_its_first_place():
    twice = [report(number, shown=("d1", "d2", "d1"), clicked=("d1",)) for number in range(2)]
    assert [one.grades for one in judge(twice, 0.5, 1.0, 1.0)] == [{"d1": 1}]
    assert judge(twice[:1], 0.5, 0.6, 1.0) == []


def test_a_user_counts_once_and_a_mark_is_stronger_than_a_click():
    same = [report(number, user="ann", clicked=("d2",)) for number in range(5)]
    assert judge(same, 0.5, 1.0, 1.0) == []
    (judged,) = judge([*same, report(9, user="ann", relevant=("d2",))], 0.5, 1.0, 1.0)
    assert judged.grades == {"d2": 1}
    assert judge([report(1, relevant=("d1",)), report(2, not_relevant=("d1",))], 0.5, 1.0, 1.0) == []


def test_stray_clicks_do_not_make_relevant_what_most_users_pass_over():
    stray = [report(number, clicked=("d1",)) for number in range(4)]
    assert [one.grades for one in judge(stray, 0.5, 1.0, 1.0)] == [{"d1": 2}]
    others = [report(number, clicked=("d3",)) for number in range(10, 20)]
    assert [one.grades for one in judge(stray + others, 0.5, 1.0, 1.0)] == [{"d3": 2}]
    assert [one.grades for one in judge(stray + others, 0.5, 1.0, 0.0)] == [{"d1": 2, "d3": 2}]


def test_of_one_user_a_mark_counts_before_a_click_and_a_click_before_a_passing_over():
    both = [report(1, user="ann", clicked=("d1",)), report(2, user="ann", clicked=("d3",))]
    others = [report(3, clicked=("d1",)), report(4, clicked=("d3",), relevant=("d2",))]
    # ann: d1 and d3 by her clicks, d2 passed over; u4: d1 passed over.
    assert judge(both + others, 0.5, 1.0, 1.0)[0].grades == {"d3": 1}
    mended = [report(5, user="ann", relevant=("d1",)), report(6, user="u4", relevant=("d1",))]
    assert judge(both + others + mended, 0.5, 1.0, 1.0)[0].grades == {"d1": 2, "d3": 1}


def test_queries_are_the_same_whatever_their_case_and_spaces():
    (judged,) = judge(
        [report(1, relevant=("d1",)), report(2, "Where  is FIG", relevant=("d1",))], 0.5, 1.0, 1.0
    )
    assert (judged.query, judged.grades) == ("where is fig", {"d1": 2})


@pytest.mark.filterwarnings("ignore")
@schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_api_keeps_to_its_schema(case):
    # Ids that contradict each other are refused, and no schema can say so.
    case.call_and_validate(excluded_checks=[positive_data_acceptance])


@given(st.lists(st.integers(0, 6), max_size=8), st.floats(0, 2), st.floats(0, 2))
def test_no_document_gains_by_being_passed_over(places, less, more):
    shown = tuple(f"d{number}" for number in range(7))
    reports = [report(n, shown=shown, clicked=(shown[place],)) for n, place in enumerate(places)]
    few, many = (
        {document for one in judge(reports, 0.5, 1.0, cost) for document in one.grades}
        for cost in sorted((less, more))
    )
    assert many <= few


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["d1", "d2", "d3"])), max_size=20))
def test_the_order_of_reports_changes_no_grade(clicks):
    reports = [
        report(number, user=f"u{user}", clicked=(document,)) for number, (user, document) in enumerate(clicks)
    ]
    found = [
        {one.query: one.grades for one in judge(each, 0.5, 1.0, 1.0)} for each in (reports, reports[::-1])
    ]
    assert found[0] == found[1]
