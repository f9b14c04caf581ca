"""The training loop of one adapter, from one evaluation on dev to the next. Knows nothing of Ray.

Ray Train's workers run it (``worker``), and trials of a search over settings, which take turns with several
domains. At every evaluation it can save all that is needed to go on: current weights, optimiser, best adapter
so far.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from routerretriever.adapters.kinds import kind_named
from routerretriever.adapters.tower import QueryTower, load_tower
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.errors import TrainingFailed
from routerretriever.measures import Values
from routerretriever.training.domains import ADAPTER, TrainingDomain, open_domain
from routerretriever.training.dropout import draw_in_words
from routerretriever.training.job import BEST_FOLDER, HELD_OUT_FILE, UNDEPLOYED_FOLDER, TrainingJob
from routerretriever.training.objective import candidate_loss
from routerretriever.training.scaling import copies, scale_weights, weights_set
from routerretriever.training.schedule import domain_schedule, learning_rate_factor, run_length
from routerretriever.training.selection import HeldOut, Selected, select
from routerretriever.training.settings import TrainingSettings
from routerretriever.training.soup import Soup
from routerretriever.training.speculation import Speculation
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
    evaluations_since_best: int = 0
    seconds: float = 0.0
    history: list[tuple[int, float]] = field(default_factory=list)
    """Step and dev nDCG@10 of every evaluation on dev."""
    resumed_at: list[int] = field(default_factory=list)
    """Steps from which a new worker went on after one was lost."""
    base_values: list[float] = field(default_factory=list)
    """A fold's: the base's nDCG@10 on each held-out query [Q]."""
    scaled_values: list[list[list[float]]] = field(default_factory=list)
    """A fold's: nDCG@10 by evaluation, scale and held-out query [T, S, Q]."""


@dataclass(frozen=True)
class Evaluation:
    """Where a run is: at its start, and after every evaluation on dev."""

    progress: Progress
    """Changes as the run goes on."""
    total_steps: int
    """Steps at most."""
    parameters: int
    """Trainable weights."""
    loss: float | None
    """Of the last step; None before this process has taken one."""
    done: bool
    selected: Selected | None
    """What was found of step and scale, at the end of a run that looks for them."""
    save: Callable[[], Path]
    """Writes what is needed to go on into a folder, which a later call writes again."""


def evaluations(
    job: TrainingJob,
    store: ArtifactStore,
    rank: int = 0,
    workers: int = 1,
    resume_from: Path | None = None,
    prepare: Callable[[nn.Module], nn.Module] = lambda tower: tower,
    speculation: Speculation | None = None,
) -> Iterator[Evaluation]:
    """Train one adapter; pauses at the start and after every evaluation on dev.

    Args:
        job: what to train on what.
        store: where its inputs lie.
        rank: number of this worker; the first alone evaluates.
        workers: that share each batch. More than one are in one torch process group.
        resume_from: what ``Evaluation.save`` wrote.
        prepare: makes the tower one of several workers'.
        speculation: for a job whose folds are in training; of one worker.

    Raises:
        TrainingFailed: the loss is no finite number, or a fold has failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        settings: TrainingSettings = job.training
        encoder = load_tower(job.encoder.model_copy(update={"dtype": "fp32"}))
        torch.manual_seed(settings.seed)
        encoder.add_adapter(ADAPTER, settings.adapter, job.modules)
        draw_in_words(encoder.tower)
        domains = [open_domain(part, job, encoder, store, rank) for part in job.parts]

        tower = prepare(encoder.tower)
        weights = _trainable(encoder)
        total_steps = run_length(settings, sum(domain.examples.steps_per_epoch() for domain in domains))
        plan = domain_schedule(len(domains), total_steps, settings.seed)
        soup = Soup(weights, settings, lambda step: learning_rate_factor(settings, step, total_steps))
        best: dict[str, torch.Tensor] = {}
        progress = _resume(resume_from, scratch, encoder, soup, best)
        if progress.best_dev < 0:
            # The starting point competes too: a domain that gains nothing keeps the base's behaviour.
            if rank == 0:
                progress.best_dev = progress.base_dev = _dev_ndcg(encoder, domains)
                if not kind_named(settings.adapter.kind).starts_as_base:
                    progress.base_dev = _dev_ndcg(encoder, domains, BASE)
                if job.selection == "fold":
                    progress.base_values = domains[0].dev_values(encoder, BASE).tolist()
                best.update(copies(_trainable(encoder)))
                encoder.save_adapter(ADAPTER, scratch / BEST_FOLDER)
            progress.history.append((0, progress.best_dev))

        def evaluation(loss: float | None, done: bool, selected: Selected | None) -> Evaluation:
            parameters = sum(weight.numel() for weight in weights.values())
            return Evaluation(
                progress, total_steps, parameters, loss, done, selected,
                lambda: _save(scratch, soup, progress, best),
            )  # fmt: skip

        yield evaluation(None, False, None)
        autocast = (
            torch.autocast(encoder.device.type, dtype=_AUTOCAST[settings.precision])
            if settings.precision in _AUTOCAST
            else nullcontext()
        )

        def loss_of(copy: int) -> torch.Tensor:
            chosen, domain_step = plan[progress.step]
            domain = domains[chosen]
            batch = domain.examples.batch(domain_step, rank, workers, copy)
            # Dropout depends on step and copy alone, so a run that was resumed ends as one that was not.
            torch.manual_seed(hash((settings.seed, progress.step, rank, *([copy] if copy else []))))
            domain.enter(encoder)
            tower.train()
            with autocast:
                vectors = encoder.embed_with_gradients(batch.tokens, tower)
                rows, candidates = domain.candidates(batch.candidate_rows, encoder, tower)
            loss = candidate_loss(
                vectors.float(),
                candidates.float(),
                rows,
                batch.target_rows,
                batch.positive_rows,
                settings.temperature,
                domain.teacher_scores(batch, rows, candidates.float()),
                settings.distillation,
                settings.mask_above,
            )
            if not torch.isfinite(loss):
                raise TrainingFailed(
                    f"{job.name}: the loss is {loss.item()} at step {progress.step}; lower "
                    "training.learning_rate, raise training.temperature, or use precision bf16 or fp32"
                )
            return loss

        clock = time.monotonic()
        is_chosen = job.selection == "chosen"
        last_step = total_steps if job.chosen is None else min(total_steps, job.chosen.choice.step)
        loss, done = None, False
        while not done:
            try:
                loss = soup.step(loss_of)
            except TrainingFailed:
                # What happens after the chosen step does no harm.
                if speculation is None or speculation.wait().choice.step > progress.step:
                    raise
                done = True
            else:
                progress.step += 1
                if progress.step % settings.evaluate_every and progress.step < last_step:
                    continue

            if rank == 0 and not done:
                if job.selection == "fold":
                    values_SQ = _scaled_values(encoder, domains[0], settings.scales)
                    progress.scaled_values.append(values_SQ.tolist())
                    dev = float(values_SQ.mean(axis=1).max())  # patience waits for any scale
                else:
                    dev = _dev_ndcg(encoder, domains)
                progress.history.append((progress.step, dev))
                if dev > progress.best_dev or (is_chosen and progress.step == last_step):
                    progress.best_dev, progress.best_step = dev, progress.step
                    progress.evaluations_since_best = 0
                    best.update(copies(_trainable(encoder)))
                    encoder.save_adapter(ADAPTER, scratch / BEST_FOLDER)
                else:
                    progress.evaluations_since_best += 1
                if speculation is not None:
                    speculation.keep(progress.step, _trainable(encoder))
                    done = speculation.is_over(progress.step)
            progress.seconds += time.monotonic() - clock
            out_of_patience = not is_chosen and progress.evaluations_since_best >= settings.patience
            done = _from_first_worker(done or out_of_patience, workers, encoder.device)
            done |= progress.step >= last_step
            selected = None
            if done and rank == 0:
                if speculation is not None:
                    job = replace(job, chosen=_go_back(speculation, progress, best))
                selected = _finish(job, encoder, domains, best, progress, scratch / BEST_FOLDER)
            yield evaluation(loss, done, selected)
            clock = time.monotonic()


def _go_back(speculation: Speculation, progress: Progress, best: dict[str, torch.Tensor]) -> Selected:
    """To the step that the folds have chosen, as if training had ended there; returns what they chose."""
    selected = speculation.wait()
    best.update(speculation.weights())
    progress.history = [each for each in progress.history if each[0] <= selected.choice.step]
    progress.step, progress.best_dev = progress.history[-1]
    progress.best_step = progress.step
    return selected


def _dev_ndcg(encoder: QueryTower, domains: list[TrainingDomain], adapter: str = ADAPTER) -> float:
    return float(np.mean([domain.dev_ndcg(encoder, adapter) for domain in domains]))


def _scaled_values(encoder: QueryTower, domain: TrainingDomain, scales: Sequence[float]) -> Values:
    """nDCG@10 of shares of the adapter as it is now, on each held-out query: [S, Q]."""
    weights, now = _trainable(encoder), copies(_trainable(encoder))
    values = []
    for scale in scales:
        with weights_set(weights, scale_weights(now, scale)):
            values.append(domain.dev_values(encoder, ADAPTER))
    return np.stack(values)


def _finish(
    job: TrainingJob,
    encoder: QueryTower,
    domains: list[TrainingDomain],
    best: dict[str, torch.Tensor],
    progress: Progress,
    folder: Path,
) -> Selected | None:
    """Choose the scale of the best adapter, and write it so; None where nothing is to be chosen."""
    settings = job.training
    if job.selection == "fold":
        steps = [step for step, _ in progress.history[1:]]
        np.savez(
            folder / HELD_OUT_FILE,
            steps=np.array(steps),
            scales=np.array(settings.scales),
            ndcg_TSQ=np.array(progress.scaled_values),
            base_Q=np.array(progress.base_values),
        )
        return None
    if job.selection == "best_step":
        return None
    weights = _trainable(encoder)
    if job.chosen is not None:
        selected = job.chosen
    else:
        with weights_set(weights, best):
            values_SQ = _scaled_values(encoder, domains[0], settings.scales)
        held_out = HeldOut(
            (progress.best_step,), settings.scales, values_SQ[None], domains[0].dev_values(encoder, BASE)
        )
        selected = select(held_out, settings.confidence)
    deployed = selected.verdict.deployed
    if not deployed:
        with weights_set(weights, scale_weights(best, selected.choice.scale)):
            encoder.save_adapter(ADAPTER, folder / UNDEPLOYED_FOLDER)
    # An expert that is not deployed answers as the base does, to the last bit.
    with weights_set(weights, scale_weights(best, selected.choice.scale if deployed else 0.0)):
        encoder.save_adapter(ADAPTER, folder)
    return selected


def _from_first_worker(flag: bool, workers: int, device: torch.device) -> bool:
    """The first worker alone evaluates on dev; the others follow its decision."""
    if workers == 1:
        return flag
    shared = torch.tensor([int(flag)], device=device)
    torch.distributed.broadcast(shared, src=0)
    return bool(shared.item())


def _trainable(encoder: QueryTower) -> dict[str, torch.nn.Parameter]:
    return {name: weight for name, weight in encoder.tower.named_parameters() if weight.requires_grad}


def _save(scratch: Path, soup: Soup, progress: Progress, best: dict[str, torch.Tensor]) -> Path:
    state = {
        "progress": vars(progress),
        "copies": soup.state(),
        "best": {name: weight.cpu() for name, weight in best.items()},
    }
    torch.save(state, scratch / _STATE_FILE)
    return scratch


def _resume(
    saved: Path | None, scratch: Path, encoder: QueryTower, soup: Soup, best: dict[str, torch.Tensor]
) -> Progress:
    if saved is None:
        return Progress()
    shutil.copytree(saved, scratch, dirs_exist_ok=True)
    state = torch.load(scratch / _STATE_FILE, map_location=encoder.device, weights_only=True)
    soup.restore(state["copies"])
    best.update(state["best"])
    progress = Progress(**state["progress"])
    progress.resumed_at.append(progress.step)
    return progress
