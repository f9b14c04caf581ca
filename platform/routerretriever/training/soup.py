"""Copies of one adapter in training, whose mean becomes the expert (model soups, arXiv 2203.05482).

All copies start from the same weights and differ in the order of the queries, in samples and in dropout.
Were they initialised by seeds of their own, the mean of a LoRA's factors would not be near the mean of its
updates: the product of mean factors mixes every copy's A with every other's B. From one start the copies stay
close, as the soups of the paper do, which are fine-tuned from one pre-trained model. The other way, to
average the updates and factor them again, needs the rank of all copies together to be exact.

Copies take turns in the tower, so a step of the loop is one optimiser step of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from routerretriever.training.scaling import copies, mean_weights, set_weights
from routerretriever.training.settings import TrainingSettings


class Copy:
    """One copy: its optimiser, and its weights while another is in the tower."""

    def __init__(
        self, parameters: Mapping[str, Parameter], settings: TrainingSettings, factor: Callable[[int], float]
    ) -> None:
        # A single copy stays in the tower: its weights are the tower's own.
        self.weights: Mapping[str, Tensor] = copies(parameters) if settings.soup > 1 else parameters
        self.optimizer = torch.optim.AdamW(
            parameters.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        device = next(iter(parameters.values())).device.type
        self.scaler = torch.amp.GradScaler(device, enabled=settings.precision == "fp16")

    def state(self) -> dict[str, Any]:
        """All that is needed to go on."""
        return {
            "weights": {name: weight.detach().cpu() for name, weight in self.weights.items()},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        set_weights(self.weights, state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])


class Soup:
    """The copies. Between steps the tower holds their mean."""

    def __init__(
        self, parameters: Mapping[str, Parameter], settings: TrainingSettings, factor: Callable[[int], float]
    ) -> None:
        """Start all copies from the tower's weights.

        Args:
            parameters: the tower's trainable ones, by name.
            settings: how each copy is trained.
            factor: share of the learning rate at a step.
        """
        self._parameters = parameters
        self._max_norm = settings.max_gradient_norm
        self._copies = [Copy(parameters, settings, factor) for _ in range(settings.soup)]

    def step(self, loss_of: Callable[[int], Tensor]) -> float:
        """One optimiser step of each copy; the mean of their losses.

        Args:
            loss_of: given a copy's number, its loss with the weights that are in the tower.
        """
        losses = []
        for number, copy in enumerate(self._copies):
            set_weights(self._parameters, copy.weights)
            loss = loss_of(number)
            copy.optimizer.zero_grad(set_to_none=True)
            copy.scaler.scale(loss).backward()
            copy.scaler.unscale_(copy.optimizer)
            torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._max_norm)
            copy.scaler.step(copy.optimizer)
            copy.scaler.update()
            copy.schedule.step()
            set_weights(copy.weights, self._parameters)
            losses.append(loss.item())
        self._serve()
        return sum(losses) / len(losses)

    def state(self) -> list[dict[str, Any]]:
        """All that is needed to go on, for each copy."""
        return [copy.state() for copy in self._copies]

    def restore(self, states: list[dict[str, Any]]) -> None:
        """Go on from a state."""
        for copy, state in zip(self._copies, states, strict=True):
            copy.restore(state)
        self._serve()

    def _serve(self) -> None:
        set_weights(self._parameters, mean_weights([copy.weights for copy in self._copies]))
