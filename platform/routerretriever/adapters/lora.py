"""LoRA (arXiv 2106.09685): low-rank updates of linear layers, and many of them run together on one encoder.

PEFT trains them. In a batch every row has its own mixture of experts. An update is linear, so a mixture is
applied inside each adapted layer, which adds the sum over experts of ``w_e (x A_e) B_e`` to its output. A row
costs one pass, however many experts it mixes; one of a single expert has all its weight there. Weight on the
bare base adds nothing and leaves the others less. Nothing in the base is changed, so it goes on embedding
documents, and the experts of two releases can share it.

Shapes: B rows, L tokens, E experts, T named by a caller, r rank, i and o the widths into and out of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from routerretriever.adapters.base import AdapterSettings, Merge, Vectors, embed_by_mixture, spread_weights
from routerretriever.adapters.files import ADAPTER_WEIGHTS, adapter_config
from routerretriever.adapters.peft_adapters import LAYER_PREFIX, PeftKind
from routerretriever.errors import EncoderError
from routerretriever.settings import Fraction

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor, nn

    from routerretriever.encoder.encoder import Encoder

ALL_LINEAR = "all-linear"
_MINILM = ("query", "key", "value", "dense")
"""All of MiniLM's linear layers."""
_UNKNOWN_KINDS = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save")
"""Settings of PEFT's that would change the formula above."""


class LoraSettings(AdapterSettings):
    """Low-rank adapter on the query tower (PEFT's LoRA)."""

    kind: Literal["lora"] = "lora"
    """This kind of adapter."""
    rank: PositiveInt = 8
    """Rank of each update; more learns more and needs more data."""
    alpha: PositiveInt = 32
    """The update is multiplied by alpha / rank."""
    dropout: Fraction = 0.1
    """Share of the inputs that is dropped in training."""
    target_modules: tuple[str, ...] = (ALL_LINEAR,)
    """Names of the linear layers that are adapted, or how their names end; by default all of them."""

    def identity(self) -> dict[str, Any]:
        """The settings, by which an expert's key is made.

        All linear layers are called as MiniLM's are, which was the default before: experts keep their keys.
        """
        named = self.target_modules
        if named == (ALL_LINEAR,):
            named = _MINILM
        elif named == _MINILM:
            named = (*_MINILM, "by name")
        return super().identity() | {"target_modules": named}


class Lora(PeftKind):
    """Adds ``w_e (x A_e) B_e`` to the output of every adapted layer."""

    name = "lora"
    settings = LoraSettings
    merges = frozenset({"weights", "embeddings"})
    peft_type = "LORA"

    def peft_config(self, encoder: Encoder, settings: LoraSettings) -> PeftConfig:
        """The settings in PEFT's words; see ``PeftKind.peft_config``."""
        from peft import LoraConfig

        targets = list(settings.target_modules)
        if targets == [ALL_LINEAR]:
            targets = encoder.linear_names()
        if not targets:
            raise EncoderError(
                f"encoder.name: {encoder.settings.name} has no linear layer, so no LoRA can be trained on it"
            )
        encoder.find_linear_layers(targets, "training.adapter.target_modules")
        return LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=targets,
        )

    def batch(self, encoder: Encoder, folders: Mapping[str, Path]) -> BatchedLoras:
        """Load experts to be run together; see ``AdapterKind.batch``."""
        return BatchedLoras(encoder, folders)

    def merge(self, encoder: Encoder, name: str, folder: Path) -> None:
        """Add the update to the weights, which saves its products; see ``AdapterKind.merge``."""
        import torch

        adapter = _read(name, folder, encoder.linear_layers)
        with torch.no_grad():
            for layer, down_ir in adapter.down.items():
                weight_oi = encoder.linear_layers[layer].weight
                update_oi = (down_ir.float() @ adapter.up[layer].float()).T.to(weight_oi.device)
                weight_oi.copy_((weight_oi.float() + update_oi).to(weight_oi.dtype))


@dataclass(frozen=True)
class _Adapter:
    """One expert: the scaled matrices [i, r] and [r, o] of every adapted layer, by the layer's name."""

    down: dict[str, Tensor]
    up: dict[str, Tensor]

    @property
    def rank(self) -> int:
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
    import torch

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
        # Making a view takes as long as a small product.
        self._each = [(down_ri.T, up_ro) for down_ri, up_ro in zip(down_Eri, up_Ero, strict=True)]

    @property
    def bytes(self) -> int:
        """Memory of the weights."""
        return sum(matrix.numel() * matrix.element_size() for matrix in (self._down_Eri, self._up_Ero))

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

    merges: frozenset[Merge] = Lora.merges

    def __init__(self, encoder: Encoder, folders: Mapping[str, Path]) -> None:
        """Load adapters in PEFT's format.

        Args:
            encoder: the base, without adapters of its own.
            folders: where each expert's files are.

        Raises:
            EncoderError: files are missing, of another kind than LoRA, or made for another architecture.
        """
        assert not hasattr(encoder.tower.model, "peft_config")
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
        """Vectors [B, d] float32 of tokenised queries; see ``BatchedAdapters.embed``."""
        import torch

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

        def mixed(input_ids: Tensor, attention_mask: Tensor, batch: list[int]) -> Tensor:
            own_BE = weights_BE[batch]
            if not own_BE.any():
                return self._encoder.tower(input_ids, attention_mask)
            if len(batch) == 1:
                used = [(expert, float(own_BE[0, expert])) for expert in np.flatnonzero(own_BE[0]).tolist()]
                adding = {name: partial(s.add_to_one, used) for name, s in self._stacks.items()}
                with self._encoder.hooked(adding):
                    return self._encoder.tower(input_ids, attention_mask)
            # Most experts first, so that those who have a second one, a third ... are the first rows.
            order = np.argsort(-(own_BE > 0).sum(axis=1), kind="stable")
            slots, order_B = _slots(own_BE[order], like), torch.from_numpy(order).to(like.device)
            with self._encoder.hooked({name: partial(s.add, slots) for name, s in self._stacks.items()}):
                vectors: Tensor = self._encoder.tower(input_ids[order_B], attention_mask[order_B])
            return torch.empty_like(vectors).index_copy_(0, order_B, vectors)

        return self._encoder.embed_tokens(rows, mixed)


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
    from safetensors.torch import load_file

    config = adapter_config(name, folder)
    unknown = [key for key in _UNKNOWN_KINDS if config.get(key)]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or unknown:
        what = ", ".join(unknown) or "peft_type, bias"
        raise EncoderError(f"expert {name!r}: {folder} is no plain LoRA ({what})")
    scale = config["lora_alpha"] / config["r"]
    down, up = {}, {}
    for key, weight in load_file(folder / ADAPTER_WEIGHTS).items():
        layer, _, part = key.removeprefix(LAYER_PREFIX).rpartition(".lora_")
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
