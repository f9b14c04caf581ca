"""The base encoder with any number of adapters, LoRAs or prefixes, on its query tower.

Documents are always embedded by the base alone, so one set of document embeddings serves every expert. The
base may have a general prefix, which is then part of it, for queries and documents alike.
Batches are sorted by token length and padded to their own longest text, never to the maximum.

Shapes: B texts, L tokens, d dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from routerretriever.adapters.prefix_attention import Mixture, PrefixAttention, Prefixes
from routerretriever.adapters.prefix_shape import PrefixShape, View
from routerretriever.adapters.settings import LoraSettings, PrefixSettings
from routerretriever.encoder.fake import HashingTokenizer, fake_model
from routerretriever.encoder.linear import Add, FrozenLinear
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.encoder.source import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    FAKE,
    encoder_folder,
    general_prefix_folder,
)
from routerretriever.errors import EncoderError
from routerretriever.types import BASE

Features = Literal["embedding"] | int
Vectors = NDArray[np.float32]

_PREFIX_SPREAD = 0.02
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CPU_PADDING = 64
"""Padding tokens in a batch above which another pass is cheaper, on a CPU: queries of 9 to 63 tokens, 32 at a
time, took 407 ms in one batch and 246 in batches with at most so much padding (MiniLM, one AVX2 thread)."""
_PEFT_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)


def load_encoder(settings: EncoderSettings) -> Encoder:
    """Load the base encoder onto its device, frozen.

    Raises:
        EncoderError: the files cannot be found, fetched or read.
    """
    encoder = _load(settings)
    if settings.general_prefix is not None:
        encoder.load_general_prefix(general_prefix_folder(settings.general_prefix))
    return encoder


def _load(settings: EncoderSettings) -> Encoder:
    if settings.name == FAKE:
        return Encoder(settings, HashingTokenizer(), fake_model())
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = encoder_folder(settings)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise EncoderError(f"encoder.name: {folder} cannot be loaded as a text encoder: {error}") from error
    return Encoder(settings, tokenizer, model)


class Encoder:
    """Turns queries and documents into vectors, as the bare base or as one of its experts.

    Not thread-safe: the active adapter is a property of the model.
    """

    def __init__(self, settings: EncoderSettings, tokenizer: Any, model: Any) -> None:
        self.settings = settings
        self.device = _pick_device(settings.device)
        self._tokenizer = tokenizer
        if getattr(model, "pooler", None) is not None:
            # The pooler is not part of the tower; with it, "dense" adapters would train unused weights.
            model.pooler = None
        model = model.to(device=self.device, dtype=_DTYPES[settings.dtype]).eval().requires_grad_(False)
        self._model = model
        self._tower = Tower(model, settings.pooling, settings.similarity)
        self._layers = _transformer_layers(model)
        self.linear_layers: dict[str, nn.Linear] = {
            name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)
        }
        """The base's, by their names, which saved LoRAs use too."""
        self._frozen = {name: FrozenLinear(module) for name, module in self.linear_layers.items()}
        limit = getattr(model.config, "max_position_embeddings", None)
        for field in ("query_max_length", "document_max_length"):
            if limit is not None and getattr(settings, field) > limit:
                raise EncoderError(
                    f"encoder.{field}: {getattr(settings, field)} is above the model's {limit} positions"
                )

    @property
    def dimension(self) -> int:
        """Width d of every vector."""
        return int(self._tower.model.config.hidden_size)

    @property
    def layers(self) -> int:
        """Number of transformer layers; routing features can be read before each."""
        return len(self._layers)

    @property
    def adapters(self) -> list[str]:
        """Names of the loaded adapters."""
        prefixes = [] if self._tower.prefixes is None else list(self._tower.prefixes.adapters)
        return [*self._loras, *prefixes]

    @property
    def _loras(self) -> list[str]:
        return list(getattr(self._tower.model, "peft_config", {}))

    def encode_documents(self, texts: Sequence[str], adapter: str = BASE) -> Vectors:
        """Embed documents, with the base unless a general prefix is being made: [B, d] float32.

        Unit length if similarity is cosine.
        """
        with self._active(adapter):
            return self.embed_tokens(self.tokenize_documents(texts))

    def encode_queries(self, texts: Sequence[str], adapter: str = BASE) -> Vectors:
        """Embed queries as one expert, or as the bare base: [B, d] float32.

        Raises:
            EncoderError: no such adapter is loaded.
        """
        rows = self.tokenize_queries(texts)
        with self._active(adapter):
            return self.embed_tokens(rows)

    def routing_features(self, texts: Sequence[str], features: Features) -> Vectors:
        """What a router reads of each query; see ``token_features``."""
        return self.token_features(self.tokenize_queries(texts), features)

    def token_features(self, rows: Sequence[Sequence[int]], features: Features) -> Vectors:
        """What a router reads of tokenised queries, from the bare base: [B, d] float32.

        ``embedding`` is the base's own query vector. A number n is the mean over tokens of the hidden state
        that enters transformer layer n, at unit length, so 0 runs no layer at all.

        Raises:
            EncoderError: the base has no such layer.
        """
        if features == "embedding":
            with self._active(BASE):
                return self.embed_tokens(rows)
        if not 0 <= features < len(self._layers):
            raise EncoderError(
                f"routing.features: layer {features} of {len(self._layers)}; "
                f"use 0 to {len(self._layers) - 1}, or 'embedding'"
            )
        layer = self._layers[features]

        def early(input_ids: Tensor, attention_mask: Tensor, _: list[int]) -> Tensor:
            if self._tower.prefixes is not None:
                self._tower.prefixes.padding_BL = attention_mask
            if features == 0 and self._embeddings is not None:
                hidden = self._embeddings(input_ids)
            else:
                hidden = _hidden_entering(layer, self._tower.model, input_ids, attention_mask)
            return F.normalize(_mean_over_tokens(hidden, attention_mask), dim=-1)

        with self._active(BASE):
            return self.embed_tokens(rows, early, padding_is_free=features == 0)

    @cached_property
    def _embeddings(self) -> nn.Module | None:
        """What makes the states that enter the first layer, if it can be called by itself; else None."""
        module = getattr(self._model, "embeddings", None)
        if not isinstance(module, nn.Module):
            return None
        ids = torch.tensor([self.tokenize_queries([""])[0]], device=self.device)
        try:
            alone = module(ids)
        except TypeError:
            return None  # it wants more than token ids
        expected = _hidden_entering(self._layers[0], self._model, ids, torch.ones_like(ids))
        return module if alone.shape == expected.shape and torch.equal(alone, expected) else None

    def add_adapter(
        self,
        name: str,
        settings: LoraSettings | PrefixSettings,
        modules: Sequence[str] = (),
    ) -> None:
        """Add a fresh, trainable adapter, which the tower runs with from now on.

        A LoRA starts as the base: its B matrices are zero. So does a prefix that is added to a general one.
        A prefix by itself starts near it, with keys and values close to zero.

        Args:
            name: what it is called.
            settings: its kind and size.
            modules: prefixes only: names of several modules, which a router in each layer will weigh.

        Raises:
            EncoderError: a target module or a layer is not in the model, or it takes no prefix.
        """
        if isinstance(settings, PrefixSettings):
            self._add_prefix(name, settings, modules)
        else:
            self._add_lora(name, settings)

    def _add_prefix(self, name: str, settings: PrefixSettings, modules: Sequence[str]) -> None:
        attention = self._prefix_attention()
        layers = tuple(range(self.layers)) if settings.layers is None else settings.layers
        shape = PrefixShape(settings.length, layers, self.dimension, tuple(modules) or (name,), bool(modules))
        self._require_fit(name, shape)
        made = Prefixes(shape).to(self.device)
        if attention.general is None:
            # Keys that nothing asks for and values that add nothing disturb least; were they all alike, they
            # would stay so.
            made.keys_and_values.data.normal_(std=_PREFIX_SPREAD)
        attention.adapters[name] = made
        attention.use(made)

    def read_prefixes(self, name: str, folder: Path) -> Prefixes:
        """Read a saved prefix, frozen, and check that it can be run with this base.

        Raises:
            EncoderError: files are missing, of another kind, or made for another base.
        """
        shape = PrefixShape.read(name, folder)
        if shape is None:
            raise EncoderError(f"expert {name!r}: {folder} holds no prefix")
        self._require_fit(name, shape)
        return Prefixes.load(name, folder, shape).to(self.device).requires_grad_(False)

    def _require_fit(self, name: str, shape: PrefixShape) -> None:
        if shape.width != self.dimension or max(shape.layers) >= self.layers:
            raise EncoderError(
                f"expert {name!r}: a prefix {shape.width} wide for layers up to {max(shape.layers)} does not "
                f"fit this base encoder, of {self.layers} layers (from 0), {self.dimension} wide"
            )
        general = None if self._tower.prefixes is None else self._tower.prefixes.general
        if general is not None and general.shape.length != shape.length:
            raise EncoderError(
                f"expert {name!r}: its prefix has {shape.length} tokens, the general prefix under it "
                f"{general.shape.length}; they are added, so both need the same"
            )

    def load_general_prefix(self, folder: Path) -> None:
        """Make a prefix part of the base, for queries and documents.

        Raises:
            EncoderError: files are missing, of another kind, or made for another base.
        """
        self._prefix_attention().general = self.read_prefixes("general prefix", folder)

    def prefixed(self, prefixes: Prefixes, mixture: Mixture) -> AbstractContextManager[None]:
        """Within, the tower runs each row of a batch with its own mixture of prefixes."""
        return self._prefix_attention().using(prefixes, mixture)

    def run_with(self, prefixes: Prefixes) -> None:
        """From now on, the tower runs with a prefix."""
        self._prefix_attention().use(prefixes)

    def restrict(self, name: str, modules: Sequence[str]) -> None:
        """From now on, the tower runs with an adapter that is a prefix, and with these of its modules."""
        attention = self._prefix_attention()
        prefixes: Prefixes = attention.adapters[name]  # type: ignore[assignment]
        attention.use(prefixes, prefixes.mixture(View(tuple(modules), len(prefixes.shape.modules))))

    def _prefix_attention(self) -> PrefixAttention:
        if self._tower.prefixes is None:
            self._tower.prefixes = PrefixAttention(self._model, self._layers)
        return self._tower.prefixes

    def _add_lora(self, name: str, lora: LoraSettings) -> None:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=list(lora.target_modules),
        )
        known = {path.rsplit(".", 1)[-1] for path, _ in self._tower.model.named_modules()}
        for module in lora.target_modules:
            if module.rsplit(".", 1)[-1] not in known:
                raise EncoderError(
                    f"training.lora.target_modules: the encoder has no module named {module!r}"
                )
        if self._loras:
            self._tower.model.add_adapter(name, config)
        else:
            self._tower.model = get_peft_model(self._tower.model, config, adapter_name=name)
        self._tower.model.set_adapter(name)
        self._tower.eval()  # or what PEFT put in would drop out

    def load_adapter(self, name: str, folder: Path) -> None:
        """Load a saved adapter for inference under a name; a loaded one of that name is replaced.

        Raises:
            EncoderError: files are missing or made for another architecture.
        """
        if PrefixShape.read(name, folder) is not None:
            self._prefix_attention().adapters[name] = self.read_prefixes(name, folder)
            return
        from peft import PeftModel

        if name in self._loras and len(self._loras) > 1:
            self._tower.model.delete_adapter(name)
        elif name in self._loras:
            self._tower.model = self._tower.model.unload()
        try:
            if self._loras:
                self._tower.model.load_adapter(str(folder), adapter_name=name, torch_device=str(self.device))
            else:
                model = PeftModel.from_pretrained(
                    self._tower.model, str(folder), adapter_name=name, torch_device=str(self.device)
                )
                self._tower.model = model
        except (RuntimeError, ValueError, KeyError) as error:
            raise EncoderError(
                f"expert {name!r}: {folder} does not fit this base encoder: {error}"
            ) from error
        self._tower.model.eval().requires_grad_(False)

    def save_adapter(self, name: str, folder: Path) -> None:
        """Write ``adapter_model.safetensors`` and ``adapter_config.json``; a LoRA in PEFT's own format."""
        if self._tower.prefixes is not None and name in self._tower.prefixes.adapters:
            self._tower.prefixes.adapters[name].save(folder)  # type: ignore[operator]
            return
        import shutil
        import tempfile

        with tempfile.TemporaryDirectory() as scratch:
            self._tower.model.save_pretrained(scratch, selected_adapters=[name])
            nested = Path(scratch) / name
            source = nested if nested.is_dir() else Path(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            for file in _PEFT_FILES:
                shutil.copyfile(source / file, folder / file)

    @property
    def tower(self) -> Tower:
        """The module to train: tokens in, pooled vectors out, gradients through the active adapter only."""
        return self._tower

    @contextmanager
    def adding(self, to: Mapping[str, Add]) -> Iterator[None]:
        """Within, each linear layer that is named has something added to its output."""
        for name, add in to.items():
            self._frozen[name].add = add
        try:
            yield
        finally:
            for name in to:
                self._frozen[name].add = None

    def tokenize_queries(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Token ids of each query, unpadded."""
        return self._tokenize(self._prompted(texts), max_length or self.settings.query_max_length)

    def tokenize_documents(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Token ids of each document, unpadded."""
        prompted = [self.settings.document_prompt + text for text in texts]
        return self._tokenize(prompted, max_length or self.settings.document_max_length)

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token ids [B, L] and attention mask [B, L] on the encoder's device."""
        if len(rows) == 1:  # nothing to pad, and a lone query feels every step
            alone = torch.tensor(rows, dtype=torch.long, device=self.device)
            return alone, torch.ones_like(alone)
        lengths = np.array([len(row) for row in rows])
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(mask.shape, self._tokenizer.pad_token_id or 0, dtype=np.int64)
        ids[mask] = np.concatenate(rows)
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).long().to(self.device)

    def _prompted(self, texts: Sequence[str]) -> list[str]:
        return [self.settings.query_prompt + text for text in texts]

    def _tokenize(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        if not texts:
            return []
        tokens = self._tokenizer(
            list(texts),
            truncation=True,
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return list(tokens["input_ids"])

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
        vectors = np.zeros((len(rows), self.dimension), dtype=np.float32)
        if self._tower.training:  # asked first, since telling every module takes a millisecond
            self._tower.eval()
        limit = _CPU_PADDING if self.device.type == "cpu" and not padding_is_free else math.inf
        with torch.inference_mode():
            for batch in self._batches(rows, limit):
                ids, mask = self.pad([rows[row] for row in batch])
                made = self._tower(ids, mask) if embed is None else embed(ids, mask, batch)
                vectors[batch] = made.float().cpu().numpy()
        return vectors

    def _batches(self, rows: Sequence[Sequence[int]], most_padding: float) -> Iterator[list[int]]:
        """Positions of texts to be run together, of like length."""
        # Longest first: a batch that does not fit in memory fails at the start, not after an hour.
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        batch: list[int] = []
        padding = 0
        for row in order:
            padding += len(rows[batch[0]]) - len(rows[row]) if batch else 0
            if batch and (len(batch) == self.settings.batch_size or padding > most_padding):
                yield batch
                batch, padding = [], 0
            batch.append(row)
        if batch:
            yield batch

    @contextmanager
    def _active(self, adapter: str) -> Iterator[None]:
        if adapter != BASE:
            self._require(adapter)
        with self._prefix_active(adapter):
            if adapter in self._loras:
                self._tower.model.set_adapter(adapter)
                yield
            elif self._loras:
                with self._tower.model.disable_adapter():
                    yield
            else:
                yield

    @contextmanager
    def _prefix_active(self, adapter: str) -> Iterator[None]:
        attention = self._tower.prefixes
        if attention is None:
            yield
        elif adapter not in attention.adapters:
            with attention.using(None):
                yield
        elif attention.adapters[adapter] is attention.active:
            yield  # as it is, with what it was restricted to
        else:
            prefixes: Prefixes = attention.adapters[adapter]  # type: ignore[assignment]
            with attention.using(prefixes, prefixes.mixture(prefixes.shape.view(adapter))):
                yield

    def _require(self, adapter: str) -> None:
        if adapter not in self.adapters:
            raise EncoderError(f"no adapter {adapter!r} is loaded; there are {self.adapters or 'none'}")


class Tower(nn.Module):
    """The transformer with its pooling: token ids [B, L] and mask [B, L] to vectors [B, d], in float32."""

    def __init__(self, model: Any, pooling: str, similarity: str) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.similarity = similarity
        self.prefixes: PrefixAttention | None = None
        """Set with the first prefix."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Pool the last hidden state; unit length if similarity is cosine."""
        if self.prefixes is not None:
            self.prefixes.padding_BL = attention_mask
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        pooled = hidden[:, 0].float() if self.pooling == "cls" else _mean_over_tokens(hidden, attention_mask)
        return F.normalize(pooled, dim=-1) if self.similarity == "cosine" else pooled


class _EarlyStop(Exception):
    """Carries the hidden state out of a forward pass that need not go on."""


def _hidden_entering(layer: nn.Module, model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    captured: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        captured.append(args[0] if args else kwargs["hidden_states"])
        raise _EarlyStop

    handle = layer.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(input_ids=input_ids, attention_mask=attention_mask)
    except _EarlyStop:
        return captured[0]
    finally:
        handle.remove()
    raise EncoderError("routing.features: this encoder does not run the layer it was asked to stop at")


def _mean_over_tokens(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    mask = attention_mask.unsqueeze(-1).float()
    return (hidden.float() * mask).sum(1) / mask.sum(1).clamp(min=1.0)


def _transformer_layers(model: Any) -> list[nn.Module]:
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(stacks, key=lambda stack: len(list(stack)), default=nn.ModuleList()))


def _pick_device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise EncoderError("encoder.device: cuda was asked for and no GPU is visible to this process")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)
