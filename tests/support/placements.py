"""A cluster of several machines on this one, as ``cluster.yaml`` describes them, and who works on which.

``python -m support.placements RECIPE`` trains, starts an index replica, and prints as JSON on which kinds of
machines each class of actors has run. It is a program of its own, since a process is in one cluster at most.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import routerretriever
from ray import serve
from ray._private.state import state
from ray.cluster_utils import Cluster
from routerretriever.config.loading import load_recipe
from routerretriever.pipeline.places import open_storage
from routerretriever.runtime.cluster import connect
from routerretriever.serving.deployments.index import Index
from routerretriever.serving.deployments.sizes import sized
from ruamel.yaml import YAML

from support.paths import ROOT

KINDS = ("head", "gpu-train", "gpu-serve")
"""The machines that are there; the first is the head."""


def as_node(kind: dict[str, Any]) -> dict[str, Any]:
    """A node type of a cluster file, as `Cluster.add_node` takes it."""
    resources = kind["resources"]
    return {"num_cpus": resources["CPU"], "num_gpus": resources.get("GPU", 0), "labels": kind["labels"]}


@contextmanager
def simulated_cluster() -> Iterator[dict[str, str]]:
    """The machines while a block runs: id -> which kind it is."""
    kinds = YAML(typ="safe", pure=True).load(ROOT / "cluster.yaml")["available_node_types"]
    cluster = Cluster()
    try:
        nodes = {cluster.add_node(**as_node(kinds[kind])).node_id: kind for kind in KINDS}
        os.environ["RAY_ADDRESS"] = cluster.address
        yield nodes
    finally:
        ray.shutdown()
        cluster.shutdown()


def places(nodes: dict[str, str]) -> dict[str, list[str]]:
    """Where all actors have run, those that have ended too: class of actors -> kinds of machines."""
    found: dict[str, set[str]] = defaultdict(set)
    for actor in state.actor_table(None).values():
        # One that still waits has no process; its address is that of the machine which looks for its place.
        if actor["Pid"] and (kind := nodes.get(actor["Address"]["NodeID"])):
            found[actor["ActorClassName"]].add(kind)
    return {name: sorted(kinds) for name, kinds in found.items()}


def main(path: Path) -> None:
    """Train and serve on the cluster; print who was where."""
    recipe = load_recipe(path)
    with simulated_cluster() as nodes:
        connect()
        routerretriever.train(recipe)
        index = sized(Index, "index", recipe.serving.index)
        serve.run(index.bind(recipe.corpus.index, open_storage(recipe), 0, 0, 1), route_prefix=None)
        found = places(nodes)
        serve.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
