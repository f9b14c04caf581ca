"""``RouterRetriever``, the public model: a bundle that routes and embeds. Knows no MLflow."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from routerretriever.bundle.manifest import (
    bundle_encoder,
    expert_folder,
    read_fusion_weights,
    read_manifest,
    read_validation_queries,
)
from routerretriever.datasets.collection import Document
from routerretriever.errors import BundleError
from routerretriever.hashing import content_hash
from routerretriever.index.settings import FusionSettings
from routerretriever.routing.saving import load_router
from routerretriever.runtime.progress import track
from routerretriever.types import Vectors, as_list

if TYPE_CHECKING:
    from routerretriever.adapters.tower import QueryTower
    from routerretriever.encoder.settings import EngineSettings

log = logging.getLogger(__name__)

_REGISTRY = "routerretriever.registry.loading"
"""Resolves ``models:/`` URIs."""
_TEXTS_AT_ONCE = 1000
"""Between two moves of a progress bar."""


class RouterRetriever:
    """A loaded bundle: encodes each query by the expert, or the mixture of experts, that suits it.

    Has the methods that beir's ``DenseRetrievalExactSearch`` asks of a model, those of mteb's
    ``EncoderProtocol``, and sentence-transformers' for encoding; none of them is needed to load it.
    """

    def __init__(
        self,
        folder: Path,
        encoder: QueryTower | None = None,
        load_experts: bool = True,
        engine: EngineSettings | None = None,
    ) -> None:
        """Load and check a bundle's folder.

        Args:
            folder: the bundle's files.
            encoder: the base encoder, if it is loaded already; several bundles may share it.
            load_experts: without, the bundle routes but can embed only as the base.
            engine: what runs the encoder, if it is loaded here; by default PyTorch.

        Raises:
            BundleError: a file is missing or altered, or the base encoder here is not the bundle's.
        """
        from routerretriever.adapters.kinds import batch_adapters
        from routerretriever.adapters.tower import load_tower

        self.manifest = read_manifest(folder)
        self.settings = bundle_encoder(folder, self.manifest)
        self.router = load_router(folder / "router")
        self.fusion = read_fusion_weights(folder, self.manifest)
        """How much BM25 counts beside the vectors; None if it was not learned."""
        validation = read_validation_queries(folder)
        self.examples = {name: [query.query for query in queries] for name, queries in validation.items()}
        """Some dev queries of each collection that has an expert."""
        if encoder is None:
            encoder = load_tower(self.settings)
            if engine is not None:
                encoder.use(engine)
        self.encoder = encoder
        folders = {
            pin["name"]: expert_folder(folder, pin.get("folder", pin["name"]))
            for pin in self.manifest["experts"]
        }
        self._experts = batch_adapters(self.encoder, folders if load_experts else {})
        if self.merge not in self._experts.merges:
            raise BundleError(f"{folder}: experts of this kind cannot be merged by their {self.merge}")

    @classmethod
    def load(cls, uri: str, tracking_uri: str | None = None) -> RouterRetriever:
        """Load a bundle from a folder, or from MLflow: ``models:/<name>@<alias>`` or ``models:/<name>/1``.

        Raises:
            NotFound: the registry has no such version.
            BundleError: the bundle is damaged, or the base encoder here is not its own.
        """
        # By name: the registry lies above this room, and a folder can be loaded without MLflow.
        if not uri.startswith("models:/"):
            return cls(Path(uri))
        loaded: RouterRetriever = import_module(_REGISTRY).load(uri, tracking_uri)
        return loaded

    @property
    def experts(self) -> list[str]:
        """Names of the experts."""
        return [expert["name"] for expert in self.manifest["experts"]]

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each query, which ``route`` and ``embed`` both read."""
        return self.encoder.tokenize_queries(as_list(texts))

    def route(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """Weights [B, T] over ``self.router.experts`` for tokenised queries."""
        return self.router.weights(self.features(rows))

    def features(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """What the router reads of tokenised queries: [B, d]."""
        return self.encoder.token_features(rows, self.manifest["features"])

    def fusion_weights(
        self, weights_BT: Vectors, domains: Sequence[str], collection: str | None = None
    ) -> NDArray[np.float64]:
        """Weights of BM25 [B] for routed queries.

        Args:
            weights_BT: what ``route`` gave: how likely each query is of each domain.
            domains: the T experts that these are of, ``router.experts``.
            collection: what is searched, if it is one. Its own dev queries decide, if there are any.
        """
        if self.fusion is None:
            return np.full(len(weights_BT), FusionSettings().prior)
        return self.fusion.of_queries(weights_BT, domains, collection)

    @cached_property
    def merge(self) -> str:
        """What is merged: ``routing.merge``. Bundles older than that setting merge embeddings."""
        if "merge" in self.manifest:
            return str(self.manifest["merge"])
        if "mix" in self.manifest:
            log.warning("a bundle's mix is now merge; the next release reads the new key only, so register "
                        "the bundle of recipe %r again", self.manifest["recipe"].get("name"))  # fmt: skip
        # Prefixes never merged weights: an old bundle of them has all weight on one expert.
        old = "weights" if self.manifest.get("mix") == "adapters" else "embeddings"
        return old if old in self._experts.merges else "embeddings"

    def embed(self, rows: Sequence[Sequence[int]], weights_BT: Vectors, experts: Sequence[str]) -> Vectors:
        """Vectors [B, d] of tokenised queries, each mixed of these experts by its weights."""
        if self.merge == "weights":
            return self._experts.embed(rows, weights_BT, experts)
        shares = Dispatch.of(weights_BT)
        alone_nT = np.eye(len(experts), dtype=np.float32)[shares.columns]
        return shares.mix(self._experts.embed([rows[row] for row in shares.rows], alone_nT, experts))

    def encode_queries(self, queries: Sequence[str], **_: Any) -> Vectors:
        """Route and embed queries: [B, d] float32. Only experts whose weight matters are run."""
        rows = self.tokenize(queries)
        if not rows:
            return np.zeros((0, self.encoder.dimension), dtype=np.float32)
        return self.embed(rows, self.route(rows), self.router.experts)

    def encode_corpus(self, corpus: Sequence[Mapping[str, str]], **_: Any) -> Vectors:
        """Embed documents (``title``, ``text``) with the bare base: [N, d] float32."""
        documents = (Document("", document.get("title") or "", document["text"]) for document in corpus)
        return self.encoder.encode_documents([document.content for document in documents])

    def encode(
        self,
        inputs: str | Iterable[str | Mapping[str, Any]],
        *,
        prompt_type: str | None = None,
        show_progress_bar: bool = False,
        normalize_embeddings: bool = False,
        convert_to_tensor: bool = False,
        **_: Any,
    ) -> Any:
        """Embed texts, or mteb's batches: [N, d] float32, or [d] for one text that is no list.

        Takes what sentence-transformers' ``encode`` and mteb pass. How many texts are run together is found
        from their lengths, so ``batch_size`` has no effect; nor has any option that is not listed.

        Args:
            inputs: one text, several, or mappings that have several under ``text``.
            prompt_type: ``"document"`` embeds documents; all else is taken for queries.
            show_progress_bar: show how many texts are done.
            normalize_embeddings: give all vectors unit length. Mixtures of experts are shorter, and vectors
                of an encoder for dot products have their own.
            convert_to_tensor: give a torch tensor instead of a numpy array.
        """
        texts = list(_texts([inputs] if isinstance(inputs, str) else inputs))
        # mteb has put the titles in front
        embed = self.encoder.encode_documents if prompt_type == "document" else self.encode_queries
        parts: Iterable[list[str]] = (
            texts[first : first + _TEXTS_AT_ONCE] for first in range(0, len(texts), _TEXTS_AT_ONCE)
        )
        if show_progress_bar:
            parts = track(parts, f"encoding {len(texts)} texts", -(-len(texts) // _TEXTS_AT_ONCE))
        vectors = np.concatenate([np.zeros((0, self.encoder.dimension), np.float32), *map(embed, parts)])
        if normalize_embeddings:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        shaped = vectors[0] if isinstance(inputs, str) else vectors
        if convert_to_tensor:
            import torch

            return torch.from_numpy(shaped)
        return shaped

    def encode_query(self, inputs: str | Sequence[str], **options: Any) -> Any:
        """Route and embed queries; ``encode`` says what comes back and which options there are."""
        return self.encode(inputs, **options, prompt_type="query")

    def encode_document(self, inputs: str | Sequence[str], **options: Any) -> Any:
        """Embed documents with the bare base; put a title in front of its text yourself."""
        return self.encode(inputs, **options, prompt_type="document")

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


def _texts(inputs: Iterable[str | Mapping[str, Any]]) -> Iterator[str]:
    for each in inputs:
        if isinstance(each, str):
            yield each
        else:
            yield from each["text"]


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
