"""Somebody else's endpoint: what it asks to wait, and how long the pauses are where it does not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from routerretriever.config.loading import parse_settings
from routerretriever.errors import RecipeError, TeacherError, WriterError
from routerretriever.generation.endpoint import EndpointModel
from routerretriever.generation.settings import EndpointSettings
from routerretriever.runtime.endpoint import Passing, key_header, post, reason_told, retrying
from routerretriever.training.rerankers import EndpointReranker
from routerretriever.training.teacher_settings import EndpointTeacher

# In calls of our own: what is deprecated will be gone one day.
pytestmark = pytest.mark.filterwarnings("error::DeprecationWarning:routerretriever")

URL = "http://host/v1"


def answering(status, told=None):
    """A client of an endpoint that always answers like this."""
    headers = {} if told is None else {"Retry-After": told}
    return httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(status, headers=headers)))


def pauses(http, attempts=5):
    """Seconds between the attempts, without waiting for them."""
    waited = []
    with pytest.raises(Passing):
        retrying(attempts).copy(sleep=waited.append)(post, http, URL, {})
    return waited


@pytest.mark.parametrize(
    ("told", "seconds"), [("7", 7), ("1.5", 1.5), ("0", 0), ("-3", 0), ("900", 20)], ids=str
)
def test_what_an_endpoint_asks_to_wait_is_waited_but_not_for_ever(told, seconds):
    assert pauses(answering(429, told), attempts=3) == [seconds, seconds]


def test_an_endpoint_may_ask_to_wait_until_a_date():
    date = datetime.now(UTC) + timedelta(seconds=12)
    (pause,) = pauses(answering(503, format_datetime(date, usegmt=True)), attempts=2)
    assert 8 < pause <= 12
    past = datetime.now(UTC) - timedelta(hours=1)
    assert pauses(answering(503, format_datetime(past, usegmt=True)), attempts=2) == [0]


def test_why_an_endpoint_wants_more_time_is_told():
    told = {"error": {"message": "You exceeded your current quota,\nplease check your plan."}}
    http = httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(429, json=told)))
    with pytest.raises(Passing) as passing:
        post(http, URL, {})
    assert str(passing.value) == "status 429: You exceeded your current quota, please check your plan."
    assert passing.value.problem == "status 429"  # rows are counted by it


@pytest.mark.parametrize("told", ["soon", "nan", "inf", "Mon, 99 Jan 2024 00:00:00 GMT", None], ids=str)
def test_what_says_no_time_is_not_believed(told):
    assert all(0 < pause < 8 for pause in pauses(answering(503, told)))


def test_a_limit_is_waited_for_in_seconds_and_longer_every_time():
    waited = pauses(answering(429))
    assert waited == sorted(waited)
    assert waited[0] >= 2
    assert sum(waited) >= 30
    assert sum(pauses(answering(503))) < 10


@pytest.mark.parametrize(
    ("response", "told"),
    [
        (
            {"status_code": 307, "headers": {"Location": "https://host/v1"}},
            "status 307, sends to https://host/v1",
        ),
        ({"status_code": 200, "headers": {"Content-Encoding": "gzip"}, "content": b"{}"}, "decompressed"),
    ],
    ids=["redirect", "gzip"],
)
def test_what_is_no_answer_may_pass_and_says_what_it_was(response, told):
    def answer(_):
        return httpx.Response(**{**response, "stream": httpx.ByteStream(response.pop("content", b""))})

    with pytest.raises(Passing, match=told):
        post(httpx.Client(transport=httpx.MockTransport(answer)), URL, {})


@pytest.mark.parametrize("key", ["sk-clé", "sk-1\nsk-2", "sk 1"])
def test_what_can_be_no_key_is_refused_and_not_shown(monkeypatch, key):
    monkeypatch.setenv("OWN_KEY", key)
    with pytest.raises(WriterError, match="key_variable: OWN_KEY holds") as refused:
        key_header("OWN_KEY", "generation.writer.key_variable", WriterError)
    assert key not in str(refused.value)


@pytest.mark.parametrize("form", ['{{"error": {{"message": "no such key {}"}}}}', "<html>{}</html>"])
def test_a_key_that_an_endpoint_repeats_is_not_told(form):
    def answer(request):
        return httpx.Response(400, text=form.format(request.headers["Authorization"]))

    http = httpx.Client(
        transport=httpx.MockTransport(answer), headers={"Authorization": "Bearer very-secret"}
    )
    told = reason_told(post(http, URL, {}))
    assert "Bearer ***" in told
    assert "very-secret" not in told


@pytest.mark.parametrize(
    ("name", "proxy"),
    [
        ("ALL_PROXY", "socks://127.0.0.1:9/"),
        ("all_proxy", "socks5://127.0.0.1:9"),
        ("http_proxy", "http://a:b/"),
    ],
)
@pytest.mark.parametrize("kind", ["writer", "teacher"])
def test_a_proxy_that_cannot_be_used_is_told_before_anything_is_computed(monkeypatch, name, proxy, kind):
    monkeypatch.setenv(name, proxy)
    settings = {"kind": "endpoint", "url": URL, "model": "m"}
    if kind == "writer":
        asking = EndpointModel(
            parse_settings(EndpointSettings, settings, "writer"), 64, 0, "generation.writer"
        )
    else:
        asking = EndpointReranker(parse_settings(EndpointTeacher, settings, "teacher"))
    with pytest.raises((WriterError, TeacherError), match="a proxy of the environment cannot be used"):
        asking.check()


@pytest.mark.parametrize("url", ["http:///v1", "http://[::1/v1", "http://host:99999999/v1", "http://host:0/"])
def test_a_url_that_nobody_can_ask_is_a_wrong_setting(url):
    with pytest.raises(RecipeError, match=r"url: .*names no host and port"):
        parse_settings(EndpointSettings, {"kind": "endpoint", "url": url, "model": "m"}, "writer")
