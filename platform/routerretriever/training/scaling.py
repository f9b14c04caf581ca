"""Part of an adapter, its weights moved towards those that change nothing; and the mean of several.

A LoRA's update is a product A B, so B times the scale is exactly the scaled update. IA3 multiplies
activations, so its factors move towards one. A prefix has no such form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from routerretriever.errors import BadInput


def scale_weights(weights: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Weights of the adapter at a scale, by name; 1 gives them as they are, 0 those of the base.

    Raises:
        BadInput: this kind of adapter cannot be scaled.
    """
    if scale == 1:
        return dict(weights)
    scaled = {}
    for name, weight in weights.items():
        if "lora_B" in name:
            weight = weight * scale
        elif "ia3_l" in name:
            weight = 1 + (weight - 1) * scale
        elif "lora_A" not in name:
            raise BadInput(
                f"training.selection: adapters of this kind cannot be scaled (weight {name}); "
                "use a LoRA or IA3, or set training.selection: best_step"
            )
        scaled[name] = weight
    return scaled


def mean_weights(adapters: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The plain mean of adapters' weights, by name; of a single one its own."""
    if len(adapters) == 1:
        return dict(adapters[0])
    return {name: torch.stack([one[name] for one in adapters]).mean(dim=0) for name in adapters[0]}


@contextmanager
def weights_set(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Within, parameters have other values; afterwards they are what they were to the last bit."""
    before = copies(parameters)
    set_weights(parameters, weights)
    try:
        yield
    finally:
        set_weights(parameters, before)


def copies(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their values as they are now."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def set_weights(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Parameters take other values."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
