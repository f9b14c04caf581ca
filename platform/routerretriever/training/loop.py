"""The training loop that runs in every Ray Train worker of one expert.

Every look at dev leaves a checkpoint that holds all that is needed to go on: current weights, optimiser,
best adapter so far. A worker that is killed, or a run that is submitted again, continues from there.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import train
from ray.train import Checkpoint
from ray.train.torch import prepare_model

from routerretriever.adapters.settings import PrefixSettings
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.encoder.encoder import Encoder, load_encoder
from routerretriever.errors import TrainingFailed
from routerretriever.runtime.metrics import TRAINING_STEPS, WORKERS_REPLACED, drain, increment
from routerretriever.runtime.ray_metrics import export_to_ray
from routerretriever.training.domains import ADAPTER, Lesson, open_lesson
from routerretriever.training.job import BEST_FOLDER, TrainingJob
from routerretriever.training.objective import candidate_loss
from routerretriever.training.settings import TrainingSettings
from routerretriever.types import BASE

_STATE_FILE = "state.pt"
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Progress:
    """How far a run has come; part of every checkpoint."""

    step: int = 0
    best_step: int = 0
    best_dev: float = -1.0
    base_dev: float = 0.0
    looks_without_gain: int = 0
    seconds: float = 0.0
    history: list[tuple[int, float]] = field(default_factory=list)
    """Step and dev nDCG@10 of every look at dev."""
    resumed_at: list[int] = field(default_factory=list)
    """Steps from which a new worker went on after one was lost."""


def train_adapter(job: TrainingJob, store: ArtifactStore, board: Any) -> None:
    """Train one adapter as a worker of Ray Train; ``board`` is told how far it has come."""
    settings: TrainingSettings = job.training
    rank, workers = train.get_context().get_world_rank(), train.get_context().get_world_size()

    encoder = load_encoder(job.encoder.model_copy(update={"dtype": "fp32"}))
    torch.manual_seed(settings.seed)
    encoder.add_adapter(ADAPTER, settings.adapter, job.modules)
    lessons = [open_lesson(part, job, encoder, store, rank) for part in job.parts]

    tower = prepare_model(encoder.tower)
    weights = [weight for weight in encoder.tower.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    total_steps = run_length(settings, sum(lesson.examples.steps_per_epoch() for lesson in lessons))
    plan = lesson_plan(len(lessons), total_steps, settings.seed)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(settings, step, total_steps)
    )
    scaler = torch.amp.GradScaler(encoder.device.type, enabled=settings.precision == "fp16")
    scratch = Path(tempfile.mkdtemp())
    progress = _resume(scratch, encoder, optimizer, schedule, scaler)
    if progress.best_dev < 0:
        # The starting point competes too: a domain that gains nothing keeps the base's behaviour.
        if rank == 0:
            progress.best_dev = progress.base_dev = _dev_ndcg(encoder, lessons)
            if isinstance(settings.adapter, PrefixSettings):
                progress.base_dev = _dev_ndcg(encoder, lessons, BASE)  # a LoRA begins as the base
            encoder.save_adapter(ADAPTER, scratch / BEST_FOLDER)
        progress.history.append((0, progress.best_dev))
    if rank == 0:
        board.update.remote(job.name, progress.step, total_steps, progress.best_dev, False)

    autocast = (
        torch.autocast(encoder.device.type, dtype=_AUTOCAST[settings.precision])
        if settings.precision in _AUTOCAST
        else nullcontext()
    )
    clock = time.monotonic()
    while progress.step < total_steps:
        chosen, lesson_step = plan[progress.step]
        lesson = lessons[chosen]
        batch = lesson.examples.batch(lesson_step, rank, workers)
        # Dropout depends on the step alone, so a run that was resumed ends as one that was not.
        torch.manual_seed(hash((settings.seed, progress.step, rank)))
        lesson.enter(encoder)
        tower.train()
        with autocast:
            vectors = tower(*encoder.pad(batch.tokens))
            rows, candidates = lesson.candidates(batch.candidate_rows, encoder, tower)
        loss = candidate_loss(
            vectors.float(),
            candidates.float(),
            rows,
            batch.target_rows,
            batch.positive_rows,
            settings.temperature,
        )
        if not torch.isfinite(loss):
            raise TrainingFailed(
                f"{job.name}: the loss is {loss.item()} at step {progress.step}; lower "
                "training.learning_rate, raise training.temperature, or use precision bf16 or fp32"
            )
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(weights, settings.max_gradient_norm)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        progress.step += 1
        if progress.step % settings.evaluate_every and progress.step < total_steps:
            continue

        if rank == 0:
            dev = _dev_ndcg(encoder, lessons)
            progress.history.append((progress.step, dev))
            if dev > progress.best_dev:
                progress.best_dev, progress.best_step, progress.looks_without_gain = dev, progress.step, 0
                encoder.save_adapter(ADAPTER, scratch / BEST_FOLDER)
            else:
                progress.looks_without_gain += 1
        progress.seconds += time.monotonic() - clock
        clock = time.monotonic()
        stop = _from_first_worker(progress.looks_without_gain >= settings.patience, workers)
        done = stop or progress.step >= total_steps
        checkpoint = None
        if rank == 0:
            checkpoint = _checkpoint(scratch, encoder, optimizer, schedule, scaler, progress)
            board.update.remote(job.name, progress.step, total_steps, progress.best_dev, done)
        metrics = {
            **vars(progress),
            "parameters": sum(weight.numel() for weight in weights),
            "loss": loss.item(),
            "total_steps": total_steps,
            "done": done,
        }
        train.report(metrics, checkpoint=checkpoint)
        if done:
            break


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


def lesson_plan(lessons: int, total_steps: int, seed: int) -> list[tuple[int, int]]:
    """Which domain each step trains on, every one as often as the others, and which step of it that is."""
    order = np.random.default_rng([seed, 3]).permuted(
        np.tile(np.arange(lessons), (-(-total_steps // lessons), 1)), axis=1
    )
    taken = [0] * lessons
    plan = []
    for chosen in order.reshape(-1)[:total_steps].tolist():
        plan.append((chosen, taken[chosen]))
        taken[chosen] += 1
    return plan


def _dev_ndcg(encoder: Encoder, lessons: list[Lesson], adapter: str = ADAPTER) -> float:
    return float(np.mean([lesson.dev_ndcg(encoder, adapter) for lesson in lessons]))


def _from_first_worker(flag: bool, workers: int) -> bool:
    """The first worker alone looks at dev; the others follow its decision."""
    if workers == 1:
        return flag
    shared = torch.tensor([int(flag)], device=train.torch.get_device())
    torch.distributed.broadcast(shared, src=0)
    return bool(shared.item())


def _trainable(encoder: Encoder) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in encoder.tower.named_parameters() if weight.requires_grad}


def _checkpoint(
    scratch: Path, encoder: Encoder, optimizer: Any, schedule: Any, scaler: Any, progress: Progress
) -> Checkpoint:
    state = {
        "progress": vars(progress),
        "weights": {name: weight.detach().cpu() for name, weight in _trainable(encoder).items()},
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "scaler": scaler.state_dict(),
    }
    torch.save(state, scratch / _STATE_FILE)
    return Checkpoint.from_directory(str(scratch))


def _resume(scratch: Path, encoder: Encoder, optimizer: Any, schedule: Any, scaler: Any) -> Progress:
    checkpoint = train.get_checkpoint()
    if checkpoint is None:
        return Progress()
    with checkpoint.as_directory() as folder:
        shutil.copytree(folder, scratch, dirs_exist_ok=True)
    state = torch.load(scratch / _STATE_FILE, map_location=encoder.device, weights_only=True)
    for name, weight in _trainable(encoder).items():
        weight.data.copy_(state["weights"][name])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    scaler.load_state_dict(state["scaler"])
    progress = Progress(**state["progress"])
    progress.resumed_at.append(progress.step)
    return progress


@ray.remote
class Board:
    """Where running trainers note how far they are: at the start, and at every look at dev."""

    def __init__(self) -> None:
        export_to_ray()
        self._rows: dict[str, tuple[int, int, float, bool]] = {}

    def update(self, domain: str, step: int, total: int, best_dev: float, done: bool) -> None:
        """Note a domain's step and its best dev nDCG@10 so far."""
        if domain in self._rows:
            steps = step - self._rows[domain][0]
            # Only a worker that has just started comes with a step that was there before.
            increment(*((TRAINING_STEPS, steps) if steps > 0 else (WORKERS_REPLACED, 1)))
        self._rows[domain] = (step, total, best_dev, done)

    def read(self) -> dict[str, tuple[int, int, float, bool]]:
        """All notes, by domain."""
        return self._rows

    def counted(self) -> dict[str, int]:
        """What was counted here since this was last asked."""
        return drain()
