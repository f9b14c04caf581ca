"""LoRA (arXiv 2106.09685): low-rank updates of linear layers.

PEFT trains them. In a batch every row has its own mixture of experts. An update is linear, so a mixture is
applied inside each adapted layer, which adds the sum over experts of ``w_e (x A_e) B_e`` to its output. A row
costs one pass, however many experts it mixes; one of a single expert has all its weight there. Weight on the
bare base adds nothing and leaves the others less. Nothing in the base is changed, so it goes on embedding
documents, and the experts of two releases can share it.

Shapes: B rows, L tokens, E experts, r rank, i and o the widths into and out of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt

from routerretriever.adapters.base import AdapterSettings
from routerretriever.adapters.files import ADAPTER_WEIGHTS, adapter_config
from routerretriever.adapters.peft_adapters import LAYER_PREFIX, PeftKind
from routerretriever.errors import EncoderError
from routerretriever.settings import Fraction

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn

    from routerretriever.adapters.lora_batch import BatchedLoras, LoadedLora
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
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] = (ALL_LINEAR,)
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

    def worth_trying(self, settings: LoraSettings) -> dict[str, list[Any]]:
        """Half the rank, and twice as much."""
        return {"rank": sorted({max(1, settings.rank // 2), settings.rank, 2 * settings.rank})}

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
        from routerretriever.adapters.lora_batch import BatchedLoras

        linears = encoder.linear_layers
        return BatchedLoras(encoder, {name: _read(name, folder, linears) for name, folder in folders.items()})

    def merge(self, encoder: Encoder, name: str, folder: Path) -> None:
        """Add the update to the weights, which saves its products; see ``AdapterKind.merge``."""
        import torch

        adapter = _read(name, folder, encoder.linear_layers)
        with torch.no_grad():
            for layer, down_ir in adapter.down.items():
                weight_oi = encoder.linear_layers[layer].weight
                update_oi = (down_ir.float() @ adapter.up[layer].float()).T.to(weight_oi.device)
                weight_oi.copy_((weight_oi.float() + update_oi).to(weight_oi.dtype))


def _read(name: str, folder: Path, linears: Mapping[str, nn.Linear]) -> LoadedLora:
    from safetensors.torch import load_file

    from routerretriever.adapters.lora_batch import LoadedLora

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
    return LoadedLora(down, up)
