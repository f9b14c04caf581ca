import io
import logging

import pytest
from rich.table import Table
from routerretriever.runtime import heartbeat
from routerretriever.runtime import progress as console
from routerretriever.runtime.metrics import (
    DOCUMENTS_ENCODED,
    QUERIES_SCORED,
    STORAGE_RETRIES,
    drain,
    export_to,
    figures,
    increment,
    merge,
)


def test_a_steps_time_leaves_out_the_steps_that_it_waited_for(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    clock = console.StepClock()
    with clock.step("evaluate"):
        now[0] += 1
        with clock.step("score"):
            now[0] += 10
            with clock.step("encode"):
                now[0] += 100
        now[0] += 2
        with clock.step("score"):
            now[0] += 20
    assert clock.seconds == {"encode": 100, "score": 30, "evaluate": 3}


def test_what_steps_counted_here_and_elsewhere_becomes_the_runs_figures():
    drain()
    clock = console.StepClock()
    with clock.step("score"):
        with clock.step("encode"):
            merge({DOCUMENTS_ENCODED: 60})
            increment(DOCUMENTS_ENCODED, 40)
        increment(STORAGE_RETRIES)
    assert drain() == {}
    kept = figures({"encode": 4.0, "score": 2.0}, clock.counts)
    assert kept["seconds/encode"] == 4
    assert kept["counts/documents_encoded"] == 100
    assert kept["throughput/documents_per_second"] == 25
    assert kept["counts/storage_retries"] == 1
    # No query was scored: all were there already, which is no throughput of 0.
    assert kept[f"counts/{QUERIES_SCORED.removeprefix('routerretriever_')}"] == 0
    assert "throughput/queries_per_second" not in kept


def test_direction_marks_never_reach_the_terminal():
    shown = io.StringIO()
    terminal = console.PlainConsole(file=shown, force_terminal=True, color_system=None, width=100)
    terminal.print("safe\u202egnp.exe \u2066x\u2069 \u200d")
    assert shown.getvalue() == "safe\ufffdgnp.exe \ufffdx\ufffd \u200d\n"


def test_plain_log_lines_carry_the_runs_id(capsys):
    console.set_up(quiet=True)
    console.log.info("hello")
    assert f"INFO run={console.RUN_ID} hello" in capsys.readouterr().err


def test_a_quiet_log_is_never_silent_for_long_while_something_is_at_work(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    logger = logging.getLogger("test-heartbeat")
    beating = heartbeat.Heartbeat(logger, seconds=25)
    logger.addHandler(beating)
    caplog.set_level(logging.INFO, logger.name)
    try:
        now[0] = 100.0
        beating.beat()  # nobody works
        with (
            beating.during(lambda: "at step train"),
            beating.during(lambda: "encoding documents: 3 of 9 done"),
        ):
            beating.beat()
            now[0] += 20
            beating.beat()  # too early
            logger.info("a line")
            now[0] += 24
            beating.beat()
            now[0] += 2
            beating.beat()
        beating.beat()
        told = [record.getMessage() for record in caplog.records]
        assert told == ["a line", "still encoding documents: 3 of 9 done (46 s)"]
        logger.removeHandler(beating)  # as bars take over
        with beating.during(lambda: "at step train"):
            now[0] += 60
            beating.beat()
        assert len(caplog.records) == 2
    finally:
        logger.removeHandler(beating)


@pytest.mark.parametrize(
    ("done", "total", "seconds", "told"),
    [
        (0, 9, 60.0, ""),
        (9, 9, 60.0, ""),
        (6, 9, 60.0, "about 30 s left"),
        (3, 9, 90.0, "about 3 min left"),
        (1, 11, 900.0, "about 2.5 h left"),
    ],
)
def test_the_time_that_is_left_is_told_from_what_is_done(done, total, seconds, told):
    assert console.time_left(done, total, seconds) == told


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands; ``clock[0] += 1`` moves it."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_a_bar_shows_how_long_still(clock, monkeypatch):
    shown = io.StringIO()
    terminal = console.PlainConsole(
        file=shown, force_terminal=True, color_system=None, width=120, get_time=lambda: clock[0]
    )
    monkeypatch.setattr(console, "console", terminal)
    with console.bars() as progress:
        task = progress.add_task("encoding", total=10)
        for _ in range(4):
            clock[0] += 60  # longer than rich looks back by itself
            progress.advance(task)
        progress.refresh()
    assert "4/10 0:04:00 0:06:00 left" in " ".join(shown.getvalue().split())


def test_a_quiet_log_says_how_long_still(clock, monkeypatch, caplog):
    caplog.set_level(logging.INFO, console.log.name)
    monkeypatch.setattr(console.log, "propagate", True)
    beating = heartbeat.Heartbeat(console.log, seconds=25)
    monkeypatch.setattr(console, "_heartbeat", beating)
    monkeypatch.setattr(console, "_quiet", True)
    console.log.addHandler(beating)
    try:
        items = console.track(range(3), "encoding documents", total=3)
        next(items)
        clock[0] += 100
        beating.beat()
    finally:
        console.log.removeHandler(beating)
    # Its own thread may beat at the same time, and then tells the same.
    assert {record.getMessage() for record in caplog.records} == {
        "still encoding documents: 1 of 3 done, about 3 min left (100 s)"
    }


def test_what_is_counted_here_is_exported_and_what_others_counted_is_not():
    drain()  # what other tests of this process counted
    exported = []
    export_to(lambda name, amount: exported.append((name, amount)))
    try:
        increment(DOCUMENTS_ENCODED, 3)
        merge({DOCUMENTS_ENCODED: 5})
    finally:
        export_to(None)
    assert exported == [(DOCUMENTS_ENCODED, 3)]
    assert drain() == {DOCUMENTS_ENCODED: 8}


def test_brackets_markup_and_control_characters_reach_the_terminal_as_text():
    shown = io.StringIO()
    terminal = console.PlainConsole(file=shown, force_terminal=True, color_system=None, width=100)
    table = Table("[/INST]", title="[title]")
    table.add_row("[bold]gone?[/bold] :smile: \x1b[31mred\x9b2J")
    terminal.print(table)
    terminal.print("[/line]")
    for text in (
        "[/INST]",
        "[title]",
        "[bold]gone?[/bold] :smile: \N{REPLACEMENT CHARACTER}[31mred",
        "[/line]",
    ):
        assert text in shown.getvalue()
    assert "\x9b" not in shown.getvalue()
    assert "\x1b[31m" not in shown.getvalue()
