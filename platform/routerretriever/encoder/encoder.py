"""The frozen base encoder: texts to tokens, tokens to vectors.

Batches are sorted by token length and padded to their own longest text, never to the maximum.

Shapes: B texts, L tokens, d dimensions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from routerretriever.encoder.card import read_card, resolve_card, usable_positions
from routerretriever.encoder.compiled import MAX_ROWS, CompiledTower, rounded_length
from routerretriever.encoder.fake import HashingTokenizer, fake_model
from routerretriever.encoder.files import dtype_of, read_dense, read_model
from routerretriever.encoder.linear import FrozenLinear, InputHook, OutputHook
from routerretriever.encoder.pooling import mean_over_tokens
from routerretriever.encoder.settings import EncoderSettings, EngineSettings
from routerretriever.encoder.source import FAKE, encoder_folder
from routerretriever.encoder.tokens import TextReader, batches
from routerretriever.encoder.transformer import Tower, hidden_entering, transformer_layers
from routerretriever.errors import EncoderError
from routerretriever.runtime.cluster import granted_gpus
from routerretriever.types import Vectors

Features = Literal["embedding"] | int

log = logging.getLogger(__name__)

_CPU_PADDING = 64
"""Padding tokens in a batch above which another pass is cheaper, on a CPU: queries of 9 to 63 tokens, 32 at a
time, took 407 ms in one batch and 246 in batches with at most so much padding (MiniLM, one AVX2 thread)."""


class DocumentTokens(list[int]):
    """Token ids of a document. Another encoder may read it, or this one as exactly as it reads an index's."""


class Encoder:
    """Turns queries and documents into vectors, in one thread at a time.

    Adapters may be put beside it (and a graph compiled for them) in another thread meanwhile.
    """

    @classmethod
    def load(cls, settings: EncoderSettings) -> Self:
        """Load an encoder from its files onto its device, frozen.

        Raises:
            EncoderError: the files cannot be found, fetched or read.
        """
        card = read_card(settings)
        if settings.name == FAKE:
            return cls(card.settings, HashingTokenizer(), fake_model().to(dtype_of(settings)))
        tokenizer, model = read_model(encoder_folder(settings), settings)
        encoder = cls(card.settings, tokenizer, model, read_dense(card.dense))
        encoder.card = card
        if settings.documents:
            encoder._read_documents_by(Encoder.load(card.settings.for_documents()))
        return encoder

    def __init__(
        self, settings: EncoderSettings, tokenizer: Any, model: Any, dense: Sequence[nn.Module] = ()
    ) -> None:
        """Put an encoder together; ``load`` does so from files.

        Args:
            settings: how it is run; what is left open is as if its files said nothing.
            tokenizer: a Hugging Face tokenizer, or what is called like one.
            model: the transformer, in the precision in which it is to run.
            dense: sentence-transformers' Dense layers that follow pooling.

        Raises:
            EncoderError: a length is above the model's positions, or the device is not there.
        """
        self.card = resolve_card(settings)
        settings = self.settings = self.card.settings
        self.device = _pick_device(settings.device)
        if getattr(model, "pooler", None) is not None:
            # The pooler is not part of the tower; with it, "dense" adapters would train unused weights. Some
            # models call it unasked.
            model.pooler = nn.Identity()
        model = model.to(device=self.device).eval().requires_grad_(False)
        self.transformer = model
        self._documents: Encoder | None = None
        self._engine: EngineSettings | None = None
        self._compiled: CompiledTower | None = None
        self._dense: list[Any] = list(dense)
        if dense and self._dense[0].in_features != self.width:
            raise EncoderError(
                f"encoder.pooling: {settings.pooling} gives vectors {self.width} wide, and the Dense layer "
                f"of {settings.name} takes {self._dense[0].in_features}; name another encoder"
            )
        self._tower = Tower(model, settings.pooling, settings.similarity, dense)
        self.transformer_layers = transformer_layers(model)
        self.linear_layers: dict[str, nn.Linear] = {
            name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)
        }
        """The base's, by their names, which saved adapters use too."""
        self._frozen = {name: FrozenLinear(module) for name, module in self.linear_layers.items()}
        limit = self.positions = usable_positions(model.config.to_dict())
        """Tokens that the model can read, its prompt among them; None if there is no bound."""
        lengths = ["query_max_length"] if settings.documents else ["query_max_length", "document_max_length"]
        for field in lengths:
            if limit is not None and getattr(settings, field) > limit:
                raise EncoderError(
                    f"encoder.{field}: {getattr(settings, field)} is above the model's {limit} positions"
                )
        self._reader = TextReader(tokenizer, settings, limit)

    def _read_documents_by(self, other: Encoder) -> None:
        if other.dimension != self.dimension:
            raise EncoderError(
                f"encoder.documents: {other.settings.name} makes vectors {other.dimension} wide, "
                f"{self.settings.name} {self.dimension}; both must be of one space"
            )
        self._documents = other

    def use(self, engine: EngineSettings) -> None:
        """Run with an engine from now on: on weights that stay what they are, without adapters of one's own.

        Raises:
            EncoderError: the engine was named and cannot run this encoder.
        """
        if self._documents is not None:
            self._documents.use(engine)
        if engine.kind == "torch" or not self.linear_layers:
            return
        reason = None
        if self.device.type != "cpu" or self.settings.dtype != "fp32":
            reason = f"it runs on {self.device.type} in {self.settings.dtype}"
        elif not self.is_rowwise:
            reason = "its layers run on more than the rows of a batch"
        if reason is None:
            self._engine = engine
        elif engine.kind == "auto":
            log.info("the encoder runs in PyTorch: %s", reason)
        else:
            raise EncoderError(f"serving.engine: OpenVINO cannot run this encoder: {reason}")

    def compiled(self, layers: Sequence[str] = ()) -> CompiledTower | None:
        """The compiled tower, with room for updates of these layers; None if PyTorch runs it.

        Raises:
            EncoderError: the engine was named and cannot run this encoder.
        """
        if self._engine is None:
            return None
        if self._compiled is None or (layers and self._compiled.layers != tuple(layers)):
            try:
                self._compiled = CompiledTower(self, layers, self._engine)
            except EncoderError as error:
                if self._engine.kind != "auto":
                    raise
                log.info("the encoder runs in PyTorch: %s", error)
                self._engine = self._compiled = None
        return self._compiled

    @property
    def parts(self) -> tuple[Any, Any, list[Any]]:
        """Tokenizer, transformer and Dense layers."""
        return self._reader.tokenizer, self.transformer, self._dense

    @property
    def dimension(self) -> int:
        """Width d of every vector."""
        return int(self._dense[-1].out_features) if self._dense else self.width

    @property
    def dimensions(self) -> tuple[int, ...]:
        """Widths that a vector can have, its own first."""
        smaller = self.settings.matryoshka_dimensions or ()
        return (self.dimension, *sorted((width for width in smaller if width < self.dimension), reverse=True))

    def cut(self, vector: Vectors, width: int) -> Vectors:
        """The first ``width`` values of a vector, of unit length again if similarity is cosine."""
        shorter = vector[:width]
        if width == len(vector) or self.settings.similarity != "cosine":
            return shorter
        return shorter / max(float(np.linalg.norm(shorter)), 1e-12)

    @property
    def width(self) -> int:
        """Width of the transformer's hidden states."""
        return int(self.transformer.config.get_text_config().hidden_size)

    @property
    def layers(self) -> int:
        """Number of transformer layers; routing features can be read before each."""
        return len(self.transformer_layers)

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """Embed documents: [B, d] float32, of unit length if similarity is cosine."""
        return self.embed_tokens(self.tokenize_documents(texts))

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Embed queries: [B, d] float32, of unit length if similarity is cosine."""
        return self.embed_tokens(self.tokenize_queries(texts))

    def routing_features(self, texts: Sequence[str], features: Features) -> Vectors:
        """What a router reads of each query; see ``token_features``."""
        return self.token_features(self.tokenize_queries(texts), features)

    def token_features(self, rows: Sequence[Sequence[int]], features: Features) -> Vectors:
        """What a router reads of tokenised queries: [B, d] float32.

        ``embedding`` is the encoder's own query vector. A number n is the mean over tokens of the hidden
        state that enters transformer layer n, at unit length, so 0 runs no layer at all.

        Raises:
            EncoderError: the base has no such layer.
        """
        if features == "embedding":
            return self.embed_tokens(rows)
        # Static embeddings have no layer, and what would enter the first is what they give.
        if not 0 <= features < max(1, self.layers):
            raise EncoderError(
                f"routing.features: layer {features} of {self.layers}; "
                f"use 0 to {max(1, self.layers) - 1}, or 'embedding'"
            )

        def early(input_ids: Tensor, attention_mask: Tensor, _: list[int]) -> Tensor:
            if features == 0 and self._embeddings is not None:
                hidden = self._embeddings(input_ids)
            else:
                layer = self.transformer_layers[features]
                hidden = hidden_entering(layer, self._tower.model, input_ids, attention_mask)
            hidden = hidden[:, : attention_mask.shape[1]]  # Longformer pads to its window
            told = attention_mask
            if self._reader.prompt_tokens:  # all queries have it: it says nothing about any of them
                told = attention_mask.clone()
                told[:, self._reader.prompt] = 0
            return F.normalize(mean_over_tokens(hidden, told), dim=-1)

        return self.embed_tokens(rows, early, padding_is_free=features == 0)

    @cached_property
    def _embeddings(self) -> nn.Module | None:
        """What makes the states that enter the first layer, if it can be called by itself; else None."""
        module = getattr(self.transformer, "embeddings", None)
        if not isinstance(module, nn.Module):
            return None
        if not self.transformer_layers:
            return module
        ids = torch.tensor([self.tokenize_queries([""])[0]], device=self.device)
        try:
            alone = module(ids)
        except Exception:  # it wants more than token ids, and says so in its own way
            return None
        if not isinstance(alone, Tensor):
            return None
        expected = hidden_entering(self.transformer_layers[0], self.transformer, ids, torch.ones_like(ids))
        return module if alone.shape == expected.shape and torch.equal(alone, expected) else None

    @property
    def tower(self) -> Tower:
        """The module that runs, and is trained: tokens in, pooled vectors out."""
        return self._tower

    def linear_names(self) -> list[str]:
        """Last names of the linear layers, each once: what a recipe can adapt."""
        return sorted({name.rpartition(".")[2] for name in self.linear_layers})

    def find_linear_layers(self, endings: Sequence[str], field: str) -> list[str]:
        """Names of the linear layers that are called so, or whose names end so.

        Raises:
            EncoderError: there are none for one of the endings; it names those that there are.
        """
        found: dict[str, None] = {}
        for ending in endings:
            own = [name for name in self.linear_layers if f".{name}".endswith(f".{ending}")]
            if not own:
                raise EncoderError(
                    f"{field}: the encoder has no linear layer named {ending!r}; there are "
                    f"{', '.join(self.linear_names())}"
                )
            found |= dict.fromkeys(own)
        return list(found)

    @cached_property
    def is_rowwise(self) -> bool:
        """Whether all linear layers see a batch's rows, and nothing else. DeBERTa's also run on positions."""
        seen: set[int] = set()
        ids, mask = self.pad(self.tokenize_queries(["a"] * 3, 16))

        def look(values: Tensor) -> Tensor:
            seen.add(len(values))
            return values

        hooks = dict.fromkeys(self.linear_layers, look)
        with torch.inference_mode(), self.hooked(inputs=hooks):
            self.transformer(input_ids=ids, attention_mask=mask)
        return seen <= {len(ids)}

    @contextmanager
    def hooked(
        self, outputs: Mapping[str, OutputHook] | None = None, inputs: Mapping[str, InputHook] | None = None
    ) -> Iterator[None]:
        """Within, this thread has the linear layers that are named change their outputs or inputs."""
        outputs, inputs = outputs or {}, inputs or {}
        for name, output_hook in outputs.items():
            self._frozen[name].hooks.output = output_hook
        for name, input_hook in inputs.items():
            self._frozen[name].hooks.input = input_hook
        try:
            yield
        finally:
            for name in outputs:
                self._frozen[name].hooks.output = None
            for name in inputs:
                self._frozen[name].hooks.input = None

    def tokenize_queries(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Token ids of each query, unpadded."""
        return self._reader.queries(texts, max_length)

    def tokenize_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each document, unpadded."""
        reader = self if self._documents is None else self._documents
        return [DocumentTokens(row) for row in reader._reader.documents(texts)]

    def limit(self, documents: bool) -> int:
        """Tokens that are read of a query or a document, its prompt among them."""
        if documents and self._documents is not None:
            return self._documents.limit(documents)
        return self._reader.limit(documents)

    def are_cut(self, texts: Sequence[str], rows: Sequence[Sequence[int]], documents: bool) -> list[bool]:
        """Which texts are longer than what is read of them.

        Args:
            texts: queries or documents.
            rows: their token ids, as they are read.
            documents: whether they are documents.
        """
        reader = self._documents if documents and self._documents is not None else self
        return reader._reader.are_cut(texts, rows, documents)

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token ids [B, L] and attention mask [B, L] on the encoder's device."""
        if self.transformer_layers and not all(rows):  # some tokenizers add nothing to an empty text
            rows = [row or [self._reader.pad_token] for row in rows]
        longest = max(map(len, rows))
        if self._engine is not None:
            longest = rounded_length(longest, len(rows), self.positions)
        if len(rows) == 1 and longest == len(rows[0]):  # nothing to pad, and a lone query feels every step
            alone = torch.tensor(rows, dtype=torch.long, device=self.device)
            return alone, torch.ones_like(alone)
        lengths = np.array([len(row) for row in rows])
        mask = np.arange(longest) < lengths[:, None]
        ids = np.full(mask.shape, self._reader.pad_token, dtype=np.int64)
        ids[mask] = np.concatenate(rows)
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).long().to(self.device)

    def embed_tokens(
        self,
        rows: Sequence[Sequence[int]],
        embed: Callable[[Tensor, Tensor, list[int]], Tensor] | None = None,
        padding_is_free: bool = False,
    ) -> Vectors:
        """Run tokenised texts through the tower in batches of like length: [B, d] float32.

        Args:
            rows: token ids of each text.
            embed: replaces the tower: gets token ids [b, L], mask [b, L] and the batch's positions in
                ``rows``, and returns vectors [b, d].
            padding_is_free: no transformer layer is run, so texts of any length go together.
        """
        vectors: Vectors | None = None
        if self._reads_documents_apart:
            documents = [place for place, row in enumerate(rows) if isinstance(row, DocumentTokens)]
            if documents:
                return self._embed_both(rows, documents, embed)
        if self._tower.training:  # asked first, since telling every module takes a millisecond
            self._tower.eval()
        limit = self._most_padding
        graph = self.compiled()
        run, most = (self._tower, math.inf) if graph is None else (graph.base, MAX_ROWS)
        if padding_is_free:
            limit = most = math.inf
        with torch.inference_mode():
            for batch in batches(rows, min(most, self.settings.batch_size), limit):
                ids, mask = self.pad([rows[row] for row in batch])
                made = run(ids, mask) if embed is None else embed(ids, mask, batch)
                if vectors is None:
                    vectors = np.zeros((len(rows), made.shape[1]), dtype=np.float32)
                vectors[batch] = made.float().cpu().numpy()
        return np.zeros((0, self.dimension), dtype=np.float32) if vectors is None else vectors

    def embed_with_gradients(self, rows: Sequence[Sequence[int]], tower: nn.Module) -> Tensor:
        """Run tokenised texts through the tower in training, in batches of like length: [B, d].

        Args:
            rows: token ids of each text.
            tower: this encoder's, or what wraps it for several workers.
        """
        parts = list(batches(rows, len(rows), self._most_padding))
        vectors = torch.cat([tower(*self.pad([rows[row] for row in part])) for part in parts])
        return vectors[np.argsort(np.concatenate(parts))]

    @property
    def _reads_documents_apart(self) -> bool:
        """An index holds exact vectors, so documents that are added to it must be exact too."""
        return self._documents is not None or (self._engine is not None and self._engine.precision != "fp32")

    @property
    def _most_padding(self) -> float:
        """Padding tokens that a batch may have."""
        return _CPU_PADDING if self.device.type == "cpu" else math.inf

    def _embed_both(
        self,
        rows: Sequence[Sequence[int]],
        documents: list[int],
        embed: Callable[[Tensor, Tensor, list[int]], Tensor] | None,
    ) -> Vectors:
        """Documents by the encoder that reads them, or uncompiled; the others here."""
        assert embed is None, "only queries are embedded by anything but the base"
        vectors = np.empty((len(rows), self.dimension), dtype=np.float32)
        contents = [rows[place] for place in documents]
        if self._documents is not None:
            vectors[documents] = self._documents.embed_tokens(contents)
        else:
            plain = [list(content) for content in contents]
            vectors[documents] = self.embed_tokens(plain, lambda ids, mask, _: self._tower(ids, mask))
        queries = sorted(set(range(len(rows))) - set(documents))
        if queries:
            vectors[queries] = self.embed_tokens([rows[place] for place in queries])
        return vectors


def _pick_device(wanted: str) -> torch.device:
    if wanted != "cpu" and not torch.cuda.is_available():
        if granted := granted_gpus():
            raise EncoderError(
                f"encoder.device: Ray gave this worker GPU {', '.join(granted)}, which torch "
                f"{torch.__version__} cannot use; install a CUDA build of torch that fits the driver on "
                "every machine, or set gpus_per_worker (of a service: gpus) to 0"
            )
        if wanted == "cuda":
            raise EncoderError("encoder.device: cuda was asked for and no GPU is visible to this process")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)
