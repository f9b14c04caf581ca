"""Many LoRA experts on one base encoder, run together: every row of a batch has its own mixture of them.

A LoRA update is linear, so a mixture is applied inside each adapted layer, which adds the sum over experts of
``w_e (x A_e) B_e`` to its output. A row costs one pass, however many experts it mixes; one of a single expert
has all its weight there. Weight on the bare base adds nothing and leaves the others less. Nothing in the base
is changed, so it goes on embedding documents, and the experts of two releases can share it.

Shapes: B rows, L tokens, N tokens of all rows, E experts, T named by a caller, K in use, r rank
and R = K r, i and o the widths into and out of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from routerretriever.config import BASE
from routerretriever.encoder.encoder import Encoder, Vectors
from routerretriever.encoder.prefix import Mixture, Prefixes
from routerretriever.encoder.prefix_shape import UNIFORM, PrefixShape, View
from routerretriever.encoder.source import ADAPTER_WEIGHTS, EncoderError, adapter_config

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

    shared: tuple[int, ...] | None
    """All rows go through these, in one product; None: each row goes through its own."""
    experts_BK: Tensor
    """Each row's experts, or the shared ones in a single row."""
    scale: Tensor
    """Their weights, each r times: [N, R] for all tokens of the batch if they are shared, else [B, R, 1]."""

    @classmethod
    def of(cls, weights_BE: NDArray[np.float32], length: int, rank: int, like: Tensor) -> _Mixture | None:
        """The mixture of rows of so many tokens, where ``like`` is; None if they are all the bare base's."""
        used_BE = weights_BE > 0
        most = int(used_BE.sum(axis=1).max())
        if not most:
            return None
        used_U = np.flatnonzero(used_BE.any(axis=0))
        if len(used_U) <= _SPARE * most:
            shared, experts_BK = tuple(used_U.tolist()), used_U[None]
            scale = weights_BE[:, used_U].repeat(length, axis=0).repeat(rank, axis=1)
        else:
            shared, experts_BK = None, np.argsort(-weights_BE, axis=1, kind="stable")[:, :most]
            scale = np.take_along_axis(weights_BE, experts_BK, axis=1).repeat(rank, axis=1)[:, :, None]
        return cls(shared, torch.from_numpy(experts_BK).to(like.device), torch.from_numpy(scale).to(like))


class _Stack:
    """All experts' matrices of one layer."""

    def __init__(self, down_Eri: Tensor, up_Ero: Tensor) -> None:
        self._down_Eri = down_Eri
        self._up_Ero = up_Ero
        # One expert alone, and all of them together, need no copy.
        self._cuts: dict[tuple[int, ...], tuple[Tensor, Tensor]]
        self._cuts = {(expert,): (down_Eri[expert], up_Ero[expert]) for expert in range(len(down_Eri))}
        self._cuts[tuple(range(len(down_Eri)))] = (down_Eri.flatten(0, 1), up_Ero.flatten(0, 1))

    @property
    def bytes(self) -> int:
        """Memory of the weights."""
        return sum(matrix.numel() * matrix.element_size() for matrix in (self._down_Eri, self._up_Ero))

    def add(self, mixture: _Mixture, output_BLo: Tensor, input_BLi: Tensor) -> None:
        """Add to a layer's output what the experts make of its input.

        In place, since nobody else has seen the output yet: a copy would cost a twentieth of the pass.
        """
        if mixture.shared is not None:
            down_Ri, up_Ro = self._cuts.get(mixture.shared) or (
                # index_select copies whole matrices, several times faster than indexing by a tensor does.
                self._down_Eri.index_select(0, mixture.experts_BK[0]).flatten(0, 1),
                self._up_Ero.index_select(0, mixture.experts_BK[0]).flatten(0, 1),
            )
            low_NR = torch.mm(input_BLi.flatten(0, 1), down_Ri.T).mul_(mixture.scale)
            output_BLo.view(-1, up_Ro.shape[1]).addmm_(low_NR, up_Ro)
            return
        rows, every = len(output_BLo), mixture.experts_BK.flatten()
        down_BRi = self._down_Eri.index_select(0, every).view(rows, -1, self._down_Eri.shape[2])
        up_BRo = self._up_Ero.index_select(0, every).view(rows, -1, self._up_Ero.shape[2])
        low_BRL = torch.bmm(down_BRi, input_BLi.mT).mul_(mixture.scale)
        output_BLo.baddbmm_(low_BRL.mT, up_BRo)

    def add_to_one(self, used: Sequence[tuple[int, float]], output_1Lo: Tensor, input_1Li: Tensor) -> None:
        """The same for a batch of one row, of these experts and weights, in fewer and smaller steps."""
        for expert, weight in used:
            down_ri, up_ro = self._cuts[(expert,)]
            output_1Lo[0].addmm_(torch.mm(input_1Li[0], down_ri.T), up_ro, alpha=weight)


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
        linears = encoder.linear_layers
        adapters = [_read(name, folder, linears) for name, folder in folders.items()]
        layers = sorted({layer for adapter in adapters for layer in adapter.down})
        self._rank = max((adapter.rank for adapter in adapters), default=0)
        self._stacks = {layer: _stack(adapters, layer, linears[layer], self._rank) for layer in layers}

    @property
    def megabytes(self) -> float:
        """Memory of all experts' weights, in MB (10^6 bytes)."""
        return sum(stack.bytes for stack in self._stacks.values()) / 1e6

    def embed(self, rows: Sequence[Sequence[int]], weights_BT: Vectors, experts: Sequence[str]) -> Vectors:
        """Vectors [B, d] float32 of tokenised queries, each by its own mixture.

        Args:
            rows: token ids of each query.
            weights_BT: how much of each expert goes into it: zero or more, and 1 in all.
            experts: whose weights these are; the bare base may be among them.

        Raises:
            KeyError: no such expert.
        """
        like = next(self._encoder.tower.parameters())
        weights_BE = np.zeros((len(rows), len(self._numbers)), dtype=np.float32)
        for column, name in enumerate(experts):
            if name != BASE:
                weights_BE[:, self._numbers[name]] = weights_BT[:, column]

        def mixed(input_ids: Tensor, attention_mask: Tensor, batch: list[int]) -> Tensor:
            if len(batch) == 1:
                own_E = weights_BE[batch[0]]
                used = [(expert, float(own_E[expert])) for expert in np.flatnonzero(own_E).tolist()]
                adding = {name: partial(stack.add_to_one, used) for name, stack in self._stacks.items()}
            else:
                mixture = _Mixture.of(weights_BE[batch], input_ids.shape[1], self._rank, like)
                adding = {
                    name: partial(stack.add, mixture) for name, stack in self._stacks.items() if mixture
                }
            with self._encoder.adding(adding):
                vectors: Tensor = self._encoder.tower(input_ids, attention_mask)
            return vectors

        return self._encoder.embed_tokens(rows, mixed)


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

        Arguments and errors are those of ``PackedExperts.embed``.
        """
        own = [self._mixtures[name] for name in experts]
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


def merge_expert(encoder: Encoder, name: str, folder: Path) -> None:
    """Make one expert part of the base for good: this encoder's queries are then that expert's.

    A LoRA is folded into the weights, which saves its extra products. Documents can no longer be encoded.

    Raises:
        EncoderError: as ``PackedExperts``.
    """
    if PrefixShape.read(name, folder) is not None:
        encoder.run_with(encoder.read_prefixes(name, folder))
        return
    linears = encoder.linear_layers
    adapter = _read(name, folder, linears)
    for layer, down_ir in adapter.down.items():
        weight_oi = linears[layer].weight
        merged_oi = weight_oi.float() + (down_ir.float() @ adapter.up[layer].float()).T.to(weight_oi.device)
        weight_oi.copy_(merged_oi.to(weight_oi.dtype))


def _stack(adapters: Sequence[_Adapter], layer: str, linear: nn.Linear, rank: int) -> _Stack:
    """All experts' matrices [E, r, i] and [E, r, o] of one layer, with zeros where an expert has none."""
    down = linear.weight.new_zeros(len(adapters), rank, linear.in_features)
    up = linear.weight.new_zeros(len(adapters), rank, linear.out_features)
    for number, adapter in enumerate(adapters):
        if layer in adapter.down:
            own = adapter.down[layer].shape[1]
            down[number, :own] = adapter.down[layer].T
            up[number, :own] = adapter.up[layer]
    return _Stack(down, up)


def _read(name: str, folder: Path, linears: Mapping[str, nn.Linear]) -> _Adapter:
    config = adapter_config(name, folder)
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
