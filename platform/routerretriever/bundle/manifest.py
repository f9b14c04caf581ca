"""The files of a bundle, and reading them.

Layout: ``bundle.json`` (base encoder and its fingerprint, experts with versions, the hash of every file, the
recipe, evaluation figures), ``router/``, ``experts/<name>/`` with an adapter's files and the expert's card,
and ``validation.json``, queries that a service asks before it lets a bundle in. A bundle needs nothing else
but the base encoder's own weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routerretriever.encoder.settings import EncoderSettings
from routerretriever.encoder.source import encoder_fingerprint
from routerretriever.errors import BundleError
from routerretriever.hashing import file_hash

MANIFEST_FILE = "bundle.json"
VALIDATION_FILE = "validation.json"
GENERAL_PREFIX = "general_prefix"
FORMAT = 2
_OLD_VALIDATION_FILE = "canary.json"


@dataclass(frozen=True)
class ValidationQuery:
    """A dev query with its judgements, by which a service tells a good bundle from a bad one."""

    query: str
    relevant: dict[str, int]


def expert_folder(bundle: Path, name: str) -> Path:
    """Where an expert's files lie in a bundle."""
    return bundle / "experts" / name


def bundle_encoder(bundle: Path, manifest: Mapping[str, Any]) -> EncoderSettings:
    """A bundle's base encoder; a general prefix lies in the bundle itself."""
    settings = EncoderSettings.model_validate(manifest["encoder"])
    if settings.general_prefix is not None:
        settings = settings.model_copy(update={"general_prefix": str(bundle / settings.general_prefix)})
    return settings


def read_validation_queries(bundle: Path) -> dict[str, list[ValidationQuery]]:
    """The validation queries of each collection."""
    path = bundle / VALIDATION_FILE
    if not path.exists():
        path = bundle / _OLD_VALIDATION_FILE
    stored = json.loads(path.read_text(encoding="utf-8"))
    return {name: [ValidationQuery(**query) for query in queries] for name, queries in stored.items()}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a bundle's manifest and check its files.

    Raises:
        BundleError: a file is missing or altered, or the base encoder here is not the bundle's.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{folder}: no bundle here ({MANIFEST_FILE} is missing)") from None
    if manifest.get("format") != FORMAT:
        raise BundleError(
            f"{folder}: a bundle of format {manifest.get('format')}, this version reads {FORMAT}; "
            "register it again"
        )
    for name, expected in manifest["files"].items():
        if not (folder / name).is_file():
            raise BundleError(f"{folder / name}: missing from the bundle; register it again")
        if file_hash(folder / name) != expected:
            raise BundleError(
                f"{folder / name}: altered since it was registered (hash mismatch); register it again"
            )
    settings = bundle_encoder(folder, manifest)
    found = encoder_fingerprint(settings)
    if found != manifest["encoder_fingerprint"]:
        raise BundleError(
            f"the bundle needs base encoder {settings.name} with fingerprint "
            f"{manifest['encoder_fingerprint']}; the one found here has {found}"
        )
    return manifest
