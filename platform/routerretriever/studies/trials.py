"""Running the trials of a search with Ray Tune, as many at once as the cluster holds.

A trial is one process with a worker's resources, whatever ``training.workers`` is. It takes turns with its
domains, from one evaluation on dev to the next, so that ASHA (arXiv 1810.05934) sees the mean over all of
them and can end it early. What a trial reached is kept as an artifact under the hash of its settings and
data. A search that is run again plays these back, so that what is left is judged as if all had run together.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.config.tuning import describe
from routerretriever.errors import TrainingFailed, failure_reason
from routerretriever.runtime.cluster import connect
from routerretriever.runtime.progress import RUN_ID, at_work, log
from routerretriever.studies.training_search import Search, TrainingTrial, TrialRun
from routerretriever.training.trainers import resources_of, room_to_train


def run_search(search: Search, store: ArtifactStore) -> list[TrainingTrial]:
    """What all trials reached, in the order of their plans; those without a result are run.

    Raises:
        TrainingFailed: one or more could not be run; the others are kept.
        KeyboardInterrupt: the search was interrupted; trials that had ended are kept.
    """
    results = [search.result(plan, store) for plan in search.plans]
    if None in results:
        failures = run_trials(search, store)
        results = [search.result(plan, store) for plan in search.plans]
        if failures:
            listed = "\n".join(f"  {what}: {reason}" for what, reason in failures.items())
            raise TrainingFailed(
                f"{len(failures)} of {len(results)} trials failed; the others are kept, and running the same "
                f"command again tries these again\n{listed}"
            )
        if None in results:
            raise KeyboardInterrupt  # Tune has ended quietly
    return [result for result in results if result is not None]


def run_trials(search: Search, store: ArtifactStore) -> dict[str, str]:
    """Run Tune to its end, or to an interrupt; returns the trials that failed, with reasons."""
    connect()
    logging.getLogger("ray.tune").setLevel(
        logging.ERROR
    )  # after an interrupt it tells how to go on without us
    plans = search.plans
    training = plans[0].training  # trials differ in what is learned, not in what they run on
    at_once = room_to_train(training, workers=1)
    log.info("%d trials, %d at once", len(plans), at_once)
    name = f"{search.identity}-{RUN_ID}"
    filesystem, folder = store.arrow("tuning")
    place = tune.PlacementGroupFactory(
        [resources_of(training)], bundle_label_selector=[dict(training.labels)] if training.labels else None
    )
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, search=search, store=store), place),
        param_space={"number": tune.grid_search(list(range(len(plans))))},
        tune_config=tune.TuneConfig(
            metric="mean_gain",
            mode="max",
            max_concurrent_trials=at_once,
            scheduler=ASHAScheduler(
                time_attr="training_iteration",
                # Beyond the longest: trials end by themselves.
                max_t=max(search.settings.grace_evaluations, *(plan.evaluations for plan in plans)) + 1,
                grace_period=search.settings.grace_evaluations,
                reduction_factor=search.settings.reduction,
            ),
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=folder,
            storage_filesystem=filesystem,
            failure_config=tune.FailureConfig(max_failures=training.max_failures),
            callbacks=[KeepResults(search, store)],
            verbose=0,
        ),
    )
    try:
        with at_work(f"running {len(plans)} trials"):
            outcome = tuner.fit()
    finally:
        store.delete(f"tuning/{name}")
    return {
        describe(plans[each.config["number"]].values): failure_reason(each.error)
        for each in outcome
        if each.error is not None
    }


def run_trial(config: Mapping[str, Any], search: Search, store: ArtifactStore) -> None:
    """What Tune runs for a trial; reports the mean gain after each evaluation of all domains."""
    from routerretriever.training.loop import evaluations

    os.chdir(os.environ["TUNE_ORIG_WORKING_DIR"])  # a recipe's relative paths start there
    plan = search.plans[config["number"]]
    known = search.result(plan, store)
    if known is not None:
        evaluated = max(1, len(known.course()))
        for count in range(1, evaluated + 1):
            _report(known, count, ended=count == evaluated)
        return
    running = {number: evaluations(job, store) for number, job in enumerate(plan.jobs)}
    runs: dict[int, TrialRun] = {}
    failed = None
    while running and failed is None:
        for number, run in list(running.items()):
            try:
                now = next(run)
            except TrainingFailed as error:
                failed = str(error)
                break
            job, seen = plan.jobs[number], now.progress
            runs[number] = TrialRun(
                job.name, job.training.seed, seen.base_dev, list(seen.history), seen.seconds
            )
            if now.done:
                del running[number]
        trial = TrainingTrial(plan.values, plan.training, list(runs.values()), failed=failed)
        count = len(trial.course())
        if count or failed is not None:
            _report(trial, count, ended=failed is not None or not running)


def _report(trial: TrainingTrial, evaluated: int, ended: bool) -> None:
    course = trial.course()[:evaluated]
    tune.report(
        {
            "mean_gain": course[-1] if course else 0.0,
            "ended": ended,
            "result": {"runs": [asdict(run) for run in trial.runs], "failed": trial.failed},
        }
    )


class KeepResults(tune.Callback):
    """Keeps what a trial reached when it ends, in the process that looks after all of them."""

    def __init__(self, search: Search, store: ArtifactStore) -> None:
        self._search, self._store = search, store

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """Tune has set ``done`` if this was the trial's last result: ASHA ends it here."""
        if not (result["ended"] or result["done"]):
            return
        plan = self._search.plans[trial.config["number"]]
        if self._search.result(plan, self._store) is None:
            stopped = not result["ended"]
            content = result["result"] | {"kind": "trial", "stopped": stopped}
            self._store.commit(self._search.key(plan, stopped), content)
            reached = TrainingTrial.read(plan, content)
            log.info(
                "trial %s: mean gain %+.2f nDCG@10 x 100 on dev, %s",
                describe(plan.values), 100 * reached.mean_gain, reached.ended,
            )  # fmt: skip
