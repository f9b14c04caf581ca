"""What a cluster adds: storage that is no disk, runs that share it, and machines that go away."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from routerretriever.runtime import shards
from routerretriever.runtime.metrics import DOCUMENTS_ENCODED, WORKERS_REPLACED, drain, increment
from routerretriever.runtime.shards import ShardWorker, run_shards
from routerretriever.settings import PoolSettings
from support.paths import ROOT
from support.recipes import save_recipe, tiny_recipe

pytestmark = pytest.mark.integration


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


def test_a_lost_worker_is_replaced_and_counted_and_no_shard_is_missing(cluster, tmp_path):
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


def test_progress_is_told_as_soon_as_it_is_made(cluster, tmp_path, monkeypatch):
    seen = tmp_path / "seen"

    class Worker(ShardWorker):
        def work(self, row: dict[str, int]) -> None:
            deadline = time.monotonic() + 60
            while row["shard"] and not seen.exists():
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def track(done, description, total):
        for each in done:
            seen.touch()
            yield each

    monkeypatch.setattr(shards, "track", track)
    run_shards([{"shard": shard} for shard in range(2)], Worker, {}, PoolSettings(workers=2), "working")
    assert seen.exists()


def test_two_runs_share_an_s3_storage_and_do_the_work_once(s3, tiny_data):
    recipe = save_recipe(tiny_recipe(tiny_data, storage="s3://bucket/runs"), tiny_data / "recipe.yaml")
    logs = [tiny_data / "one.log", tiny_data / "other.log"]
    runs = [start_job("train", recipe, log) for log in logs]
    assert [run.wait(1500) for run in runs] == [0, 0], "".join(log.read_text() for log in logs)
    told = [line for log in logs for line in log.read_text().splitlines()]
    for work in ("encoded metal", "encoded fruit", "expert fruit: dev", "expert metal: dev"):
        assert len([line for line in told if work in line]) == 1, work
    assert any("waiting for another run" in line for line in told)
