"""The training loop of one adapter, from one evaluation on dev to the next. Knows nothing of Ray.

Ray Train's workers run it (``worker``), and trials of a search over settings, which take turns with several
domains. At every evaluation it can save all that is needed to go on: current weights, optimiser, best adapter
so far.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from routerretriever.adapters.kinds import kind_named
from routerretriever.adapters.tower import load_tower
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.encoder.spread import spread_of, temperature_scale
from routerretriever.errors import TrainingFailed
from routerretriever.training.domains import ADAPTER, open_domain
from routerretriever.training.dropout import draw_in_words
from routerretriever.training.job import BEST_FOLDER, HELD_OUT_FILE, UNDEPLOYED_FOLDER, TrainingJob
from routerretriever.training.objective import candidate_loss
from routerretriever.training.scaling import copies, scale_weights, weights_set
from routerretriever.training.schedule import DomainSchedule, learning_rate_factor, run_length
from routerretriever.training.selection import HeldOut, Selected, select
from routerretriever.training.soup import Soup
from routerretriever.training.speculation import Speculation
from routerretriever.types import BASE, Values

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
        run = _Run(job, store, Path(folder), rank, workers, prepare, speculation)
        run.start(resume_from)
        yield run.evaluation(None)
        while not run.done:
            clock = time.monotonic()
            run.advance()
            run.progress.seconds += time.monotonic() - clock
            yield run.evaluation(run.finish() if run.done and rank == 0 else None)


class _Run:
    """One run, on one worker."""

    def __init__(
        self,
        job: TrainingJob,
        store: ArtifactStore,
        scratch: Path,
        rank: int,
        workers: int,
        prepare: Callable[[nn.Module], nn.Module],
        speculation: Speculation | None,
    ) -> None:
        """Load the base with a new adapter, and the domains; see ``evaluations``."""
        self.job, self.settings = job, job.training
        self.rank, self.workers = rank, workers
        self.scratch, self.speculation = scratch, speculation
        self.encoder = load_tower(job.encoder.model_copy(update={"dtype": "fp32"}))
        # Of settings that suit any encoder: scores of one with narrow cosines hardly differ.
        self.temperature = self.settings.temperature * temperature_scale(spread_of(self.encoder))
        torch.manual_seed(self.settings.seed)
        self.encoder.add_adapter(ADAPTER, self.settings.adapter, job.modules)
        draw_in_words(self.encoder.tower)
        self.domains = [open_domain(part, job, self.encoder, store, rank) for part in job.parts]

        self.tower = prepare(self.encoder.tower)
        self.total_steps = run_length(
            self.settings, sum(domain.examples.steps_per_epoch() for domain in self.domains)
        )
        self.last_step = self.total_steps
        if job.chosen is not None:
            self.last_step = min(self.total_steps, job.chosen.choice.step)
        self.plan = DomainSchedule(len(self.domains), self.settings.seed)
        self.parameters = sum(weight.numel() for weight in self.weights.values())
        self.soup = Soup(self.weights, self.settings, self._learning_rate_factor)
        self.best: dict[str, torch.Tensor] = {}
        self.progress = Progress()
        self.loss: float | None = None
        self.done = False

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """Those in training, by name."""
        return {
            name: weight for name, weight in self.encoder.tower.named_parameters() if weight.requires_grad
        }

    def evaluation(self, selected: Selected | None) -> Evaluation:
        """Where the run is now."""
        return Evaluation(
            self.progress, self.total_steps, self.parameters, self.loss, self.done, selected, self._save
        )

    # Start and end

    def start(self, saved: Path | None) -> None:
        """Go on from what was saved, or measure the starting point."""
        if saved is not None:
            self._restore(saved)
        progress = self.progress
        if progress.best_dev >= 0:
            return
        # The starting point competes too: a domain that gains nothing keeps the base's behaviour.
        if self.rank == 0:
            progress.best_dev = progress.base_dev = self._dev_ndcg()
            if not kind_named(self.settings.adapter.kind).starts_as_base:
                progress.base_dev = self._dev_ndcg(BASE)
            if self.job.selection == "fold":
                progress.base_values = self.domains[0].dev_values(self.encoder, BASE).tolist()
            self._keep_as_best()
        progress.history.append((0, progress.best_dev))

    def finish(self) -> Selected | None:
        """Choose the scale of the best adapter, and write it so; None where nothing is to be chosen."""
        folder = self.scratch / BEST_FOLDER
        if self.job.selection == "best_step":
            return None
        if self.job.selection == "fold":
            np.savez(
                folder / HELD_OUT_FILE,
                steps=np.array([step for step, _ in self.progress.history[1:]]),
                scales=np.array(self.settings.scales),
                ndcg_TSQ=np.array(self.progress.scaled_values),
                base_Q=np.array(self.progress.base_values),
            )
            return None
        selected = self._go_back() if self.speculation else self.job.chosen or self._choose_on_dev()
        if not selected.verdict.deployed:
            self._write(selected.choice.scale, folder / UNDEPLOYED_FOLDER)
        # An expert that is not deployed answers as the base does, to the last bit.
        self._write(selected.choice.scale if selected.verdict.deployed else 0.0, folder)
        return selected

    def _go_back(self) -> Selected:
        """To the step that the folds have chosen, as if training had ended there; returns what they chose."""
        assert self.speculation is not None
        selected, progress = self.speculation.wait(), self.progress
        self.best.update(self.speculation.weights())
        progress.history = [each for each in progress.history if each[0] <= selected.choice.step]
        progress.step, progress.best_dev = progress.history[-1]
        progress.best_step = progress.step
        return selected

    def _choose_on_dev(self) -> Selected:
        """A scale for the step that is best on dev."""
        with weights_set(self.weights, self.best):
            values_SQ = self._scaled_values()
        base_Q = self.domains[0].dev_values(self.encoder, BASE)
        held_out = HeldOut((self.progress.best_step,), self.settings.scales, values_SQ[None], base_Q)
        return select(held_out, self.settings.confidence)

    def _write(self, scale: float, folder: Path) -> None:
        with weights_set(self.weights, scale_weights(self.best, scale)):
            self.encoder.save_adapter(ADAPTER, folder)

    # Steps

    def advance(self) -> None:
        """Take steps up to the next evaluation, and evaluate."""
        out_of_patience = False
        try:
            self._take_steps()
        except TrainingFailed:
            # What happens after the chosen step does no harm.
            if self.speculation is None or self.speculation.wait().choice.step > self.progress.step:
                raise
            self.done = True
        else:
            if self.rank == 0:
                out_of_patience = self._evaluate()
        self.done = _from_first_worker(self.done or out_of_patience, self.workers, self.encoder.device)
        self.done |= self.progress.step >= self.last_step

    def _take_steps(self) -> None:
        while True:
            self.loss = self.soup.step(self._loss_of)
            step = self.progress.step + 1
            is_due = step % self.settings.evaluate_every == 0 or step >= self.last_step
            # The loss tells of the weights before the step; those after the last one become the expert.
            if is_due and not all(torch.isfinite(weight).all() for weight in self.weights.values()):
                raise self._diverged(f"a weight is no finite number after step {self.progress.step}")
            self.progress.step = step
            if is_due:
                return

    def _loss_of(self, copy: int) -> torch.Tensor:
        """A copy's loss on its batch of this step."""
        settings, step = self.settings, self.progress.step
        chosen, domain_step = self.plan.at(step)
        domain = self.domains[chosen]
        batch = domain.examples.batch(domain_step, self.rank, self.workers, copy)
        # Dropout depends on step and copy alone, so a run that was resumed ends as one that was not.
        torch.manual_seed(hash((settings.seed, step, self.rank, *([copy] if copy else []))))
        domain.enter(self.encoder)
        self.tower.train()
        with self._autocast():
            vectors = self.encoder.embed_with_gradients(batch.tokens, self.tower)
            rows, candidates = domain.candidates(batch.candidate_rows, self.encoder, self.tower)
        loss = candidate_loss(
            vectors.float(),
            candidates.float(),
            rows,
            batch.target_rows,
            batch.positive_rows,
            self.temperature,
            domain.teacher_scores(batch, rows, candidates.float()),
            settings.distillation,
            settings.mask_above,
            batch.left_out_rows,
        )
        if not torch.isfinite(loss):
            raise self._diverged(f"the loss is {loss.item()} at step {step}")
        return loss

    def _diverged(self, what: str) -> TrainingFailed:
        return TrainingFailed(
            f"{self.job.name}: {what}; lower training.learning_rate, raise training.temperature, or use "
            "precision bf16 or fp32"
        )

    def _learning_rate_factor(self, step: int) -> float:
        return learning_rate_factor(self.settings, step, self.total_steps)

    def _autocast(self) -> AbstractContextManager[None]:
        if self.settings.precision not in _AUTOCAST:
            return nullcontext()
        return torch.autocast(self.encoder.device.type, dtype=_AUTOCAST[self.settings.precision])

    # Evaluation

    def _evaluate(self) -> bool:
        """Measure on dev, and keep the best; whether training is to stop."""
        progress, is_chosen = self.progress, self.job.selection == "chosen"
        if self.job.selection == "fold":
            values_SQ = self._scaled_values()
            progress.scaled_values.append(values_SQ.tolist())
            dev = float(values_SQ.mean(axis=1).max())  # patience waits for any scale
        else:
            dev = self._dev_ndcg()
        progress.history.append((progress.step, dev))
        if dev > progress.best_dev or (is_chosen and progress.step == self.last_step):
            progress.best_dev, progress.best_step = dev, progress.step
            progress.evaluations_since_best = 0
            self._keep_as_best()
        else:
            progress.evaluations_since_best += 1
        if self.speculation is not None:
            self.speculation.keep(progress.step, self.weights)
            return self.speculation.is_over(progress.step)
        return not is_chosen and progress.evaluations_since_best >= self.settings.patience

    def _keep_as_best(self) -> None:
        self.best.update(copies(self.weights))
        self.encoder.save_adapter(ADAPTER, self.scratch / BEST_FOLDER)

    def _dev_ndcg(self, adapter: str = ADAPTER) -> float:
        return float(np.mean([domain.dev_ndcg(self.encoder, adapter) for domain in self.domains]))

    def _scaled_values(self) -> Values:
        """nDCG@10 of shares of the adapter as it is now, on each held-out query: [S, Q]."""
        weights, now = self.weights, copies(self.weights)
        values = []
        for scale in self.settings.scales:
            with weights_set(weights, scale_weights(now, scale)):
                values.append(self.domains[0].dev_values(self.encoder, ADAPTER))
        return np.stack(values)

    # State

    def _save(self) -> Path:
        state = {
            "progress": vars(self.progress),
            "copies": self.soup.state(),
            "best": {name: weight.cpu() for name, weight in self.best.items()},
        }
        torch.save(state, self.scratch / _STATE_FILE)
        return self.scratch

    def _restore(self, saved: Path) -> None:
        shutil.copytree(saved, self.scratch, dirs_exist_ok=True)
        state = torch.load(self.scratch / _STATE_FILE, map_location=self.encoder.device, weights_only=True)
        self.soup.restore(state["copies"])
        self.best.update(state["best"])
        self.progress = Progress(**state["progress"])
        self.progress.resumed_at.append(self.progress.step)


def _from_first_worker(flag: bool, workers: int, device: torch.device) -> bool:
    """The first worker alone evaluates on dev; the others follow its decision."""
    if workers == 1:
        return flag
    shared = torch.tensor([int(flag)], device=device)
    torch.distributed.broadcast(shared, src=0)
    return bool(shared.item())
