"""What a cluster adds: storage that is no disk, runs that share it, and machines that go away."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from conftest import WORDS, tiny_recipe, write_collection
from routerretriever.config.recipe import Recipe
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.runtime.metrics import DOCUMENTS_ENCODED, WORKERS_REPLACED, drain, increment
from routerretriever.runtime.progress import log
from routerretriever.runtime.shards import ShardWorker, run_shards
from routerretriever.settings import PoolSettings
from routerretriever.types import BASE
from ruamel.yaml import YAML

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]


@pytest.fixture
def one_node():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def messages():
    """What this process logs."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield lines
    log.removeHandler(handler)
    log.setLevel(level)


def save_recipe(recipe: Recipe, path: Path) -> Path:
    with path.open("w") as file:
        YAML().dump(recipe.model_dump(mode="json"), file)
    return path


def start_job(module: str, recipe: Path, output: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    with output.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", f"jobs.{module}", str(recipe)],
            cwd=recipe.parent,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def test_a_lost_worker_is_replaced_and_counted_and_no_shard_is_missing(one_node, tmp_path):
    class Worker(ShardWorker):
        def work(self, row: dict[str, int]) -> None:
            if row["shard"] == 2 and not (tmp_path / "died").exists():
                (tmp_path / "died").touch()
                os._exit(1)
            (tmp_path / f"done-{row['shard']}").touch()
            increment(DOCUMENTS_ENCODED, 10)

    drain()
    run_shards([{"shard": shard} for shard in range(5)], Worker, {}, PoolSettings(workers=1), "working")
    assert len(list(tmp_path.glob("done-*"))) == 5
    counts = drain()
    assert counts[WORKERS_REPLACED] == 1
    # What a worker had counted and not yet handed over goes with it.
    assert 40 <= counts[DOCUMENTS_ENCODED] <= 50


def test_two_runs_share_an_s3_storage_and_do_the_work_once(s3, one_node, messages, tmp_path):
    for name, words in WORDS.items():
        write_collection(tmp_path / "data" / name, words)
    recipe = tiny_recipe(tmp_path, storage="s3://bucket/runs")
    other = start_job("train", save_recipe(recipe, tmp_path / "recipe.yaml"), tmp_path / "other.log")
    assert set(Pipeline(recipe).router.experts) == {"fruit", "metal", BASE}
    assert other.wait(300) == 0, (tmp_path / "other.log").read_text()
    told = messages + (tmp_path / "other.log").read_text().splitlines()
    for work in ("encoded sport", "encoded fruit", "expert fruit: dev", "expert metal: dev"):
        assert len([line for line in told if work in line]) == 1, work
    assert any("waiting for another run" in line for line in told)
