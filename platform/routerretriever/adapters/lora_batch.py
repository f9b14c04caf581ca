"""Many LoRA experts run together on one encoder; see ``lora`` for the formula.

Shapes: B rows, L tokens, E experts, U of them used, T named by a caller, r rank, R the ranks of several
experts together, i and o the widths into and out of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from routerretriever.adapters.base import Merge, embed_by_mixture, spread_weights
from routerretriever.encoder.compiled import BoundTower, CompiledTower, LowRank
from routerretriever.encoder.encoder import Encoder
from routerretriever.types import Vectors


@dataclass(frozen=True)
class LoadedLora:
    """One expert: the scaled matrices [i, r] and [r, o] of every adapted layer, by the layer's name."""

    down: dict[str, Tensor]
    up: dict[str, Tensor]

    @property
    def rank(self) -> int:
        """The greatest of its layers."""
        return max(matrix.shape[1] for matrix in self.down.values())


@dataclass(frozen=True)
class ExpertSlot:
    """Room for one expert for each of the first rows of a batch: their first, second, third ..."""

    experts_B: Tensor
    weights_B11: Tensor


def _slots(weights_BE: NDArray[np.float32], like: Tensor) -> list[ExpertSlot]:
    """Every row's experts, the largest weight first, where ``like`` is.

    Rows must come in the order of how many experts they mix, most first.
    """
    used_B = (weights_BE > 0).sum(axis=1)
    ranked_BE = np.argsort(-weights_BE, axis=1, kind="stable")
    slots = []
    for slot in range(used_B.max()):
        rows = int((used_B > slot).sum())
        experts_B = ranked_BE[:rows, slot]
        weights_B11 = weights_BE[np.arange(rows), experts_B][:, None, None]
        slots.append(
            ExpertSlot(torch.from_numpy(experts_B).to(like.device), torch.from_numpy(weights_B11).to(like))
        )
    return slots


class _Stack:
    """All experts' matrices of one layer."""

    def __init__(self, down_Eri: Tensor, up_Ero: Tensor) -> None:
        self._down_Eri = down_Eri
        self._up_Ero = up_Ero
        self.experts = len(down_Eri)
        # Making a view takes as long as a small product.
        self._each = [(down_ri.T, up_ro) for down_ri, up_ro in zip(down_Eri, up_Ero, strict=True)]

    @property
    def bytes(self) -> int:
        """Memory of the weights."""
        return sum(matrix.numel() * matrix.element_size() for matrix in (self._down_Eri, self._up_Ero))

    def side_by_side(self, experts_U: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The matrices of some experts as one update of rank R = U r: [R, i] and [R, o]. Of all: no copy."""
        down_Uri, up_Uro = (
            matrix if experts_U is None else matrix.index_select(0, experts_U)
            for matrix in (self._down_Eri, self._up_Ero)
        )
        return down_Uri.flatten(0, 1), up_Uro.flatten(0, 1)

    def add(self, slots: Sequence[ExpertSlot], output_BLo: Tensor, input_BLi: Tensor) -> None:
        """Add to a layer's output what the experts make of its input.

        In place, since nobody else has seen the output yet: a copy would cost a twentieth of the pass.
        """
        for slot in slots:
            rows = len(slot.experts_B)
            # index_select copies whole matrices, several times faster than indexing by a tensor does.
            down_Bri = self._down_Eri.index_select(0, slot.experts_B)
            up_Bro = self._up_Ero.index_select(0, slot.experts_B)
            low_BrL = down_Bri.bmm(input_BLi[:rows].mT).mul_(slot.weights_B11)
            output_BLo[:rows].baddbmm_(low_BrL.mT, up_Bro)

    def add_to_one(self, used: Sequence[tuple[int, float]], output_1Lo: Tensor, input_1Li: Tensor) -> None:
        """The same for a batch of one row, of these experts and weights, in fewer and smaller steps."""
        output_Lo, input_Li = output_1Lo[0], input_1Li[0]
        for expert, weight in used:
            down_ir, up_ro = self._each[expert]
            output_Lo.addmm_(input_Li.mm(down_ir), up_ro, alpha=weight)

    def add_to_all(self, used: Sequence[tuple[int, float]], output: Tensor, values: Tensor) -> None:
        """The same for whatever a layer is run on, of any shape."""
        for expert, weight in used:
            down_ir, up_ro = self._each[expert]
            output.add_(values @ down_ir @ up_ro, alpha=weight)


class BatchedLoras:
    """LoRA experts that share one base encoder; see ``BatchedAdapters``."""

    merges: frozenset[Merge] = frozenset({"weights", "embeddings"})

    def __init__(self, encoder: Encoder, adapters: Mapping[str, LoadedLora]) -> None:
        """Put experts side by side.

        Args:
            encoder: the base, without adapters of its own.
            adapters: the experts.
        """
        assert not hasattr(encoder.tower.model, "peft_config")
        self._encoder = encoder
        self._numbers = {name: number for number, name in enumerate(adapters)}
        linears, loaded = encoder.linear_layers, list(adapters.values())
        layers = sorted({layer for adapter in loaded for layer in adapter.down})
        rank = max((adapter.rank for adapter in loaded), default=0)
        self._stacks = {layer: _stack(loaded, layer, linears[layer], rank) for layer in layers}
        graph = encoder.compiled(layers) if layers else None
        self._compiled = None if graph is None else _CompiledLoras(graph, self._stacks, rank)

    @property
    def megabytes(self) -> float:
        """Memory of all experts' weights, in MB (10^6 bytes)."""
        return sum(stack.bytes for stack in self._stacks.values()) / 1e6

    def embed(self, rows: Sequence[Sequence[int]], weights_BT: Vectors, experts: Sequence[str]) -> Vectors:
        """Vectors [B, d] float32 of tokenised queries; see ``BatchedAdapters.embed``."""
        like = next(self._encoder.tower.parameters())
        weights_BE = spread_weights(self._numbers, weights_BT, experts)

        def together(mixture_E: Vectors, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            used = [(expert, float(mixture_E[expert])) for expert in np.flatnonzero(mixture_E).tolist()]
            adding = {name: partial(s.add_to_all, used) for name, s in self._stacks.items()}
            with self._encoder.hooked(adding):
                vectors: Tensor = self._encoder.tower(input_ids, attention_mask)
            return vectors

        if not self._encoder.is_rowwise:
            return embed_by_mixture(self._encoder, rows, weights_BE, together)
        graph = self._encoder.compiled()
        run = self._encoder.tower if graph is None else graph.base

        def mixed(input_ids: Tensor, attention_mask: Tensor, batch: list[int]) -> Tensor:
            own_BE = weights_BE[batch]
            if self._compiled is not None:
                vectors = self._compiled.embed(input_ids, attention_mask, own_BE)
                if vectors is not None:
                    return vectors
            if not own_BE.any():
                return run(input_ids, attention_mask)
            if len(batch) == 1:
                used = [(expert, float(own_BE[0, expert])) for expert in np.flatnonzero(own_BE[0]).tolist()]
                adding = {name: partial(s.add_to_one, used) for name, s in self._stacks.items()}
                with self._encoder.hooked(adding):
                    return self._encoder.tower(input_ids, attention_mask)
            # Most experts first, so that those who have a second one, a third ... are the first rows.
            order = np.argsort(-(own_BE > 0).sum(axis=1), kind="stable")
            slots, order_B = _slots(own_BE[order], like), torch.from_numpy(order).to(like.device)
            with self._encoder.hooked({name: partial(s.add, slots) for name, s in self._stacks.items()}):
                made = self._encoder.tower(input_ids[order_B], attention_mask[order_B])
            return torch.empty_like(made).index_copy_(0, order_B, made)

        return self._encoder.embed_tokens(rows, mixed)


def _stack(adapters: Sequence[LoadedLora], layer: str, linear: nn.Linear, rank: int) -> _Stack:
    """All experts' matrices [E, r, i] and [E, r, o] of one layer, with zeros where an expert has none."""
    down = linear.weight.new_zeros(len(adapters), rank, linear.in_features)
    up = linear.weight.new_zeros(len(adapters), rank, linear.out_features)
    for number, adapter in enumerate(adapters):
        if layer in adapter.down:
            own = adapter.down[layer].shape[1]
            down[number, :own] = adapter.down[layer].T
            up[number, :own] = adapter.up[layer]
    return _Stack(down, up)


_MOST_RANKS = 64
"""Ranks in one compiled pass; every row pays for all of them. 48 add a quarter to a pass of MiniLM's. Where
a batch mixes more, PyTorch, which takes each row's own experts only, is no slower."""


class _CompiledLoras:
    """Experts in a compiled tower: side by side, they are one update of their ranks together."""

    def __init__(self, graph: CompiledTower, stacks: Mapping[str, _Stack], rank: int) -> None:
        self._graph, self._stacks, self._rank = graph, stacks, rank
        experts = next(iter(stacks.values())).experts
        self._all = self._bind(None) if experts * rank <= _MOST_RANKS else None

    def _bind(self, experts_U: Tensor | None) -> BoundTower:
        made = {layer: stack.side_by_side(experts_U) for layer, stack in self._stacks.items()}
        down, up = ({layer: pair[side] for layer, pair in made.items()} for side in (0, 1))
        return self._graph.bind(LowRank(down, up))

    def embed(self, ids_BL: Tensor, mask_BL: Tensor, weights_BE: Vectors) -> Tensor | None:
        """Vectors [B, d]; None if the rows mix no expert, or too many for one pass."""
        if self._all is not None:
            # Rows of the base too: going to rank 0 and back costs more than the products.
            return self._all(ids_BL, mask_BL, self._ranks(weights_BE))
        used = np.flatnonzero(weights_BE.any(axis=0))
        if not len(used) or len(used) * self._rank > _MOST_RANKS:
            return None
        return self._bind(torch.from_numpy(used))(ids_BL, mask_BL, self._ranks(weights_BE[:, used]))

    def _ranks(self, weights_BU: Vectors) -> Tensor:
        """Weights [B, R]: an expert's, for each of its ranks."""
        return torch.from_numpy(np.repeat(weights_BU, self._rank, axis=1))
