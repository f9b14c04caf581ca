"""What this machine can do, found out without Ray: processors, memory, GPUs, space, ports."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from routerretriever.errors import Unavailable

T = TypeVar("T")
VNNI, BF16 = "VNNI", "AVX-512 BF16"
_VECTOR_UNITS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": VNNI,
    "avx512_vnni": VNNI,
    "avx512_bf16": BF16,
    "amx_tile": "AMX",
}
_CGROUP = Path("/sys/fs/cgroup")
_GPU_FILES = "/proc/driver/nvidia/gpus"


def cpus() -> float:
    """Processors that this process may use: its affinity, within its container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return min(float(allowed), int(quota) / int(period))  # "max" is no number
    return float(allowed)


def vector_units() -> list[str]:
    """What the processor has for arithmetic on vectors; empty where it is not told (Linux on x86 tells)."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                flags = set(line.split())
                return list(dict.fromkeys(name for flag, name in _VECTOR_UNITS.items() if flag in flags))
    return []


def why_slow(precision: str) -> str | None:
    """Why this processor may run a precision of the serving engine slower than fp32; None if it may not."""
    units = vector_units()
    if precision == "int8" and units and VNNI not in units:
        return "int8 may be slower than fp32, since this CPU has no VNNI"
    return None


def memory_bytes() -> int:
    """Memory of the machine, or of the container."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):
        return min(machine, int((_CGROUP / "memory.max").read_text()))
    return machine


def nvidia_gpus() -> int:
    """GPUs whose driver is loaded, whether or not torch can use them."""
    with suppress(OSError):
        return len(list(Path(_GPU_FILES).iterdir()))
    return 0


def torch_gpus() -> int:
    """GPUs that torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def nearest_folder(folder: Path) -> Path:
    """A folder, or the first above it that is there."""
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())


def git_commit() -> str | None:
    """The commit that the working folder is at, with a plus if files differ from it; None without git."""
    command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()
    return None


def free_bytes(folder: Path) -> int:
    """Room for a folder that may not be there yet."""
    status = os.statvfs(nearest_folder(folder))
    return status.f_bavail * status.f_frsize


def why_not_listening(host: str, port: int) -> str | None:
    """Why an address cannot be listened on; None if it can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror
    return None


def goes_through_proxy(url: str) -> bool:
    """Whether HTTP clients send what is for a URL to a proxy that the environment names.

    Its own server then need not be within reach of this machine.
    """
    place = urlsplit(url)
    return bool({place.scheme, "all"} & getproxies().keys()) and not proxy_bypass(place.hostname or "")


def within(seconds: float, call: Callable[[], T], what: str) -> T:
    """The result of a call that may hang, as one to a file system whose server is gone.

    Raises:
        Unavailable: it has not returned in time. Its thread is left behind.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise Unavailable(f"{what}: no answer within {seconds:g} seconds")
    return results[0]
