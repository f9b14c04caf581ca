"""Making a bundle: pinned experts and a fitted router over one base encoder, in one folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from routerretriever.adapters.files import base_adapter_folder, tower_fingerprint
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.bundle.manifest import (
    BASE_ADAPTER,
    FORMAT,
    FUSION_FILE,
    MANIFEST_FILE,
    VALIDATION_FILE,
    ValidationQuery,
    expert_folder,
)
from routerretriever.encoder.card import read_card
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.errors import BundleError
from routerretriever.hashing import file_hash
from routerretriever.index.fusion_weights import FusionWeights
from routerretriever.routing.protocol import Router
from routerretriever.routing.saving import save_router
from routerretriever.routing.settings import RoutingSettings
from routerretriever.training.expert import Expert
from routerretriever.types import BASE


@dataclass(frozen=True)
class ServiceFacts:
    """What a service needs to know besides the models."""

    corpora: dict[str, str]
    """The corpus artifact of every collection that can be searched."""
    validation: dict[str, list[ValidationQuery]]
    """Some dev queries of each collection."""
    shares: dict[str, float]
    """Mean weight of each expert on dev queries: what a healthy service's routing looks like."""


@dataclass(frozen=True)
class BundleParts:
    """What a bundle is made of."""

    recipe: Mapping[str, Any]
    """The recipe of the run that made the parts, as it is written to JSON."""
    encoder: EncoderSettings
    routing: RoutingSettings
    router: Router
    """The fitted router."""
    experts: Mapping[str, Expert]
    """Experts by name; all that the router can choose, at least."""
    evaluation: Mapping[str, Any]
    """Figures to carry along."""
    facts: ServiceFacts
    """What the service is to know."""
    fusion: FusionWeights | None = None
    """How much BM25 counts beside the vectors."""


def write_bundle(
    folder: Path, parts: BundleParts, registered: Mapping[str, int], store: ArtifactStore
) -> dict[str, Any]:
    """Assemble a bundle; returns its manifest.

    Args:
        folder: an empty folder to fill.
        parts: what it is made of.
        registered: version number of each expert in the registry.
        store: where the experts lie.

    Raises:
        BundleError: an expert was trained on another base encoder, or the router knows one that is missing.
    """
    card = read_card(parts.encoder)
    router, experts, encoder = parts.router, parts.experts, card.settings
    fingerprint = tower_fingerprint(encoder)
    unknown = set(router.experts) - set(experts) - {BASE}
    if unknown:
        raise BundleError(f"the router knows experts that the bundle lacks: {sorted(unknown)}")
    pins = []
    for name, expert in experts.items():
        if expert.card["encoder_fingerprint"] != fingerprint:
            raise BundleError(
                f"expert {name!r} was trained on base encoder {expert.card['encoder']['name']} "
                f"({expert.card['encoder_fingerprint']}); "
                f"this bundle's is {encoder.name} ({fingerprint})"
            )
        # Several experts can be ways to use the same weights.
        if not expert_folder(folder, expert.domain).exists():
            shutil.copytree(expert.folder(store), expert_folder(folder, expert.domain))
        pins.append(
            {
                "name": name,
                "folder": expert.domain,
                "version": expert.version,
                "registered_version": registered[name],
            }
        )
    if encoder.adapter is not None:
        shutil.copytree(base_adapter_folder(encoder.adapter), folder / BASE_ADAPTER)
        encoder = encoder.model_copy(update={"adapter": BASE_ADAPTER})
    save_router(router, folder / "router")
    _write_json(
        folder / VALIDATION_FILE,
        {name: [asdict(query) for query in queries] for name, queries in parts.facts.validation.items()},
    )
    if parts.fusion is not None:
        _write_json(folder / FUSION_FILE, parts.fusion.to_json())
    manifest = {
        "format": FORMAT,
        "encoder": encoder.model_dump(),
        "encoder_sources": card.sources,
        "encoder_fingerprint": fingerprint,
        "features": parts.routing.features,
        "merge": parts.routing.merge,
        "experts": pins,
        "recipe": dict(parts.recipe),
        "evaluation": dict(parts.evaluation),
        "corpora": parts.facts.corpora,
        "shares": parts.facts.shares,
        "fusion": None if parts.fusion is None else FUSION_FILE,
        "files": {
            path.relative_to(folder).as_posix(): file_hash(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    }
    _write_json(folder / MANIFEST_FILE, manifest)
    return manifest


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
