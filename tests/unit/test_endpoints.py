"""Somebody else's endpoint: what it asks to wait, and how long the pauses are where it does not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from routerretriever.runtime.endpoint import Passing, post, retrying

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


@pytest.mark.parametrize("told", ["soon", "nan", "inf", "Mon, 99 Jan 2024 00:00:00 GMT", None], ids=str)
def test_what_says_no_time_is_not_believed(told):
    assert all(0 < pause < 8 for pause in pauses(answering(503, told)))


def test_a_limit_is_waited_for_in_seconds_and_longer_every_time():
    waited = pauses(answering(429))
    assert waited == sorted(waited)
    assert waited[0] >= 2
    assert sum(waited) >= 30
    assert sum(pauses(answering(503))) < 10
