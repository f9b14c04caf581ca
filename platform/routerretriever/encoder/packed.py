"""Many LoRA experts on one base encoder, run together: every row of a batch has its own mixture of them.

A LoRA update is linear, so a mixture is applied inside each adapted layer, which adds the sum over experts of
``w_e (x A_e) B_e`` to its output. A row costs one pass, however many experts it mixes; one of a single expert
has all its weight there. Weight on the bare base adds nothing and leaves the others less. Nothing in the base
is changed, so it goes on embedding documents, and the experts of two releases can share it.

Shapes: B rows, L tokens, E experts, T of them named by a caller, r rank, i and o the widths into and out of a
layer. G is 1 where all rows go through the same K experts in one product, else B, each row through its own K.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from routerretriever.config import BASE
from routerretriever.encoder.encoder import Encoder, Vectors
from routerretriever.encoder.prefix import UNIFORM, Mixture, Prefixes, PrefixShape, View
from routerretriever.encoder.source import ADAPTER_CONFIG, ADAPTER_WEIGHTS, EncoderError

_PREFIX = "base_model.model."
"""What PEFT puts before the names of the base's modules."""
_UNKNOWN_KINDS = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save")
"""Settings of PEFT's that would change the formula above."""
_SPARE = 2
"""Rows share one product while it is at most so many times as wide as the widest row alone would need: below,
copying weights for every row and the many small products cost more (MiniLM, rank 8, one AVX2 thread)."""


@dataclass(frozen=True)
class _Adapter:
    """One expert: the scaled matrices [i, r] and [r, o] of every adapted layer, by the layer's name."""

    down: dict[str, Tensor]
    up: dict[str, Tensor]

    @property
    def rank(self) -> int:
        return max(matrix.shape[1] for matrix in self.down.values())


@dataclass(frozen=True)
class _Mixture:
    """The experts of the batch that is being run."""

    experts_GK: Tensor
    scale_GRN: Tensor
    """Their weights, each r times, for every token of the G; or alike for all tokens, with N = 1."""

    @classmethod
    def of(cls, weights_BE: Tensor, length: int, rank: int, like: Tensor) -> _Mixture | None:
        """The mixture of rows of so many tokens, where ``like`` is; None if they are all the bare base's."""
        used_U = weights_BE.any(dim=0).nonzero()[:, 0]
        most = int((weights_BE > 0).sum(dim=1).max())
        if not most:
            return None
        if len(used_U) <= _SPARE * most:
            experts_GK = used_U[None]
            scale_GKN = weights_BE[:, used_U].T.repeat_interleave(length, dim=1)[None]
        else:
            weights_BK, experts_GK = weights_BE.topk(most, dim=1)
            scale_GKN = weights_BK[:, :, None]
        return cls(experts_GK.to(like.device), scale_GKN.to(like).repeat_interleave(rank, dim=1))


def pack_experts(encoder: Encoder, folders: Mapping[str, Path]) -> PackedExperts | PackedPrefixes:
    """Load the experts of a bundle, all of one kind, to be run together.

    Raises:
        EncoderError: files are missing, made for another architecture, or of different kinds.
    """
    prefixes = [PrefixShape.read(name, folder) is not None for name, folder in folders.items()]
    return PackedPrefixes(encoder, folders) if any(prefixes) else PackedExperts(encoder, folders)


class PackedExperts:
    """Experts that share one base encoder. As little thread-safe as the encoder itself."""

    def __init__(self, encoder: Encoder, folders: Mapping[str, Path]) -> None:
        """Load adapters in PEFT's format.

        Args:
            encoder: the base, without adapters of its own.
            folders: where each expert's files are.

        Raises:
            EncoderError: files are missing, of another kind than LoRA, or made for another architecture.
        """
        assert not encoder.adapters
        self._encoder = encoder
        self._numbers = {name: number for number, name in enumerate(folders)}
        self._mixture: _Mixture | None = None
        linears = _linear_layers(encoder)
        adapters = [_read(name, folder, linears) for name, folder in folders.items()]
        layers = sorted({layer for adapter in adapters for layer in adapter.down})
        self._rank = max((adapter.rank for adapter in adapters), default=0)
        self._stacks = {layer: _stack(adapters, layer, linears[layer], self._rank) for layer in layers}
        self._layers = {layer: linears[layer] for layer in layers}
        self._hooks: list[Any] = []

    @property
    def megabytes(self) -> float:
        """Memory of all experts' weights, in MB (10^6 bytes)."""
        pairs = self._stacks.values()
        return sum(matrix.numel() * matrix.element_size() for pair in pairs for matrix in pair) / 1e6

    def embed(self, rows: Sequence[Sequence[int]], weights_BT: Vectors, experts: Sequence[str]) -> Vectors:
        """Vectors [B, d] float32 of tokenised queries, each by its own mixture.

        Args:
            rows: token ids of each query.
            weights_BT: how much of each expert goes into it: zero or more, and 1 in all.
            experts: whose weights these are; the bare base may be among them.

        Raises:
            KeyError: no such expert.
        """
        if not self._hooks:
            # Not before: another thread may be in the base while this pack is being read.
            self._hooks = [
                linear.register_forward_hook(self._hook(layer)) for layer, linear in self._layers.items()
            ]
        like = next(self._encoder.tower.parameters())
        own_BE = np.zeros((len(rows), len(self._numbers)), dtype=np.float32)
        for column, name in enumerate(experts):
            if name != BASE:
                own_BE[:, self._numbers[name]] = weights_BT[:, column]
        weights_BE = torch.from_numpy(own_BE)

        def mixed(input_ids: Tensor, attention_mask: Tensor, batch: list[int]) -> Tensor:
            self._mixture = _Mixture.of(weights_BE[batch], input_ids.shape[1], self._rank, like)
            try:
                vectors: Tensor = self._encoder.tower(input_ids, attention_mask)
            finally:
                self._mixture = None
            return vectors

        return self._encoder.embed_tokens(rows, mixed)

    def close(self) -> None:
        """Let go of the base, until these experts are next run."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _hook(self, layer: str) -> Any:
        down_Eri, up_Ero = self._stacks[layer]

        def add_experts(_: nn.Module, args: tuple[Any, ...], output_BLo: Tensor) -> Tensor | None:
            if self._mixture is None:
                return None
            experts_GK = self._mixture.experts_GK
            groups = len(experts_GK)
            # index_select copies whole matrices, several times faster than indexing by a tensor does.
            down_GRi = down_Eri.index_select(0, experts_GK.flatten()).view(groups, -1, down_Eri.shape[2])
            up_GRo = up_Ero.index_select(0, experts_GK.flatten()).view(groups, -1, up_Ero.shape[2])
            low_GRN = torch.bmm(down_GRi, args[0].reshape(groups, -1, down_Eri.shape[2]).mT)
            low_GRN *= self._mixture.scale_GRN
            # In place: nobody else has seen the output yet. A copy would cost a twentieth of the pass.
            output_BLo.view(groups, -1, up_Ero.shape[2]).baddbmm_(low_GRN.mT, up_GRo)
            return output_BLo

        return add_experts


class PackedPrefixes:
    """The same for experts that are prefixes: one of a single module each, or views of one with routers."""

    def __init__(self, encoder: Encoder, folders: Mapping[str, Path]) -> None:
        """Load prefixes.

        Args:
            encoder: the base, without adapters of its own.
            folders: where each expert's files are; experts that share a folder are views of one prefix.

        Raises:
            EncoderError: files are missing, of another kind, made for another architecture, or cannot be run
                together.
        """
        self._encoder = encoder
        loaded = {folder: encoder.read_prefixes(name, folder) for name, folder in folders.items()}
        first = next(iter(loaded.values()))
        if len(loaded) == 1:
            self._prefixes = first
            self._views = {name: first.shape.view(name) for name in folders}
        else:
            self._prefixes = Prefixes.stacked(dict(zip(folders, loaded.values(), strict=True)))
            self._views = {name: View((name,), UNIFORM) for name in folders}
        self._prefixes.to(encoder.device)

    @property
    def megabytes(self) -> float:
        """Memory of all experts' weights, in MB (10^6 bytes)."""
        return sum(weight.numel() * weight.element_size() for weight in self._prefixes.parameters()) / 1e6

    def embed(self, rows: Sequence[Sequence[int]], weights_BT: Vectors, experts: Sequence[str]) -> Vectors:
        """Vectors [B, d] float32 of tokenised queries, each by the one expert that has all its weight.

        Arguments and errors are those of ``PackedExperts.embed``.
        """
        own = [
            self._prefixes.mixture(View((), UNIFORM) if name == BASE else self._views[name])
            for name in experts
        ]
        columns_B = weights_BT.argmax(axis=1)
        assert (weights_BT[np.arange(len(rows)), columns_B] == 1).all()
        mixture = Mixture(
            torch.cat([own[column].shares_BN for column in columns_B]),
            torch.cat([own[column].top_k_B for column in columns_B]),
        )

        def mixed(input_ids: Tensor, attention_mask: Tensor, batch: list[int]) -> Tensor:
            with self._encoder.prefixed(self._prefixes, mixture.rows(batch)):
                vectors: Tensor = self._encoder.tower(input_ids, attention_mask)
            return vectors

        return self._encoder.embed_tokens(rows, mixed)

    def close(self) -> None:
        """Let go of the base: nothing is left in it."""


def merge_expert(encoder: Encoder, name: str, folder: Path) -> None:
    """Make one expert part of the base for good: this encoder's queries are then that expert's.

    A LoRA is folded into the weights, which saves its extra products. Documents can no longer be encoded.

    Raises:
        EncoderError: as ``PackedExperts``.
    """
    if PrefixShape.read(name, folder) is not None:
        encoder.run_with(encoder.read_prefixes(name, folder))
        return
    linears = _linear_layers(encoder)
    adapter = _read(name, folder, linears)
    for layer, down_ir in adapter.down.items():
        weight_oi = linears[layer].weight
        merged_oi = weight_oi.float() + (down_ir.float() @ adapter.up[layer].float()).T.to(weight_oi.device)
        weight_oi.copy_(merged_oi.to(weight_oi.dtype))


def _linear_layers(encoder: Encoder) -> dict[str, nn.Linear]:
    modules = encoder.tower.model.named_modules()
    return {name: module for name, module in modules if isinstance(module, nn.Linear)}


def _stack(adapters: Sequence[_Adapter], layer: str, linear: nn.Linear, rank: int) -> tuple[Tensor, Tensor]:
    """All experts' matrices [E, r, i] and [E, r, o] of one layer, with zeros where an expert has none."""
    down = linear.weight.new_zeros(len(adapters), rank, linear.in_features)
    up = linear.weight.new_zeros(len(adapters), rank, linear.out_features)
    for number, adapter in enumerate(adapters):
        if layer in adapter.down:
            own = adapter.down[layer].shape[1]
            down[number, :own] = adapter.down[layer].T
            up[number, :own] = adapter.up[layer]
    return down, up


def _read(name: str, folder: Path, linears: Mapping[str, nn.Linear]) -> _Adapter:
    for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / file).is_file():
            raise EncoderError(f"expert {name!r}: {folder} lacks {file}")
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    unknown = [key for key in _UNKNOWN_KINDS if config.get(key)]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or unknown:
        what = ", ".join(unknown) or "peft_type, bias"
        raise EncoderError(f"expert {name!r}: {folder} is no plain LoRA ({what})")
    scale = config["lora_alpha"] / config["r"]
    down, up = {}, {}
    for key, weight in load_file(folder / ADAPTER_WEIGHTS).items():
        layer, _, part = key.removeprefix(_PREFIX).rpartition(".lora_")
        linear = linears.get(layer)
        if linear is None:
            raise EncoderError(f"expert {name!r}: {folder} does not fit this base encoder: no layer {layer}")
        width = linear.in_features if part == "A.weight" else linear.out_features
        if width != weight.shape[1 if part == "A.weight" else 0]:
            raise EncoderError(
                f"expert {name!r}: {folder} does not fit this base encoder: {key} is {tuple(weight.shape)}, "
                f"the layer is {width} wide"
            )
        if part == "A.weight":
            down[layer] = weight.T
        else:
            up[layer] = weight.T * scale
    return _Adapter(down, up)
