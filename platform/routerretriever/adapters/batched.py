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

from routerretriever.adapters.prefix_attention import Mixture, Prefixes
from routerretriever.adapters.prefix_shape import UNIFORM, PrefixShape, View
from routerretriever.encoder.encoder import Encoder, Vectors
from routerretriever.encoder.source import ADAPTER_WEIGHTS, adapter_config
from routerretriever.errors import EncoderError
from routerretriever.types import BASE

_PREFIX = "base_model.model."
"""What PEFT puts before the names of the base's modules."""
_UNKNOWN_KINDS = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save")
"""Settings of PEFT's that would change the formula above."""


@dataclass(frozen=True)
class _Adapter:
    """One expert: the scaled matrices [i, r] and [r, o] of every adapted layer, by the layer's name."""

    down: dict[str, Tensor]
    up: dict[str, Tensor]

    @property
    def rank(self) -> int:
        return max(matrix.shape[1] for matrix in self.down.values())


@dataclass(frozen=True)
class _Turn:
    """One expert for each of the first rows of a batch."""

    experts_B: Tensor
    weights_B11: Tensor


def _turns(weights_BE: NDArray[np.float32], like: Tensor) -> list[_Turn]:
    """Every row's experts, the largest weight first, where ``like`` is.

    Rows must come in the order of how many experts they mix, most first.
    """
    used_B = (weights_BE > 0).sum(axis=1)
    ranked_BE = np.argsort(-weights_BE, axis=1, kind="stable")
    turns = []
    for turn in range(used_B.max()):
        rows = int((used_B > turn).sum())
        experts_B = ranked_BE[:rows, turn]
        weights_B11 = weights_BE[np.arange(rows), experts_B][:, None, None]
        turns.append(
            _Turn(torch.from_numpy(experts_B).to(like.device), torch.from_numpy(weights_B11).to(like))
        )
    return turns


class _Stack:
    """All experts' matrices of one layer."""

    def __init__(self, down_Eri: Tensor, up_Ero: Tensor) -> None:
        self._down_Eri = down_Eri
        self._up_Ero = up_Ero
        # Making a view takes as long as a small product.
        self._each = [(down_ri.T, up_ro) for down_ri, up_ro in zip(down_Eri, up_Ero, strict=True)]

    @property
    def bytes(self) -> int:
        """Memory of the weights."""
        return sum(matrix.numel() * matrix.element_size() for matrix in (self._down_Eri, self._up_Ero))

    def add(self, turns: Sequence[_Turn], output_BLo: Tensor, input_BLi: Tensor) -> None:
        """Add to a layer's output what the experts make of its input.

        In place, since nobody else has seen the output yet: a copy would cost a twentieth of the pass.
        """
        for turn in turns:
            rows = len(turn.experts_B)
            # index_select copies whole matrices, several times faster than indexing by a tensor does.
            down_Bri = self._down_Eri.index_select(0, turn.experts_B)
            up_Bro = self._up_Ero.index_select(0, turn.experts_B)
            low_BrL = torch.bmm(down_Bri, input_BLi[:rows].mT).mul_(turn.weights_B11)
            output_BLo[:rows].baddbmm_(low_BrL.mT, up_Bro)

    def add_to_one(self, used: Sequence[tuple[int, float]], output_1Lo: Tensor, input_1Li: Tensor) -> None:
        """The same for a batch of one row, of these experts and weights, in fewer and smaller steps."""
        output_Lo, input_Li = output_1Lo[0], input_1Li[0]
        for expert, weight in used:
            down_ir, up_ro = self._each[expert]
            output_Lo.addmm_(torch.mm(input_Li, down_ir), up_ro, alpha=weight)


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
        rank = max((adapter.rank for adapter in adapters), default=0)
        self._stacks = {layer: _stack(adapters, layer, linears[layer], rank) for layer in layers}

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
            own_BE = weights_BE[batch]
            if not own_BE.any():
                return self._encoder.tower(input_ids, attention_mask)
            if len(batch) == 1:
                used = [(expert, float(own_BE[0, expert])) for expert in np.flatnonzero(own_BE[0]).tolist()]
                adding = {name: partial(s.add_to_one, used) for name, s in self._stacks.items()}
                with self._encoder.adding(adding):
                    return self._encoder.tower(input_ids, attention_mask)
            # Most experts first, so that those who have a second one, a third ... are the first rows.
            order = np.argsort(-(own_BE > 0).sum(axis=1), kind="stable")
            turns, order_B = _turns(own_BE[order], like), torch.from_numpy(order).to(like.device)
            with self._encoder.adding({name: partial(s.add, turns) for name, s in self._stacks.items()}):
                vectors: Tensor = self._encoder.tower(input_ids[order_B], attention_mask[order_B])
            return torch.empty_like(vectors).index_copy_(0, order_B, vectors)

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
