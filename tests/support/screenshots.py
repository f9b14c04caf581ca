"""The documentation's pictures, in a real browser. `make screenshots` takes them of the finished sample."""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
from routerretriever.serving.deployments.run import free_port

from support.browser import Browser, open_browser
from support.paths import BIN, ROOT

IMAGES = ROOT / "docs" / "images"
STORAGE = ROOT / "runs" / "sample"
DESK = (1440, 900)
ANSWERED = "!document.getElementById('results').hidden && document.querySelectorAll('#routed li').length > 1"
QUESTION = "?q=my+thumb+tingles+at+night&in=health"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Requests for pictures are nobody's news."""


@contextmanager
def _folder(path: Path) -> Iterator[str]:
    """Serve a folder's files."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()


@contextmanager
def _running(command: list[str], port: int, path: str) -> Iterator[str]:
    """Run a server until the block ends; yields its address once a path of it answers."""
    url = f"http://127.0.0.1:{port}/"
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        try:
            deadline = time.monotonic() + 300
            while not _answers(url + path):
                assert process.poll() is None, command
                assert time.monotonic() < deadline, command
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


def _take(browser: Browser, name: str, url: str, until: str = "true", dark: bool = False) -> None:
    browser.open(url, *DESK, dark=dark)
    browser.wait(until, seconds=120)
    _keep(browser, name)


def _keep(browser: Browser, name: str) -> None:
    time.sleep(1)  # fonts and transitions
    browser.screenshot(IMAGES / f"{name}.png")
    print(IMAGES / f"{name}.png")


def _take_service(browser: Browser) -> None:
    port = free_port()
    command = [
        str(BIN / "routerretriever"),
        "serve",
        "jobs/recipes/sample.yaml",
        "--set",
        f"serving.port={port}",
    ]
    with _running(command, port, "readyz") as url:
        _take(browser, "playground", url + QUESTION, ANSWERED)
        _take(browser, "playground-dark", url + QUESTION, ANSWERED, dark=True)


def _take_tracking(browser: Browser) -> None:
    port = free_port()
    store = f"sqlite:///{STORAGE / 'mlflow.db'}"
    command = [str(BIN / "mlflow"), "ui", "--backend-store-uri", store, "--port", str(port), "--workers", "1"]
    with _running(command, port, "health") as url:
        browser.open(f"{url}#/models/sample/versions/1", *DESK)
        browser.wait("document.body.innerText.includes('Version 1')", seconds=120)
        # Its assistant opens beside every page.
        browser.run("document.querySelectorAll('[aria-label^=Close i]').forEach((button) => button.click())")
        _keep(browser, "mlflow")


def main() -> None:
    """Take all of them, or those of a place."""
    places = ("service", "report", "tracking", "documentation")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("places", nargs="*", choices=[*places, []], help="default: all")
    chosen = parser.parse_args().places or places
    with tempfile.TemporaryDirectory() as scratch, open_browser(Path(scratch) / "profile") as browser:
        if "service" in chosen:
            _take_service(browser)
        if "report" in chosen:
            with _folder(STORAGE / "reports" / "sample") as url:
                _take(browser, "evaluation", url + "evaluation.html")
        if "tracking" in chosen:
            _take_tracking(browser)
        if "documentation" in chosen:
            with _folder(ROOT / "site") as url:
                _take(browser, "documentation", url)


if __name__ == "__main__":
    main()
