"""One finished run of the tiny recipe for the whole session, and copies for tests that change theirs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from filelock import FileLock
from routerretriever.config.loading import parse_recipe
from routerretriever.config.recipe import Recipe

from support.collections import write_collections
from support.recipes import TINY_TRAINING, tiny_recipe

if TYPE_CHECKING:
    from routerretriever.pipeline.pipeline import Pipeline, Registered

REGISTRY = "mlflow*"
"""What below a storage belongs to MLflow. It holds absolute paths, so that a copy is registered anew."""


class Run(NamedTuple):
    """A recipe that has been run to its end, below ``root``."""

    pipeline: Pipeline
    registered: Registered
    root: Path


def built_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], None]) -> Path:
    """A folder that one of this session's processes builds; the others wait until it is whole."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    whole = folder.with_suffix(".whole")
    with FileLock(folder.with_suffix(".lock")):
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            build(folder)
            whole.touch()
    return folder


def finished_recipe(root: Path, **changes: Any) -> Recipe:
    """The recipe of the finished run: two experts, and the two kinds of single models.

    Its experts see more steps than they need, so that a test that kills a trainer has the time to.
    """
    training = {**TINY_TRAINING, "max_steps": 30, "patience": 1000}
    singles = {"joint": {"max_steps": 6}, "average": {"kind": "average"}}
    return tiny_recipe(root, **{"training": training, "methods": {"baselines": singles}, **changes})


def build_finished(root: Path) -> None:
    """Run it."""
    run_recipe(finished_recipe(write_collections(root)), root)


def run_recipe(recipe: Recipe, root: Path) -> Run:
    """Run a recipe to its end, or look up what a run has left."""
    from routerretriever.pipeline.pipeline import Pipeline

    pipeline = Pipeline(recipe)
    return Run(pipeline, pipeline.register(), root)


def put_fresh_experts(pipeline: Pipeline, root: Path) -> None:
    """Adapters as training begins with them, where the trained ones would lie."""
    from routerretriever.adapters.kinds import kind_named
    from routerretriever.adapters.tower import load_tower
    from routerretriever.methods.experts import Experts

    tower, adapter = load_tower(pipeline.recipe.encoder), pipeline.recipe.training.adapter
    for name, step in pipeline.method(Experts).train_steps.items():
        kind_named(adapter.kind).attach(tower, name, adapter)
        folder = root / "adapters" / name
        folder.mkdir(parents=True)
        kind_named(adapter.kind).save(tower, name, folder)
        pipeline.store.put_folder(step.key, folder)
        pipeline.store.commit(step.key, {"domain": name})


def copy_artifacts(finished: Path, root: Path) -> Path:
    """The finished run's data and artifacts as if they had been made at ``root``, which is given back."""
    return shutil.copytree(finished, root, dirs_exist_ok=True, ignore=shutil.ignore_patterns(REGISTRY))


def served(run: Run, merge: str = "weights", **serving: Any) -> Pipeline:
    """The run with other settings of the service; its bundle is released."""
    from routerretriever.pipeline.pipeline import Pipeline
    from routerretriever.registry.registry import Registry

    values = run.pipeline.recipe.model_dump(mode="json")
    # The fake experts are too weak for a fair validation; what it refuses is tested apart from them.
    ours = {"poll_seconds": 0.5, "max_validation_loss": 0.99, "challenger_share": 0.5, "shadow_share": 1.0}
    releases = {**values["serving"]["releases"], **ours}
    values["routing"] |= {"merge": merge}
    values["serving"] |= {"refresh_seconds": 0, "compact_every": 2, "releases": releases, **serving}
    changed = Pipeline(parse_recipe(values))
    Registry(changed.recipe.registry, changed.store).release(run.registered.version)
    return changed
