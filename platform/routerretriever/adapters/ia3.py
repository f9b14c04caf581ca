"""IA3 (arXiv 2205.05638): vectors that scale keys, values and what feed-forward layers hold inside.

PEFT trains them; a vector starts as ones, which is the base. In a batch every row has its own mixture. The
scale of a layer for a row is the weighted sum of its experts' scales l_e, and of ones for the bare base:
``s = 1 + sum_e w_e (l_e - 1)``. A layer of keys or values gives ``s (x W + b)``, the last one of a
feed-forward block ``(s x) W + b``. Both are linear in s, so a mixture is what the weighted sum of the merged
weights would give.

Shapes: B rows, L tokens, E experts, T named by a caller, i and o the widths into and out of a layer, f the
one of the two that is scaled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from routerretriever.adapters.base import AdapterSettings, Merge, embed_by_mixture, spread_weights
from routerretriever.adapters.files import ADAPTER_WEIGHTS, adapter_config
from routerretriever.adapters.peft_adapters import LAYER_PREFIX, PeftKind
from routerretriever.errors import EncoderError
from routerretriever.types import Vectors

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor

    from routerretriever.encoder.encoder import Encoder

_KEYS_AND_VALUES = {
    "key", "value", "k_proj", "v_proj", "k_lin", "v_lin", "key_proj", "value_proj", "k", "v",
    # Queries too, where one layer makes all three: scaling a query is scaling its keys.
    "Wqkv", "qkv_proj", "qkv", "query_key_value",
}  # fmt: skip
_SUFFIX = ".ia3_l"


class Ia3Settings(AdapterSettings):
    """Learned scales on the query tower (PEFT's IA3): some ten thousand weights for a small encoder.

    They want a higher learning rate than a LoRA: the paper's is 3e-3.
    """

    kind: Literal["ia3"] = "ia3"
    """This kind of adapter."""
    output_modules: tuple[str, ...] | None = None
    """Layers whose output is scaled; by default those that make keys and values."""
    input_modules: tuple[str, ...] | None = None
    """Layers whose input is scaled; by default the last one of every feed-forward block."""

    @model_validator(mode="after")
    def _something(self) -> Ia3Settings:
        if self.output_modules == () and self.input_modules == ():
            raise ValueError("output_modules and input_modules are both empty: nothing would be trained")
        return self


class Ia3(PeftKind):
    """Scales the outputs or inputs of linear layers."""

    name = "ia3"
    settings = Ia3Settings
    merges = frozenset({"weights", "embeddings"})
    peft_type = "IA3"

    def peft_config(self, encoder: Encoder, settings: Ia3Settings) -> PeftConfig:
        """The settings in PEFT's words; see ``PeftKind.peft_config``."""
        from peft import IA3Config

        outputs, inputs = keys_and_values(encoder), last_of_feed_forward(encoder)
        if settings.output_modules is not None:
            outputs = encoder.find_linear_layers(settings.output_modules, "training.adapter.output_modules")
        if settings.input_modules is not None:
            inputs = encoder.find_linear_layers(settings.input_modules, "training.adapter.input_modules")
        if twice := sorted(set(outputs) & set(inputs)):
            raise EncoderError(
                f"training.adapter: {twice[0]} is in output_modules and in input_modules; name it once"
            )
        return IA3Config(target_modules=[*outputs, *inputs], feedforward_modules=inputs)

    def batch(self, encoder: Encoder, folders: Mapping[str, Path]) -> BatchedScales:
        """Load experts to be run together; see ``AdapterKind.batch``."""
        return BatchedScales(encoder, folders)

    def merge(self, encoder: Encoder, name: str, folder: Path) -> None:
        """Multiply the scales into the weights; see ``AdapterKind.merge``."""
        import torch

        outputs, inputs = _read(encoder, name, folder)
        with torch.no_grad():
            for layer, scale_o in outputs.items():
                linear = encoder.linear_layers[layer]
                linear.weight.mul_(scale_o.to(linear.weight)[:, None])
                if linear.bias is not None:
                    linear.bias.mul_(scale_o.to(linear.bias))
            for layer, scale_i in inputs.items():
                weight_oi = encoder.linear_layers[layer].weight
                weight_oi.mul_(scale_i.to(weight_oi))


class BatchedScales:
    """IA3 experts that share one base encoder; see ``BatchedAdapters``."""

    merges: frozenset[Merge] = Ia3.merges

    def __init__(self, encoder: Encoder, folders: Mapping[str, Path]) -> None:
        """Load adapters in PEFT's format, on an encoder without adapters of its own.

        Raises:
            EncoderError: files are missing, of another kind, or made for another architecture.
        """
        self._encoder = encoder
        self._numbers = {name: number for number, name in enumerate(folders)}
        read = [_read(encoder, name, folder) for name, folder in folders.items()]
        self._outputs = _changes(encoder, [outputs for outputs, _ in read])
        self._inputs = _changes(encoder, [inputs for _, inputs in read])

    @property
    def megabytes(self) -> float:
        """Memory of all experts' weights, in MB (10^6 bytes)."""
        changes = [*self._outputs.values(), *self._inputs.values()]
        return sum(change.numel() * change.element_size() for change in changes) / 1e6

    def embed(self, rows: Sequence[Sequence[int]], weights_BT: Vectors, experts: Sequence[str]) -> Vectors:
        """Vectors [B, d] float32 of tokenised queries; see ``BatchedAdapters.embed``."""
        import torch

        like = next(self._encoder.tower.parameters())
        spread_BE = spread_weights(self._numbers, weights_BT, experts)
        weights_BE = torch.from_numpy(spread_BE).to(like)

        def together(mixture_E: Vectors, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            own_E = torch.from_numpy(mixture_E).to(like)
            return self._run(input_ids, attention_mask, lambda change_Ef: own_E @ change_Ef)

        if not self._encoder.is_rowwise:
            return embed_by_mixture(self._encoder, rows, spread_BE, together)

        def mixed(input_ids: Tensor, attention_mask: Tensor, batch: list[int]) -> Tensor:
            own_BE = weights_BE[batch]
            return self._run(input_ids, attention_mask, lambda change_Ef: (own_BE @ change_Ef)[:, None])

        return self._encoder.embed_tokens(rows, mixed)

    def _run(self, input_ids: Tensor, attention_mask: Tensor, mixed: Callable[[Tensor], Tensor]) -> Tensor:
        """Vectors [b, d] of a batch; ``mixed`` makes one change of those of all experts [E, f] to a layer."""
        outputs = {
            layer: partial(_scale_output, 1 + mixed(change_Eo)) for layer, change_Eo in self._outputs.items()
        }
        inputs = {layer: (1 + mixed(change_Ei)).mul for layer, change_Ei in self._inputs.items()}
        with self._encoder.hooked(outputs, inputs):
            vectors: Tensor = self._encoder.tower(input_ids, attention_mask)
        return vectors


def keys_and_values(encoder: Encoder) -> list[str]:
    """Names of the linear layers that make keys and values.

    Raises:
        EncoderError: the architecture calls them otherwise.
    """
    found = [name for name in encoder.linear_layers if name.rpartition(".")[2] in _KEYS_AND_VALUES]
    if not found:
        raise EncoderError(
            "training.adapter.output_modules: which of this encoder's layers make keys and values is not "
            f"known; name them: {', '.join(encoder.linear_names())}"
        )
    return found


def last_of_feed_forward(encoder: Encoder) -> list[str]:
    """Names of the linear layers that end a feed-forward block: those with a layer's widest input."""
    names = {id(linear): name for name, linear in encoder.linear_layers.items()}
    found = []
    for layer in encoder.transformer_layers:
        inside = [names[id(module)] for module in layer.modules() if id(module) in names]
        if inside:
            found.append(max(inside, key=lambda name: encoder.linear_layers[name].in_features))
    return found


def _scale_output(scale_B1o: Tensor, output_BLo: Tensor, _: Tensor) -> None:
    output_BLo.mul_(scale_B1o)


def _changes(encoder: Encoder, experts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """By layer, what every expert's scale differs from one [E, f]; zeros where it has none."""
    changes: dict[str, Tensor] = {}
    for number, scales in enumerate(experts):
        for layer, scale_f in scales.items():
            if layer not in changes:
                weight = encoder.linear_layers[layer].weight
                changes[layer] = weight.new_zeros(len(experts), len(scale_f))
            changes[layer][number] = scale_f.to(changes[layer]) - 1
    return changes


def _read(encoder: Encoder, name: str, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Scales of outputs [o] and of inputs [i], by layer."""
    from safetensors.torch import load_file

    config = adapter_config(name, folder)
    if config.get("peft_type") != Ia3.peft_type or config.get("modules_to_save"):
        raise EncoderError(f"expert {name!r}: {folder} is no plain IA3 (peft_type, modules_to_save)")
    outputs: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}
    for key, scale in load_file(folder / ADAPTER_WEIGHTS).items():
        layer = key.removeprefix(LAYER_PREFIX).removesuffix(_SUFFIX)
        linear = encoder.linear_layers.get(layer)
        if linear is None:
            raise EncoderError(f"expert {name!r}: {folder} does not fit this base encoder: no layer {layer}")
        # PEFT writes a row for a scale of inputs, a column for one of outputs.
        of_input = scale.shape[0] == 1
        width = linear.in_features if of_input else linear.out_features
        if scale.numel() != width:
            raise EncoderError(
                f"expert {name!r}: {folder} does not fit this base encoder: {key} is {tuple(scale.shape)}, "
                f"the layer is {width} wide"
            )
        (inputs if of_input else outputs)[layer] = scale.flatten()
    return outputs, inputs
