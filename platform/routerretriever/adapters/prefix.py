"""Prefixes as experts: trained keys and values that a query's tokens also attend to.

``prefix_shape`` says what one consists of, ``prefix_attention`` computes with it.

Shapes: B queries, d dimensions, N modules, T experts named by a caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from routerretriever.adapters.base import AdapterKind, AdapterSettings, Merge
from routerretriever.adapters.prefix_shape import UNIFORM, PrefixShape, View
from routerretriever.errors import BadInput, EncoderError
from routerretriever.types import BASE, Vectors

if TYPE_CHECKING:
    from torch import Tensor

    from routerretriever.adapters.prefix_attention import PrefixAttention, Prefixes
    from routerretriever.encoder.encoder import Encoder

_SPREAD = 0.02


class PrefixSettings(AdapterSettings):
    """Trained keys and values for a query's tokens to attend to (prefix tuning).

    They want a far higher learning rate than a LoRA: on dev queries of the sample 0.03 did best.
    """

    kind: Literal["prefix"] = "prefix"
    """This kind of adapter."""
    length: PositiveInt = 16
    """Prefix tokens in each layer."""
    layers: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = None
    """Transformer layers that have a prefix; by default all."""

    @field_validator("layers")
    @classmethod
    def _each_once(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if layers and len(set(layers)) < len(layers):
            twice = next(layer for layer in layers if layers.count(layer) > 1)
            raise ValueError(f"names layer {twice} more than once; name each once")
        return layers


class Prefix(AdapterKind):
    """Prefixes do not add up as weight updates do, so mixtures are of embeddings only."""

    name = "prefix"
    settings = PrefixSettings
    merges = frozenset({"embeddings"})
    starts_as_base = False
    can_be_scaled = False

    def wrote(self, config: Mapping[str, Any]) -> bool:
        """Whether the settings are a prefix's."""
        return config.get("kind") == self.name

    def attach(self, encoder: Encoder, name: str, settings: Any, modules: Sequence[str] = ()) -> None:
        """Add a fresh prefix; with modules, a router in each layer will weigh them.

        Added to one that is part of the base it starts as nothing, by itself with keys and values near zero.
        See ``AdapterKind.attach``.
        """
        from routerretriever.adapters.prefix_attention import Prefixes

        attention = _attention(encoder)
        layers = tuple(range(encoder.layers)) if settings.layers is None else settings.layers
        shape = PrefixShape(settings.length, layers, encoder.width, tuple(modules) or (name,), bool(modules))
        _require_fit(encoder, name, shape)
        made = Prefixes(shape).to(encoder.device)
        if attention.general is None:
            # Keys that nothing asks for and values that add nothing disturb least; were they all alike, they
            # would stay so.
            made.keys_and_values.data.normal_(std=_SPREAD)
        attention.adapters[name] = made
        attention.use(made)

    def load(self, encoder: Encoder, name: str, folder: Path) -> None:
        """Load a saved prefix; see ``AdapterKind.load``."""
        _attention(encoder).adapters[name] = _read(encoder, name, folder)

    def save(self, encoder: Encoder, name: str, folder: Path) -> None:
        """Write its weights, and its shape as its settings."""
        _named(encoder, name).save(folder)

    def loaded(self, encoder: Encoder) -> list[str]:
        """Names of the prefixes that the encoder has."""
        attention = _attention_of(encoder)
        return [] if attention is None else list(attention.adapters)

    @contextmanager
    def active(self, encoder: Encoder, name: str) -> Iterator[None]:
        """Within, the tower runs with a prefix or without any; see ``AdapterKind.active``."""
        attention = _attention_of(encoder)
        if attention is None:
            yield
        elif name not in attention.adapters:
            with attention.using(None):
                yield
        elif attention.adapters[name] is attention.active:
            yield  # as it is, with what it was restricted to
        else:
            prefixes = _named(encoder, name)
            with attention.using(prefixes, prefixes.mixture(prefixes.shape.view(name))):
                yield

    def batch(self, encoder: Encoder, folders: Mapping[str, Path]) -> BatchedPrefixes:
        """Load experts to be run together; see ``AdapterKind.batch``."""
        return BatchedPrefixes(encoder, folders)

    def merge(self, encoder: Encoder, name: str, folder: Path) -> None:
        """Put a prefix under all that is encoded, and added to it later; see ``AdapterKind.merge``.

        On a base that has one already, it is run with that one from now on.
        """
        attention, prefixes = _attention(encoder), _read(encoder, name, folder)
        if attention.general is None and prefixes.router is None:
            attention.general = prefixes
        else:
            attention.use(prefixes, prefixes.mixture(prefixes.shape.view(name)))

    def restrict(self, encoder: Encoder, name: str, modules: Sequence[str]) -> None:
        """From now on, the tower runs with a prefix, and with these of its modules."""
        prefixes = _named(encoder, name)
        view = View(tuple(modules), len(prefixes.shape.modules))
        _attention(encoder).use(prefixes, prefixes.mixture(view))


class BatchedPrefixes:
    """Prefixes of a single module each, or views of one with routers, run together."""

    merges: frozenset[Merge] = Prefix.merges

    def __init__(self, encoder: Encoder, folders: Mapping[str, Path]) -> None:
        """Load prefixes.

        Args:
            encoder: the base, without adapters of its own.
            folders: where each expert's files are; experts that share a folder are views of one prefix.

        Raises:
            EncoderError: files are missing, of another kind, made for another architecture, or cannot be run
                together.
        """
        from routerretriever.adapters.prefix_attention import Prefixes

        self._encoder = encoder
        self._attention = _attention(encoder)
        loaded = {folder: _read(encoder, name, folder) for name, folder in folders.items()}
        first = next(iter(loaded.values()))
        if len(loaded) == 1:
            self._prefixes = first
            views = {name: first.shape.view(name) for name in folders}
        else:
            self._prefixes = Prefixes.stacked(dict(zip(folders, loaded.values(), strict=True)))
            views = {name: View((name,), UNIFORM) for name in folders}
        self._prefixes.to(encoder.device)
        views[BASE] = View((), UNIFORM)
        self._mixtures = {name: self._prefixes.mixture(view) for name, view in views.items()}

    @property
    def megabytes(self) -> float:
        """Memory of all experts' weights, in MB (10^6 bytes)."""
        return sum(weight.numel() * weight.element_size() for weight in self._prefixes.parameters()) / 1e6

    def embed(self, rows: Sequence[Sequence[int]], weights_BT: Vectors, experts: Sequence[str]) -> Vectors:
        """Vectors [B, d] float32 of tokenised queries, each by the one expert that has all its weight.

        See ``BatchedAdapters.embed``.
        """
        import torch

        from routerretriever.adapters.prefix_attention import Mixture

        own = [self._mixtures[name] for name in experts]
        columns_B = weights_BT.argmax(axis=1)
        mixed_B = weights_BT[np.arange(len(rows)), columns_B] != 1
        if mixed_B.any():
            row = int(mixed_B.argmax())
            found = ", ".join(
                f"{name} {w:.3g}" for name, w in zip(experts, weights_BT[row], strict=True) if w
            )
            raise BadInput(
                f"row {row} mixes the weights of several experts ({found}); prefixes can only be mixed by "
                "their embeddings: set routing.merge to 'embeddings'"
            )
        mixture = Mixture(
            torch.cat([own[column].shares_BN for column in columns_B]),
            torch.cat([own[column].top_k_B for column in columns_B]),
        )

        def embed(input_ids: Tensor, attention_mask: Tensor, batch: list[int]) -> Tensor:
            with self._attention.using(self._prefixes, mixture.rows(batch)):
                vectors: Tensor = self._encoder.tower(input_ids, attention_mask)
            return vectors

        return self._encoder.embed_tokens(rows, embed)


def _attention_of(encoder: Encoder) -> PrefixAttention | None:
    """What lets prefixes into an encoder; part of the tower, so that they are trained and checkpointed."""
    return getattr(encoder.tower, "prefixes", None)


def _attention(encoder: Encoder) -> PrefixAttention:
    from routerretriever.adapters.prefix_attention import PrefixAttention

    attention = _attention_of(encoder)
    if attention is None:
        config = encoder.transformer.config.get_text_config()
        heads, of_keys = (getattr(config, f"num_{kind}_heads", None) for kind in ("attention", "key_value"))
        if of_keys not in (None, heads):
            raise EncoderError(
                f"training.adapter: {type(encoder.transformer).__name__} has grouped keys ({of_keys} for "
                f"{heads} heads), which take no prefix; use a LoRA, or another encoder"
            )
        attention = PrefixAttention(encoder.transformer, encoder.transformer_layers)
        encoder.tower.prefixes = attention
    return attention


def _named(encoder: Encoder, name: str) -> Prefixes:
    prefixes: Prefixes = _attention(encoder).adapters[name]  # type: ignore[assignment]
    return prefixes


def _read(encoder: Encoder, name: str, folder: Path) -> Prefixes:
    """A saved prefix, frozen, that was found to fit the base."""
    from routerretriever.adapters.prefix_attention import Prefixes

    shape = PrefixShape.read(name, folder)
    if shape is None:
        raise EncoderError(f"expert {name!r}: {folder} holds no prefix")
    _require_fit(encoder, name, shape)
    return Prefixes.load(name, folder, shape).to(encoder.device).requires_grad_(False)


def _require_fit(encoder: Encoder, name: str, shape: PrefixShape) -> None:
    if shape.width != encoder.width or max(shape.layers) >= encoder.layers:
        raise EncoderError(
            f"expert {name!r}: a prefix {shape.width} wide for layers up to {max(shape.layers)} does not "
            f"fit this base encoder, of {encoder.layers} layers (from 0), {encoder.width} wide"
        )
    attention = _attention_of(encoder)
    general = None if attention is None else attention.general
    if general is not None and general.shape.length != shape.length:
        raise EncoderError(
            f"expert {name!r}: its prefix has {shape.length} tokens, the general prefix under it "
            f"{general.shape.length}; they are added, so both need the same"
        )
