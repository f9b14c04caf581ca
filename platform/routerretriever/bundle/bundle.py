"""The router bundle: pinned experts and a fitted router over one base encoder, in one folder.

Layout: ``bundle.json`` (base encoder and its fingerprint, experts with versions, the hash of every file, the
recipe, evaluation figures), ``router/``, ``experts/<name>/`` with PEFT's files and the expert's card, and
``canary.json``, queries that a service asks before it lets a bundle in. It needs nothing else but the base
encoder's own weights.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from routerretriever.adapters.files import base_adapter_folder, tower_fingerprint
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.config.recipe import Recipe
from routerretriever.datasets.collection import Document
from routerretriever.encoder.card import read_card
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.errors import BundleError
from routerretriever.hashing import content_hash, file_hash
from routerretriever.routing.protocol import Router
from routerretriever.routing.saving import load_router, save_router
from routerretriever.types import BASE

if TYPE_CHECKING:
    from routerretriever.encoder.encoder import Encoder
    from routerretriever.training.experts import Expert

Vectors = NDArray[np.float32]
MANIFEST_FILE = "bundle.json"
_CANARY_FILE = "canary.json"
_BASE_ADAPTER = "base_adapter"
_FORMAT = 2


@dataclass(frozen=True)
class ValidationQuery:
    """A dev query with its judgements, by which a service tells a good bundle from a bad one."""

    query: str
    relevant: dict[str, int]


@dataclass(frozen=True)
class ServiceFacts:
    """What a service needs to know besides the models."""

    corpora: dict[str, str]
    """The corpus artifact of every collection that can be searched."""
    canary: dict[str, list[ValidationQuery]]
    """Some dev queries of each collection."""
    shares: dict[str, float]
    """Mean weight of each expert on dev queries: what a healthy service's routing looks like."""


def write_bundle(
    folder: Path,
    recipe: Recipe,
    router: Router,
    experts: Mapping[str, Expert],
    registered: Mapping[str, int],
    evaluation: Mapping[str, Any],
    facts: ServiceFacts,
    store: ArtifactStore,
) -> None:
    """Assemble a bundle.

    Args:
        folder: an empty folder to fill.
        recipe: the run that made the parts.
        router: the fitted router.
        experts: experts by name; all that the router can choose, at least.
        registered: version number of each expert in the registry.
        evaluation: figures to carry along.
        facts: what the service is to know.
        store: where the experts lie.

    Raises:
        BundleError: an expert was trained on another base encoder, or the router knows one that is missing.
    """
    fingerprint = tower_fingerprint(recipe.encoder)
    unknown = set(router.experts) - set(experts) - {BASE}
    if unknown:
        raise BundleError(f"the router knows experts that the bundle lacks: {sorted(unknown)}")
    pins = []
    for name, expert in experts.items():
        if expert.card["encoder_fingerprint"] != fingerprint:
            raise BundleError(
                f"expert {name!r} was trained on base encoder {expert.card['encoder']['name']} "
                f"({expert.card['encoder_fingerprint']}); "
                f"this bundle's is {recipe.encoder.name} ({fingerprint})"
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
    encoder = read_card(recipe.encoder).settings
    if encoder.adapter is not None:
        shutil.copytree(base_adapter_folder(encoder.adapter), folder / _BASE_ADAPTER)
        encoder = encoder.model_copy(update={"adapter": _BASE_ADAPTER})
    save_router(router, folder / "router")
    _write_json(
        folder / _CANARY_FILE,
        {name: [asdict(query) for query in queries] for name, queries in facts.canary.items()},
    )
    manifest = {
        "format": _FORMAT,
        "encoder": encoder.model_dump(),
        "encoder_fingerprint": fingerprint,
        "features": recipe.routing.features,
        "merge": recipe.routing.merge,
        "experts": pins,
        "recipe": recipe.model_dump(mode="json"),
        "evaluation": dict(evaluation),
        "corpora": facts.corpora,
        "shares": facts.shares,
        "files": {
            path.relative_to(folder).as_posix(): file_hash(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    }
    _write_json(folder / MANIFEST_FILE, manifest)


class RouterRetriever:
    """A loaded bundle: encodes each query by the expert, or the mixture of experts, that suits it.

    Has the methods that beir's ``DenseRetrievalExactSearch`` asks of a model, and those of mteb's
    ``EncoderProtocol``; neither package is needed to load it.
    """

    def __init__(self, folder: Path, encoder: Encoder | None = None, load_experts: bool = True) -> None:
        """Load and check a bundle's folder.

        Args:
            folder: the bundle's files.
            encoder: the base encoder, if it is loaded already; several bundles may share it.
            load_experts: without, the bundle routes but can embed only as the base.

        Raises:
            BundleError: a file is missing or altered, or the base encoder here is not the bundle's.
        """
        from routerretriever.adapters.kinds import batch_adapters
        from routerretriever.adapters.tower import load_tower

        self.manifest = read_manifest(folder)
        self.settings = bundle_encoder(folder, self.manifest)
        self.router = load_router(folder / "router")
        self.encoder = load_tower(self.settings) if encoder is None else encoder
        folders = {
            pin["name"]: expert_folder(folder, pin.get("folder", pin["name"]))
            for pin in self.manifest["experts"]
        }
        self._experts = batch_adapters(self.encoder, folders if load_experts else {})
        if self.merge not in self._experts.merges:
            raise BundleError(f"{folder}: experts of this kind cannot be merged by their {self.merge}")

    @classmethod
    def load(cls, uri: str, tracking_uri: str | None = None) -> RouterRetriever:
        """Load a bundle by ``models:/<name>@<alias>``, ``models:/<name>/<version>``, or from a folder."""
        from routerretriever.registry.registry import fetch_bundle

        with tempfile.TemporaryDirectory(prefix="bundle-") as scratch:
            return cls(fetch_bundle(uri, Path(scratch), tracking_uri))

    @property
    def experts(self) -> list[str]:
        """Names of the experts."""
        return [expert["name"] for expert in self.manifest["experts"]]

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each query, which ``route`` and ``embed`` both read."""
        return self.encoder.tokenize_queries(texts)

    def route(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """Weights [B, T] over ``self.router.experts`` for tokenised queries."""
        return self.router.weights(self.features(rows))

    def features(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """What the router reads of tokenised queries: [B, d]."""
        return self.encoder.token_features(rows, self.manifest["features"])

    @property
    def merge(self) -> str:
        """What is merged: ``routing.merge``. Bundles older than that setting merge embeddings."""
        if "merge" in self.manifest:
            return str(self.manifest["merge"])
        return "weights" if self.manifest.get("mix") == "adapters" else "embeddings"

    def embed(self, rows: Sequence[Sequence[int]], weights_BT: Vectors, experts: Sequence[str]) -> Vectors:
        """Vectors [B, d] of tokenised queries, each mixed of these experts by its weights."""
        if self.merge == "weights":
            return self._experts.embed(rows, weights_BT, experts)
        shares = Dispatch.of(weights_BT)
        alone_nT = np.eye(len(experts), dtype=np.float32)[shares.columns]
        return shares.mix(self._experts.embed([rows[row] for row in shares.rows], alone_nT, experts))

    def encode_queries(self, queries: Sequence[str], **_: Any) -> Vectors:
        """Route and embed queries: [B, d] float32. Only experts whose weight matters are run."""
        rows = self.tokenize(list(queries))
        if not rows:
            return np.zeros((0, self.encoder.dimension), dtype=np.float32)
        return self.embed(rows, self.route(rows), self.router.experts)

    def encode_corpus(self, corpus: Sequence[Mapping[str, str]], **_: Any) -> Vectors:
        """Embed documents (``title``, ``text``) with the bare base: [N, d] float32."""
        documents = (Document("", document.get("title") or "", document["text"]) for document in corpus)
        return self.encoder.encode_documents([document.content for document in documents])

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, prompt_type: str | None = None, **_: Any
    ) -> Vectors:
        """Embed batches as mteb gives them: [N, d] float32; all but documents are taken for queries."""
        texts = [text for batch in inputs for text in batch["text"]]
        if prompt_type == "document":
            return self.encoder.encode_documents(texts)  # mteb has put the titles in front
        return self.encode_queries(texts)

    def similarity(self, ours: Any, theirs: Any) -> Vectors:
        """Scores of all queries with all documents. A product, since documents have their length already."""
        return np.atleast_2d(ours) @ np.atleast_2d(theirs).T

    def similarity_pairwise(self, ours: Any, theirs: Any) -> Vectors:
        """Scores of each query with the document at its place."""
        return np.einsum("bd,bd->b", np.atleast_2d(ours), np.atleast_2d(theirs))

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb files results under: the recipe's name, and a hash of the whole bundle."""
        from mteb.models.model_meta import ModelMeta

        name = f"routerretriever/{self.manifest['recipe']['name']}"
        return ModelMeta.create_empty({"name": name, "revision": content_hash(self.manifest)})


@dataclass(frozen=True)
class Dispatch:
    """The n encodings that vectors are mixed from: whose weights [B, T] are not zero."""

    rows: NDArray[np.int64]
    """Position of the query, for every encoding that is to be made."""
    columns: NDArray[np.int64]
    """Position of its expert."""
    weights: Vectors
    queries: int

    @classmethod
    def of(cls, weights_BT: Vectors) -> Dispatch:
        """What weights [B, T] ask for."""
        rows, columns = np.nonzero(weights_BT)
        return cls(rows, columns, weights_BT[rows, columns], len(weights_BT))

    def mix(self, vectors: Vectors) -> Vectors:
        """Weighted sums [B, d] of the encodings [n, d]."""
        mixed = np.zeros((self.queries, vectors.shape[1]), dtype=np.float32)
        np.add.at(mixed, self.rows, vectors * self.weights[:, None])
        return mixed


def expert_folder(bundle: Path, name: str) -> Path:
    """Where an expert's files lie in a bundle."""
    return bundle / "experts" / name


def bundle_encoder(bundle: Path, manifest: Mapping[str, Any]) -> EncoderSettings:
    """A bundle's base encoder; an adapter that is part of it lies in the bundle too."""
    settings = EncoderSettings.model_validate(manifest["encoder"])
    if settings.adapter is not None:
        settings = settings.model_copy(update={"adapter": str(bundle / settings.adapter)})
    return settings


def read_validation_queries(bundle: Path) -> dict[str, list[ValidationQuery]]:
    """The canary queries of each collection."""
    stored = json.loads((bundle / _CANARY_FILE).read_text(encoding="utf-8"))
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
    if manifest.get("format") != _FORMAT:
        raise BundleError(
            f"{folder}: a bundle of format {manifest.get('format')}, this version reads {_FORMAT}; "
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


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
