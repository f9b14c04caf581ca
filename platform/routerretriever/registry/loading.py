"""Bundles out of the registry: by alias, by version, or from a folder. Reading changes nothing."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.utils.uri import append_to_uri_path

from routerretriever.bundle.manifest import MANIFEST_FILE
from routerretriever.bundle.model import RouterRetriever
from routerretriever.errors import BadInput, BundleError, NotFound, without_secrets
from routerretriever.registry.connection import open_to_read, present_location, reached

_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def load(uri: str, tracking_uri: str | None = None) -> RouterRetriever:
    """Load a bundle by ``models:/<name>@<alias>``, ``models:/<name>/<version>``, or from a folder.

    Args:
        uri: the bundle.
        tracking_uri: MLflow's server or database; by default MLflow's present one.

    Raises:
        NotFound: the registry has no such version.
        BundleError: the bundle is damaged, or the base encoder here is not its own.
    """
    with tempfile.TemporaryDirectory(prefix="bundle-") as scratch:
        return RouterRetriever(fetch_bundle(uri, Path(scratch), tracking_uri))


def fetch_bundle(uri: str, into: Path, tracking_uri: str | None = None) -> Path:
    """A folder with a bundle's files: ``uri`` itself if it is a folder, a copy from MLflow otherwise.

    Args:
        uri: as for ``load``.
        into: an empty folder that receives the copy.
        tracking_uri: MLflow's server or database; by default MLflow's present one.

    Raises:
        NotFound: the registry has no such version.
    """
    if not uri.startswith("models:/"):
        return Path(uri)
    return _download(uri, "artifacts/bundle", into, tracking_uri or mlflow.get_tracking_uri())


def fetch_manifest(uri: str, tracking_uri: str) -> dict[str, Any]:
    """What a registered bundle says of itself, without its other files.

    Args:
        uri: ``models:/<name>@<alias>`` or ``models:/<name>/<version>``.
        tracking_uri: MLflow's server or database.

    Raises:
        NotFound: the registry has no such version.
        BadInput: its files are not where the registry says.
        BundleError: the file is damaged.
    """
    with tempfile.TemporaryDirectory(prefix="bundle-") as scratch:
        file = _download(uri, f"artifacts/bundle/{MANIFEST_FILE}", Path(scratch), tracking_uri)
        try:
            manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            raise BundleError(f"{uri}: its {MANIFEST_FILE} is damaged; register it again") from None
    return manifest


def _download(uri: str, part: str, into: Path, tracking_uri: str) -> Path:
    """A copy of a file or folder of a model version."""
    with reached(tracking_uri):
        client = open_to_read(tracking_uri)
        version = None if client is None else find_version(client, uri)
        if client is None or version is None:
            raise NotFound(f"{uri}: not in the registry {without_secrets(tracking_uri)}")
        location = version.source
        if location.startswith("models:/m-"):  # a logged model, which the version names in this way alone
            location = client.get_logged_model(location.removeprefix("models:/")).artifact_location
        fetched = mlflow.artifacts.download_artifacts(
            artifact_uri=append_to_uri_path(present_location(location, tracking_uri), part),
            dst_path=str(into),
            tracking_uri=tracking_uri,
            registry_uri=tracking_uri,
        )
    return Path(fetched)


def find_version(client: MlflowClient, uri: str) -> ModelVersion | None:
    """The model version that a URI names; None if there is none.

    Raises:
        BadInput: the URI is none of a model version.
    """
    named = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if named is None:
        raise BadInput(f"{uri}: expected models:/<name>@<alias>, models:/<name>/<version> or a folder")
    name, alias, version = named.groups()
    try:
        if alias is not None:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code in _ABSENT:
            return None
        raise
