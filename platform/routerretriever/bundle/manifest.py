"""The files of a bundle, and reading them.

Layout: ``bundle.json`` (base encoder with its fingerprint and where each setting came from, experts with
versions, the hash of every file, the recipe, evaluation figures), ``router/``, ``experts/<name>/`` with an
adapter's files and the expert's card, ``validation.json``, queries that a service asks before it lets a
bundle in, and, if it was learned, ``fusion.json``, how much BM25 counts beside the vectors. A bundle needs
nothing else but the base encoder's own weights.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routerretriever.adapters.files import tower_fingerprint
from routerretriever.datasets.settings import PassageSettings
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.errors import BadInput, BundleError
from routerretriever.hashing import file_hash
from routerretriever.index.fusion_weights import FusionWeights

log = logging.getLogger(__name__)

MANIFEST_FILE = "bundle.json"
VALIDATION_FILE = "validation.json"
FUSION_FILE = "fusion.json"
BASE_ADAPTER = "base_adapter"
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
    """A bundle's base encoder; an adapter that is part of it lies in the bundle too."""
    settings = EncoderSettings.model_validate(manifest["encoder"])
    if settings.adapter is not None:
        settings = settings.model_copy(update={"adapter": str(bundle / settings.adapter)})
    return settings


def cut_collections(manifest: Mapping[str, Any]) -> dict[str, PassageSettings]:
    """The collections whose corpora hold passages, and how they were cut."""
    domains = manifest.get("recipe", {}).get("domains", {})
    return {
        name: PassageSettings.model_validate(domain["passages"])
        for name, domain in domains.items()
        if domain.get("passages")
    }


def read_validation_queries(bundle: Path) -> dict[str, list[ValidationQuery]]:
    """The validation queries of each collection."""
    path = bundle / VALIDATION_FILE
    if not path.exists():
        path = bundle / _OLD_VALIDATION_FILE
        log.warning("%s: the file is now %s; the next release reads the new name only, so register it again",
                    path, VALIDATION_FILE)  # fmt: skip
    stored = json.loads(path.read_text(encoding="utf-8"))
    return {name: [ValidationQuery(**query) for query in queries] for name, queries in stored.items()}


def read_fusion_weights(bundle: Path, manifest: Mapping[str, Any]) -> FusionWeights | None:
    """How much BM25 counts beside the vectors; None if the bundle does not say.

    Raises:
        BundleError: the weights were made for other settings than this release's.
    """
    name = manifest.get("fusion")
    if name is None:
        return None
    try:
        return FusionWeights.from_json(json.loads((bundle / name).read_text(encoding="utf-8")))
    except BadInput as error:
        raise BundleError(f"{bundle / name}: {error}") from None


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a bundle's manifest and check its files.

    Raises:
        BundleError: a file is missing or altered, or the base encoder here is not the bundle's.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{folder}: no bundle here ({MANIFEST_FILE} is missing)") from None
    except ValueError:
        manifest = {}
    if not isinstance(manifest, dict) or not manifest:
        raise BundleError(f"{folder / MANIFEST_FILE}: no manifest of a bundle; register it again")
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
    found = tower_fingerprint(settings)
    if found != manifest["encoder_fingerprint"]:
        raise BundleError(
            f"the bundle needs base encoder {settings.name} with fingerprint "
            f"{manifest['encoder_fingerprint']}; the one found here has {found}"
        )
    return manifest
