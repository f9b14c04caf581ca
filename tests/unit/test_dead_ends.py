"""What cannot be reached ends in one line, soon; and no password is in any line, page or artifact."""

import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from routerretriever.artifacts import filesystem
from routerretriever.artifacts.filesystem import FileSystem
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.cli import main as cli
from routerretriever.config.recipe import Recipe
from routerretriever.config.registry import RegistrySettings
from routerretriever.errors import RegistryError, StorageError, Unavailable, without_secrets
from routerretriever.generation.settings import GenerationSettings, JudgingSettings
from routerretriever.pipeline.doctor import examine, findings_table
from routerretriever.registry.registry import Registry
from routerretriever.runtime import cluster, progress
from routerretriever.runtime.haproxy import free_port
from routerretriever.training.settings import TrainingSettings
from support.object_stores import put_s3_at
from support.recipes import tiny_recipe

SECRET = "planted-Pa55"


@contextmanager
def server_that_says(status):
    """An HTTP server with one answer; its address."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = do_HEAD = do_PUT = answer

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def server_that_says_nothing():
    """A server that takes connections and never answers; its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def s3_at(monkeypatch):
    """Have S3 be at an address."""
    pytest.importorskip("s3fs")

    def set_address(address):
        put_s3_at(monkeypatch, f"http://{address}", SECRET)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")

    return set_address


def one_line(raised):
    text = str(raised.value)
    assert SECRET not in text
    assert len(text.splitlines()[0]) > 30
    assert "Traceback" not in text
    return text


def test_storage_that_does_not_answer_is_given_up(s3_at, monkeypatch):
    monkeypatch.setattr(filesystem, "_ANSWER_SECONDS", 0.5)
    with server_that_says_nothing() as address:
        s3_at(address)
        with pytest.raises(
            StorageError, match=r"storage: s3://silent/x: no answer within 0\.5 seconds"
        ) as raised:
            FileSystem.open("s3://silent/x").require_answer()
        one_line(raised)


def test_storage_that_refuses_is_told_so(s3_at):
    with server_that_says(403) as address:
        s3_at(address)
        with pytest.raises(
            StorageError, match=r"storage: s3://shut/x: .*mend the address or the credentials"
        ) as raised:
            FileSystem.open("s3://shut/x").require_answer()
        one_line(raised)


def test_a_local_storage_is_not_asked(tmp_path):
    FileSystem.open(str(tmp_path / "new")).require_answer()


@pytest.mark.component
def test_an_mlflow_that_refuses_or_hangs_or_is_gone_is_one_line(tmp_path, monkeypatch):
    def ask(address):
        settings = RegistrySettings(name="tiny", tracking_uri=f"http://anna:{SECRET}@{address}")
        Registry(settings, ArtifactStore.open(str(tmp_path))).bundles()

    with server_that_says(401) as address, pytest.raises(RegistryError, match="401") as raised:
        ask(address)
    one_line(raised)
    with pytest.raises(RegistryError, match="no server answers there") as raised:
        ask(f"127.0.0.1:{free_port()}")
    one_line(raised)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with (
        server_that_says_nothing() as address,
        pytest.raises(RegistryError, match="tracking_uri: ") as raised,
    ):
        ask(address)
    one_line(raised)


def test_a_ray_that_is_gone_is_one_line(monkeypatch):
    with pytest.raises(Unavailable, match=r"RAY_ADDRESS: .*no Ray cluster answers there") as raised:
        cluster.require_answer(f"127.0.0.1:{free_port()}")
    one_line(raised)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"http://anna:{SECRET}@host/x", "http://***@host/x"),
        (f"postgresql://host/db?sslpassword={SECRET}&a=1", "postgresql://host/db?sslpassword=***&a=1"),
        (f"s3://b?X-Amz-Signature={SECRET}#x", "s3://b?X-Amz-Signature=***#x"),
        (f"https://h/?token={SECRET} failed", "https://h/?token=*** failed"),
        (f"https://h/v1?api_key={SECRET}&a=1", "https://h/v1?api_key=***&a=1"),
        (f"http://anna:p@{SECRET}@host/x?to=a@b", "http://***@host/x?to=a@b"),
        ('"http://anna:p@host","x@y"', '"http://***@host","x@y"'),
        ("https://h/?keyword=zinc&page=2", "https://h/?keyword=zinc&page=2"),
    ],
)
def test_passwords_are_taken_out_of_texts(text, shown):
    assert without_secrets(text) == shown


def test_no_recorded_setting_has_the_password_of_any_address():
    address = {"kind": "endpoint", "url": f"http://anna:{SECRET}@host/v1", "model": "m"}
    settings = {
        "generation": GenerationSettings(writer=address),
        "judging": JudgingSettings(writer=address),
        "training": TrainingSettings(teacher=address, distillation=1),
        "registry": RegistrySettings(tracking_uri=f"http://anna:{SECRET}@host"),
    }
    recipe = Recipe(
        name="all",
        domains={"fruit": {"path": "fruit"}},
        storage=f"s3://anna:{SECRET}@bucket",
        data_root=f"s3://anna:{SECRET}@bucket",
        **settings,
    )
    assert recipe.generation.writer.url == address["url"]
    assert SECRET not in recipe.model_dump_json()
    assert recipe.model_dump_json().count("***@") == 6


def test_no_line_page_or_recorded_recipe_has_a_password(tiny_data, monkeypatch, capsys):
    uri = f"http://anna:{SECRET}@127.0.0.1:{free_port()}"
    recipe = tiny_recipe(tiny_data, registry={"tracking_uri": uri}, data_root=f"{tiny_data}/data")
    remote = recipe.model_copy(update={"storage": f"s3://anna:{SECRET}@bucket/x"})
    assert SECRET not in json.dumps([recipe.model_dump(mode="json"), remote.model_dump(mode="json")])

    written = io.StringIO()
    handler = logging.StreamHandler(written)
    progress.log.addHandler(handler)
    try:
        progress.log.warning("results under %s", remote.storage)
    finally:
        progress.log.removeHandler(handler)
    assert "results under s3://***@bucket/x" in written.getvalue()

    console = progress.PlainConsole(file=written, width=200)
    console.print(uri)
    console.print(findings_table(examine(recipe)))
    assert "MLflow" in written.getvalue()
    assert SECRET not in written.getvalue()

    def fail():
        raise RuntimeError(f"no answer from {uri}")

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(sys, "argv", ["routerretriever"])
    with pytest.raises(SystemExit):
        cli.main()
    told = capsys.readouterr().err
    assert "no answer from http://***@" in told
    assert SECRET not in told


class SlowRay:
    """Ray on a machine that is too busy for it, at first."""

    def __init__(self, timeouts):
        self.timeouts = timeouts
        self.left_behind = []

    def __call__(self, **options):
        if not self.timeouts:
            return
        self.timeouts -= 1
        self.left_behind.append(subprocess.Popen(["sleep", "60"]))
        raise Exception("The current node timed out during startup. This could happen because ...")


def test_ray_on_a_busy_machine_is_started_again_and_leaves_no_process(monkeypatch, caplog):
    mine = subprocess.Popen(["sleep", "60"])
    slow = SlowRay(timeouts=2)
    monkeypatch.setattr("ray.init", slow)
    with caplog.at_level(logging.WARNING):
        cluster.start_ray()
    assert caplog.text.count("this machine is busy; trying again") == 2
    assert [process.wait() for process in slow.left_behind] == [-signal.SIGKILL] * 2
    assert mine.poll() is None
    mine.kill()
    mine.wait()


def test_ray_that_never_starts_is_one_line(monkeypatch):
    slow = SlowRay(timeouts=100)
    monkeypatch.setattr("ray.init", slow)
    with pytest.raises(Unavailable, match="did not start on this machine in 4 tries of 30 s"):
        cluster.start_ray()
    for process in slow.left_behind:
        process.wait()


def test_what_else_keeps_ray_from_starting_is_passed_on(monkeypatch):
    def broken(**_):
        raise RuntimeError("no room")

    monkeypatch.setattr("ray.init", broken)
    with pytest.raises(RuntimeError, match="no room"):
        cluster.start_ray()


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_printed_while_ray_starts_is_kept_but_for_its_remark(monkeypatch, capfd, fails):
    def init(**_):
        os.write(2, b"before\n[x I 1 1] logging.cc:303: Set ray log level from environment variable X to 3\n")
        os.write(2, b"after")
        if fails:
            raise RuntimeError("no room")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(RuntimeError) if fails else nullcontext():
        cluster.start_ray()
    assert capfd.readouterr().err == "before\nafter"


def test_ray_never_prints_that_its_controller_has_ended_itself():
    """Shards are spread by Ray Data, which is imported before a cluster is joined."""
    constant = "ray._private.ray_constants.RAY_DEDUP_LOGS_SKIP_REGEX"
    told = f"import routerretriever.runtime.shards, ray; print({constant})"
    done = subprocess.run([sys.executable, "-c", told], check=True, capture_output=True, text=True)
    line = "Task ServeController.graceful_shutdown failed. There are infinite retries remaining"
    assert re.search(done.stdout.strip(), line)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's file that is always full")
@pytest.mark.parametrize("command", ["schema", "--version"])
def test_output_that_there_is_no_room_for_is_one_line(command):
    script = "from routerretriever.cli.main import main; main()"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script, command], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "error: what this command prints: No space left on device; make room for it\n"
