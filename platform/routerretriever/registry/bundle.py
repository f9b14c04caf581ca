"""The router bundle: pinned experts and a fitted router over one base encoder, in one folder.

Layout: ``bundle.json`` (base encoder and its fingerprint, experts with versions and file hashes, the
recipe, evaluation figures), ``router/``, and ``experts/<name>/`` with PEFT's files and the expert's card.
It needs nothing else but the base encoder's own weights.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routerretriever.config import BASE, EncoderSettings, Recipe, content_hash
from routerretriever.datasets import Document
from routerretriever.encoder import ADAPTER_WEIGHTS, encoder_fingerprint, load_encoder
from routerretriever.routing import Router, load_router, save_router
from routerretriever.storage import ArtifactStore
from routerretriever.training import Expert

Vectors = NDArray[np.float32]
MANIFEST_FILE = "bundle.json"


class BundleError(ValueError):
    """A bundle is damaged, or its parts do not fit together."""


def write_bundle(
    folder: Path,
    recipe: Recipe,
    router: Router,
    experts: Mapping[str, Expert],
    registered: Mapping[str, int],
    evaluation: Mapping[str, Any],
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
        store: where the experts lie.

    Raises:
        BundleError: an expert was trained on another base encoder, or the router knows one that is missing.
    """
    fingerprint = encoder_fingerprint(recipe.encoder)
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
        target = folder / "experts" / name
        shutil.copytree(expert.folder(store), target)
        pins.append(
            {
                "name": name,
                "version": expert.version,
                "registered_version": registered[name],
                "sha256": _sha256(target / ADAPTER_WEIGHTS),
            }
        )
    save_router(router, folder / "router")
    manifest = {
        "format": 1,
        "encoder": recipe.encoder.model_dump(),
        "encoder_fingerprint": fingerprint,
        "features": recipe.routing.features,
        "experts": pins,
        "recipe": recipe.model_dump(mode="json"),
        "evaluation": dict(evaluation),
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")


class RouterRetriever:
    """A loaded bundle: encodes each query by the expert, or the mixture of experts, that suits it.

    Has the methods that beir's ``DenseRetrievalExactSearch`` asks of a model, and those of mteb's
    ``EncoderProtocol``; neither package is needed to load it.
    """

    def __init__(self, folder: Path) -> None:
        """Load and check a bundle's folder.

        Raises:
            BundleError: a file is missing or altered, or the base encoder here is not the bundle's.
        """
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.settings = EncoderSettings.model_validate(self.manifest["encoder"])
        self.router = load_router(folder / "router")
        self._encoder = load_encoder(self.settings)
        for expert in self.manifest["experts"]:
            self._encoder.load_adapter(expert["name"], folder / "experts" / expert["name"])

    @classmethod
    def load(cls, uri: str, tracking_uri: str | None = None) -> RouterRetriever:
        """Load a bundle by ``models:/<name>@<alias>``, ``models:/<name>/<version>``, or from a folder."""
        from routerretriever.registry.mlflow_registry import fetch_bundle

        return cls(fetch_bundle(uri, tracking_uri))

    @property
    def experts(self) -> list[str]:
        """Names of the experts."""
        return [expert["name"] for expert in self.manifest["experts"]]

    def route(self, texts: Sequence[str]) -> Vectors:
        """Weights [B, T] over ``self.router.experts``."""
        return self.router.weights(self._encoder.routing_features(texts, self.manifest["features"]))

    def encode_queries(self, queries: Sequence[str], **_: Any) -> Vectors:
        """Route and embed queries: [B, d] float32. Only experts whose weight matters are run."""
        texts = list(queries)
        vectors = np.zeros((len(texts), self._encoder.dimension), dtype=np.float32)
        if not texts:
            return vectors
        weights_BT = self.route(texts)
        for column, name in enumerate(self.router.experts):
            rows = np.flatnonzero(weights_BT[:, column])
            if len(rows):
                own = self._encoder.encode_queries([texts[row] for row in rows], adapter=name)
                vectors[rows] += weights_BT[rows, column, None] * own
        return vectors

    def encode_corpus(self, corpus: Sequence[Mapping[str, str]], **_: Any) -> Vectors:
        """Embed documents (``title``, ``text``) with the bare base: [N, d] float32."""
        documents = (Document("", document.get("title") or "", document["text"]) for document in corpus)
        return self._encoder.encode_documents([document.content for document in documents])

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, prompt_type: str | None = None, **_: Any
    ) -> Vectors:
        """Embed batches as mteb gives them: [N, d] float32; all but documents are taken for queries."""
        texts = [text for batch in inputs for text in batch["text"]]
        if prompt_type == "document":
            return self._encoder.encode_documents(texts)  # mteb has put the titles in front
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


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a bundle's manifest and check its files.

    Raises:
        BundleError: a file is missing or altered, or the base encoder here is not the bundle's.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{folder}: no bundle here ({MANIFEST_FILE} is missing)") from None
    for expert in manifest["experts"]:
        weights = folder / "experts" / expert["name"] / ADAPTER_WEIGHTS
        if not weights.is_file():
            raise BundleError(f"{weights}: missing from the bundle; register it again")
        if _sha256(weights) != expert["sha256"]:
            raise BundleError(
                f"{weights}: altered since it was registered (hash mismatch); register it again"
            )
    settings = EncoderSettings.model_validate(manifest["encoder"])
    found = encoder_fingerprint(settings)
    if found != manifest["encoder_fingerprint"]:
        raise BundleError(
            f"the bundle needs base encoder {settings.name} with fingerprint "
            f"{manifest['encoder_fingerprint']}; the one found here has {found}"
        )
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
