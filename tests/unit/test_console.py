import logging

from routerretriever import console


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


def test_plain_log_lines_carry_the_runs_id(capsys):
    before = list(console.log.handlers), console.log.propagate
    try:
        console.set_up(quiet=True)
        console.log.info("hello")
        assert f"INFO run={console.RUN_ID} hello" in capsys.readouterr().err
    finally:
        console.set_up(quiet=False)
        console.log.handlers[:], console.log.propagate = before
        console.log.setLevel(logging.NOTSET)
