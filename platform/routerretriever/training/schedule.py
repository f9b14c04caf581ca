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


def domain_schedule(domains: int, total_steps: int, seed: int) -> list[tuple[int, int]]:
    """Which domain each step trains on, every one as often as the others, and which step of it that is."""
    order = np.random.default_rng([seed, 3]).permuted(
        np.tile(np.arange(domains), (-(-total_steps // domains), 1)), axis=1
    )
    taken = [0] * domains
    plan = []
    for chosen in order.reshape(-1)[:total_steps].tolist():
        plan.append((chosen, taken[chosen]))
        taken[chosen] += 1
    return plan
