"""Waiting for something to happen, never for a time to pass."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx


def wait_until(
    condition: Callable[[], object], seconds: float = 600, found: Callable[[], object] = lambda: ""
) -> None:
    """Return when the condition holds. ``found`` says in the failure what was there instead.

    The bound ends a test that would wait for ever; a slow machine is no reason for a test to fail.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"nothing came of it in {seconds:g} s {found()}"
        time.sleep(0.1)


def wait_for(
    url: str, process: subprocess.Popen[bytes], log: Path | None = None, token: str | None = None
) -> None:
    """Return when the URL answers. The process that is to serve it must live; its log explains a failure."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        assert process.poll() is None, log and log.read_text()
        try:
            httpx.get(url, timeout=5, headers=headers).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise AssertionError(f"{url} did not answer\n{log.read_text() if log else ''}")
