"""How long a run is, how its learning rate changes, and which domain each step trains on."""

from __future__ import annotations

import numpy as np

from routerretriever.training.settings import TrainingSettings


def run_length(settings: TrainingSettings, steps_per_epoch: int) -> int:
    """Optimiser steps until training ends, if patience does not end it before."""
    limits = []
    if settings.max_steps is not None:
        limits.append(settings.max_steps)
    if settings.max_epochs is not None:
        limits.append(settings.max_epochs * steps_per_epoch)
    return min(limits)


def learning_rate_factor(settings: TrainingSettings, step: int, total_steps: int) -> float:
    """Share of the learning rate at a step: linear warm-up, then constant or linearly to zero."""
    warmup = max(1, round(settings.warmup_fraction * total_steps))
    if step < warmup:
        return (step + 1) / warmup
    if settings.schedule == "constant":
        return 1.0
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup))


class DomainSchedule:
    """Which domain each step trains on, every one as often as the others.

    Rounds are drawn when training comes to them: steps that patience is to save cost nothing.
    """

    def __init__(self, domains: int, seed: int) -> None:
        """Nothing is drawn yet."""
        self._domains = np.arange(domains)
        self._random = np.random.default_rng([seed, 3])
        self._rounds: list[list[int]] = []

    def at(self, step: int) -> tuple[int, int]:
        """The domain of a step, and which step of it that is."""
        turn, place = divmod(step, len(self._domains))
        while len(self._rounds) <= turn:
            self._rounds.append(self._random.permuted(self._domains).tolist())
        return self._rounds[turn][place], turn
