"""Many LoRA experts on one base encoder, run together: the rows of a batch may be of different experts.

An adapted layer adds ``(x A_e) B_e`` to its output, with the matrices of all experts stacked and those of
each row's expert picked by its number. Expert 0 is the bare base: its matrices are zero. Nothing in the base
is changed, so it goes on embedding documents, and the experts of two releases can share it.

Shapes: B rows, L tokens, E experts with the base, r rank, i and o the widths into and out of a layer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class _Adapter:
    """One expert: the scaled matrices [i, r] and [r, o] of every adapted layer, by the layer's name."""

    down: dict[str, Tensor]
    up: dict[str, Tensor]

    @property
    def rank(self) -> int:
        return max(matrix.shape[1] for matrix in self.down.values())


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
        self.names = [BASE, *folders]
        self._encoder = encoder
        self._numbers = {name: number for number, name in enumerate(self.names)}
        self._rows: Tensor | None = None
        linears = _linear_layers(encoder)
        adapters = [_read(name, folder, linears) for name, folder in folders.items()]
        layers = sorted({layer for adapter in adapters for layer in adapter.down})
        self._stacks = {layer: _stack(adapters, layer, linears[layer]) for layer in layers}
        self._layers = {layer: linears[layer] for layer in layers}
        self._hooks: list[Any] = []

    @property
    def megabytes(self) -> float:
        """Memory of all experts' weights, in MB (10^6 bytes)."""
        pairs = self._stacks.values()
        return sum(matrix.numel() * matrix.element_size() for pair in pairs for matrix in pair) / 1e6

    def embed(self, rows: Sequence[Sequence[int]], experts: Sequence[str]) -> Vectors:
        """Vectors [B, d] float32 of tokenised queries, each by the expert named for it.

        Raises:
            KeyError: no such expert.
        """
        if not self._hooks:
            # Not before: another thread may be in the base while this pack is being read.
            self._hooks = [
                linear.register_forward_hook(self._hook(layer)) for layer, linear in self._layers.items()
            ]
        numbers = torch.tensor([self._numbers[name] for name in experts], dtype=torch.long)

        def mixed(input_ids: Tensor, attention_mask: Tensor, batch: list[int]) -> Tensor:
            self._rows = numbers[batch].to(self._encoder.device)
            try:
                vectors: Tensor = self._encoder.tower(input_ids, attention_mask)
            finally:
                self._rows = None
            return vectors

        return self._encoder.embed_tokens(rows, mixed)

    def close(self) -> None:
        """Let go of the base, until these experts are next run."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _hook(self, layer: str) -> Any:
        down_Eir, up_Ero = self._stacks[layer]

        def add_expert(_: nn.Module, args: tuple[Any, ...], output_BLo: Tensor) -> Tensor | None:
            if self._rows is None:
                return None
            low_BLr = torch.bmm(args[0], down_Eir[self._rows])
            # In place: nobody else has seen the output yet. A copy would cost a twentieth of the pass.
            return output_BLo.baddbmm_(low_BLr, up_Ero[self._rows])

        return add_expert


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

    def embed(self, rows: Sequence[Sequence[int]], experts: Sequence[str]) -> Vectors:
        """See ``PackedExperts.embed``."""
        mixtures = {
            name: self._prefixes.mixture(View((), UNIFORM) if name == BASE else self._views[name])
            for name in set(experts)
        }
        mixture = Mixture(
            torch.cat([mixtures[name].shares_BN for name in experts]),
            torch.cat([mixtures[name].top_k_B for name in experts]),
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


def _stack(adapters: Sequence[_Adapter], layer: str, linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """All experts' matrices [E, i, r] and [E, r, o] of one layer, with zeros where an expert has none."""
    count, rank = len(adapters) + 1, max(adapter.rank for adapter in adapters)
    down = linear.weight.new_zeros(count, linear.in_features, rank)
    up = linear.weight.new_zeros(count, rank, linear.out_features)
    for number, adapter in enumerate(adapters, start=1):
        if layer in adapter.down:
            own = adapter.down[layer].shape[1]
            down[number, :, :own] = adapter.down[layer]
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
