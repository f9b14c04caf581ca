"""Fixtures that every folder of tests shares. Functions and classes lie in ``support``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from moto.server import ThreadedMotoServer

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")  # it would call home

from routerretriever.runtime import progress
from support.collections import write_collections
from support.object_stores import gcs_bucket, gcs_server, s3_bucket, s3_server
from support.runs import Run, build_finished, built_once, copy_artifacts, finished_recipe, run_recipe

pytest_plugins = ("support.slow_tests",)

# A busy machine is no reason for a test to fail.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same_inputs", settings.get_profile("patient"), derandomize=True)
settings.load_profile("patient")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With ``-n``, a file that needs a cluster stays in one process, which starts Ray once.

    Files that start a service are in one group: two of them on a machine would want the same ports.
    """
    for item in items:
        slow = item.get_closest_marker("integration") or item.get_closest_marker("end_to_end")
        if slow and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of remote artifacts and notes on checked files stay out of the home folder."""
    monkeypatch.setenv("ROUTERRETRIEVER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def own_output(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Bars and log lines are for the next test as they were; a command run in this process sets them."""
    monkeypatch.setattr(progress, "_quiet", progress.is_quiet())
    before = list(progress.log.handlers), progress.log.propagate, progress.log.level
    yield
    progress.log.handlers[:], progress.log.propagate = before[:2]
    progress.log.setLevel(before[2])


@pytest.fixture
def tiny_data(tmp_path: Path) -> Path:
    """A folder with ``data/fruit``, ``data/metal`` and ``data/sport``."""
    return write_collections(tmp_path)


@pytest.fixture(scope="session")
def not_only_units(request: pytest.FixtureRequest) -> None:
    """Servers and clusters are for tests that are marked as theirs; ``make test-fast`` leaves those out."""
    assert "not component" not in request.config.option.markexpr, "mark the test as a component test"


@pytest.fixture(scope="session")
def s3_of_session(not_only_units: None) -> Iterator[ThreadedMotoServer]:
    """The session's server with S3's interface."""
    with s3_server() as server:
        yield server


@pytest.fixture
def s3(s3_of_session: ThreadedMotoServer) -> Iterator[ThreadedMotoServer]:
    """A server with S3's interface and the empty bucket ``bucket``, in this process's environment."""
    with s3_bucket(s3_of_session):
        yield s3_of_session


@pytest.fixture(scope="session")
def gcs_of_session(not_only_units: None) -> Iterator[str]:
    """The URL of the session's server with Google Cloud Storage's interface."""
    with gcs_server() as url:
        yield url


@pytest.fixture
def gcs(gcs_of_session: str) -> Iterator[None]:
    """A server with Google Cloud Storage's interface, as ``s3`` is one."""
    with gcs_bucket(gcs_of_session):
        yield


@pytest.fixture(scope="session")
def cluster(not_only_units: None) -> Iterator[None]:
    """A Ray of this process's own, with two CPUs, however many there are."""
    import ray
    from ray import serve
    from routerretriever.runtime.cluster import start_ray, worker_environment

    worker_environment()  # workers inherit it
    start_ray(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="session")
def finished_folder(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's one finished run of the tiny recipe lies. Nobody changes anything below it."""
    return built_once(tmp_path_factory, "finished", build_finished)


@pytest.fixture(scope="session")
def finished(finished_folder: Path) -> Run:
    """The finished run, for tests that only look at it."""
    return run_recipe(finished_recipe(finished_folder), finished_folder)


@pytest.fixture(scope="module")
def run(finished_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A copy for one module, whose tests may add to it but damage nothing."""
    root = copy_artifacts(finished_folder, tmp_path_factory.mktemp("run"))
    return run_recipe(finished_recipe(root), root)


@pytest.fixture
def artifacts(finished_folder: Path, tmp_path: Path) -> Path:
    """A folder with a copy of the run's data and artifacts, with which one test may do what it likes."""
    return copy_artifacts(finished_folder, tmp_path)
