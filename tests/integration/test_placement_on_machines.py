"""Work lands on the machines that the recipe's labels ask for, on a cluster of several."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support.environment import users_environment
from support.paths import ROOT
from support.recipes import TINY_TRAINING, save_recipe, tiny_recipe

pytestmark = pytest.mark.integration
SPOT, KEPT = {"ray.io/market-type": "spot"}, {"ray.io/market-type": "on-demand"}


def test_training_and_encoding_run_on_spot_machines_and_replicas_on_others(tiny_data):
    recipe = tiny_recipe(
        tiny_data,
        domains={"fruit": {"path": "fruit"}},
        corpus={"shard_size": 10, "workers": 1, "labels": SPOT},
        training={**TINY_TRAINING, "labels": SPOT},
        serving={"index": {"labels": KEPT}},
    )
    path = save_recipe(recipe, tiny_data / "recipe.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "support.placements", path],
        env=users_environment(PYTHONPATH=f"{ROOT / 'platform'}:{ROOT / 'tests'}"),
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])

    def machines_of(part: str) -> set[str]:
        found = {kind for name, kinds in seen.items() if part in name for kind in kinds}
        assert found, f"{part}: not among {sorted(seen)}"
        return found

    assert machines_of("ShardEncoder") == {"gpu-train"}
    assert machines_of("RayTrainWorker") == {"gpu-train"}
    assert machines_of("ServeReplica") == {"gpu-serve"}
