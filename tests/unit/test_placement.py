import importlib.util
import os
import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.state import state as ray_state
from ray._private.utils import check_version_info, validate_socket_filepath
from ray.exceptions import AuthenticationError
from ray.runtime_env.runtime_env import _merge_runtime_env
from routerretriever.adapters.check import check_encoder
from routerretriever.config.serving import ReplicaSettings
from routerretriever.errors import BadInput, RouterRetrieverError, Unavailable
from routerretriever.pipeline import pipeline as pipeline_module
from routerretriever.pipeline.doctor import Verdict, examine
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.runtime import cluster
from routerretriever.runtime.cluster import connect, require_answer, room_for, start_ray
from routerretriever.runtime.haproxy import USES_HAPROXY
from routerretriever.serving.deployments import sizes
from routerretriever.serving.deployments.index import Index
from routerretriever.serving.deployments.sizes import room_for_replicas, sized
from routerretriever.training.settings import TrainingSettings
from support.recipes import tiny_recipe

LAPTOP = [{"CPU": 2.0}]
HEAD = {"CPU": 0.0}
GPU_NODE = {"CPU": 8.0, "GPU": 1.0}


@pytest.fixture
def machines(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def have(there, may_be=()):
        monkeypatch.setattr(cluster, "_machines", lambda _: (there, list(may_be)))

    return have


@pytest.mark.parametrize(
    ("there", "cpus", "gpus", "gang", "groups"),
    [
        (LAPTOP, 1, 0, 1, 2),
        (LAPTOP, 1, 0, 2, 1),
        (LAPTOP, 0.1, 0, 1, 20),
        # Four CPUs in all, but no machine holds a worker of three twice.
        ([{"CPU": 4.0}, {"CPU": 2.0}], 3, 0, 1, 1),
        ([HEAD, GPU_NODE, GPU_NODE], 1, 0.25, 1, 8),
        ([HEAD, GPU_NODE, GPU_NODE], 1, 0.25, 3, 2),
        ([HEAD, GPU_NODE, GPU_NODE], 4, 1, 2, 1),
    ],
)
def test_groups_are_counted_machine_by_machine(machines, there, cpus, gpus, gang, groups):
    machines(there)
    assert room_for(cpus, gpus, gang) == groups


def test_what_can_never_be_placed_is_refused_instead_of_waited_for(machines):
    machines([{"CPU": 2.0}, {"CPU": 2.0}])
    with pytest.raises(RouterRetrieverError, match=r"1 worker\(s\) of 4 CPUs and 0 GPUs .* can hold 0"):
        room_for(4, 0)
    with pytest.raises(RouterRetrieverError, match=r"5 worker\(s\) .* can hold 4"):
        room_for(1, 0, gang=5)


def test_a_cluster_that_was_joined_may_get_its_machines_later(machines, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    machines([HEAD])
    monkeypatch.setattr(cluster.time, "sleep", lambda _: machines([HEAD, GPU_NODE]))
    assert room_for(1, 0) == 8
    monkeypatch.setattr(cluster, "_JOINING_SECONDS", 0.0)
    machines([HEAD])
    with pytest.raises(RouterRetrieverError, match="can hold 0"):
        room_for(1, 0)


def test_machines_that_an_autoscaler_would_start_count(machines):
    machines([HEAD], [HEAD, GPU_NODE, GPU_NODE])
    assert room_for(1, 0.5, gang=2) == 2


def test_only_machines_with_the_labels_count(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    spot, kept = {"ray.io/market-type": "spot"}, {"ray.io/market-type": "on-demand", "zone": "a"}
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0}, "Labels": spot},
        {"Alive": True, "Resources": {"CPU": 2.0}, "Labels": kept},
        {"Alive": False, "Resources": {"CPU": 8.0}, "Labels": kept},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray_state, "get_cluster_config", lambda: None)
    assert room_for(1, 0) == 6
    assert room_for(1, 0, labels=spot) == 4
    assert room_for(1, 0, labels={"ray.io/market-type": "on-demand"}) == 2
    with pytest.raises(RouterRetrieverError, match=r"machines with labels zone=b can hold 0"):
        room_for(1, 0, labels={"zone": "b"})


def test_replicas_are_placed_by_labels():
    options = sized(
        Index, "index", ReplicaSettings(labels={"ray.io/market-type": "on-demand"})
    ).ray_actor_options
    assert options["label_selector"] == {"ray.io/market-type": "on-demand"}
    assert "label_selector" not in sized(Index, "index", ReplicaSettings()).ray_actor_options


@pytest.mark.parametrize(
    ("settings", "there", "bounds"),
    [
        ({}, LAPTOP, (1, 2)),
        ({"cpus": 4}, LAPTOP, (1, 1)),  # none fits; Serve waits for one, and says so
        ({"min_replicas": 3}, LAPTOP, (3, 3)),
        ({"max_replicas": 5}, LAPTOP, (1, 5)),
        ({}, [{"CPU": 64.0}], (1, 8)),
        ({"gpus": 0.5, "min_replicas": 0}, [HEAD, GPU_NODE], (0, 2)),
    ],
)
def test_the_router_may_use_all_cores_unless_told_otherwise(machines, monkeypatch, settings, there, bounds):
    machines(there)
    monkeypatch.setattr(sizes, "running_ray", lambda: ray)
    replicas = ReplicaSettings(**settings)
    config = sized(Index, "router", replicas, room_for_replicas(replicas))._deployment_config
    assert (config.autoscaling_config.min_replicas, config.autoscaling_config.max_replicas) == bounds


def test_of_other_deployments_there_is_one_replica_unless_told_otherwise():
    config = sized(Index, "index", ReplicaSettings())._deployment_config
    assert config.autoscaling_config.max_replicas == 1


def test_resources_do_not_change_what_an_expert_is():
    one = TrainingSettings()
    other = TrainingSettings(
        cpus_per_worker=4, gpus_per_worker=0.25, at_once=3, max_failures=9, labels={"a": "b"}
    )
    assert one.identity() == other.identity()


def test_a_cluster_that_does_not_answer_is_told_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        require_answer(f"127.0.0.1:{port}")
        require_answer(f"ray://127.0.0.1:{port}")
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(Unavailable, match=rf"RAY_ADDRESS: {address}: no Ray cluster answers there"):
            require_answer(address)
    require_answer("auto")


def test_a_submitted_job_may_have_the_same_variables_in_its_runtime_env(monkeypatch):
    monkeypatch.setattr(os, "environ", {**os.environ, "RAY_ADDRESS": "auto", "HF_HUB_OFFLINE": "1"})
    given: dict[str, Any] = {}
    monkeypatch.setattr(cluster, "start_ray", given.update)
    monkeypatch.setattr(cluster, "export_to_ray", lambda: None)
    monkeypatch.setattr(cluster, "_resources", lambda: (1.0, 0.0))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    connect()
    submitted = {"working_dir": "gcs://job.zip", "env_vars": {"HF_HUB_OFFLINE": "1", "HF_TOKEN": "hf_1"}}
    override = os.environ.get("RAY_OVERRIDE_JOB_RUNTIME_ENV") == "1"  # as ray.init reads it
    merged = _merge_runtime_env(submitted, given["runtime_env"], override=override)
    assert merged is not None
    assert merged["working_dir"] == "gcs://job.zip"
    ours = given["runtime_env"]["env_vars"]
    assert merged["env_vars"] == {**ours, "HF_HUB_OFFLINE": "1", "HF_TOKEN": "hf_1"}


def mismatch():
    check_version_info({"ray_version": "2.9.0", "python_version": "3.11.7"}, "node 10.0.0.1")


def long_socket():
    validate_socket_filepath(f"/{'x' * 60}/ray/session_2026-11-29_12-00-00_000000_99999/sockets/plasma_store")


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("start", "address", "told"),
    [
        (
            mismatch,
            "head:6379",
            r"^RAY_ADDRESS: head:6379: Version mismatch: .*Ray: 2\.9\.0 .*unset RAY_ADDRESS",
        ),
        (partial(fail, AuthenticationError("no token")), "head:6379", "^RAY_ADDRESS: head:6379: no token"),
        (partial(fail, ConnectionError("Could not find any")), "auto", "^RAY_ADDRESS: auto: Could not find"),
        (long_socket, "", "too long a path for Ray's sockets; set RAY_TMPDIR"),
        (partial(fail, PermissionError(13, "Permission denied", "/x/ray")), "", "'/x/ray'; set RAY_TMPDIR"),
    ],
)
def test_why_ray_is_not_there_is_told_in_one_line(monkeypatch, start, address, told):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "init", lambda **_: start())
    with pytest.raises(Unavailable, match=told) as raised:
        start_ray()
    assert "\n" not in str(raised.value)


def test_a_failure_of_ray_that_nobody_knows_is_raised_as_it_is(monkeypatch):
    monkeypatch.setattr(ray, "init", lambda **_: fail(RuntimeError("a mistake of Ray's")))
    with pytest.raises(RuntimeError, match="a mistake of Ray's"):
        start_ray()


@pytest.fixture
def connected(monkeypatch):
    """The environment after ``connect`` has started a Ray, without one, given what is in it before."""

    def start(**environment):
        monkeypatch.setattr(os, "environ", {**os.environ, **environment})
        for name in {"RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} - environment.keys():
            os.environ.pop(name, None)
        for name, stand_in in {"export_to_ray": None, "start_ray": None, "_resources": (1.0, 0.0)}.items():
            monkeypatch.setattr(cluster, name, lambda stand_in=stand_in, **_: stand_in)
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        connect()
        return os.environ

    return start


@pytest.mark.parametrize(
    ("home", "own", "given"),
    [("", {}, False), ("missing", {}, True), ("missing", {"RAY_AUTH_TOKEN_PATH": "/token"}, False)],
)
def test_a_new_ray_has_its_token_where_there_is_no_home_to_keep_it(tmp_path, connected, home, own, given):
    environment = connected(HOME=str(tmp_path / home), **own)
    assert ("RAY_AUTH_TOKEN" in environment) == given


@pytest.mark.parametrize(
    ("found", "before", "after"),
    [
        ({USES_HAPROXY: "0"}, {}, {USES_HAPROXY: "0"}),
        ({"RAY_SERVE_HAPROXY_STATS_PORT": "1"}, {}, {USES_HAPROXY: "1", "RAY_SERVE_HAPROXY_STATS_PORT": "1"}),
        (
            {"RAY_SERVE_HAPROXY_STATS_PORT": "1"},
            {"RAY_SERVE_HAPROXY_STATS_PORT": "2"},
            {"RAY_SERVE_HAPROXY_STATS_PORT": "2"},
        ),
    ],
)
def test_ray_is_told_to_do_without_a_haproxy_that_cannot_be_run(connected, monkeypatch, found, before, after):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(cluster, "loopback_environment", lambda: found)
    environment = connected(**before)
    assert after.items() <= environment.items()


@pytest.mark.parametrize("length", [20, 60])
def test_a_folder_with_too_long_a_path_for_rays_sockets_is_told(monkeypatch, length):
    folder = Path("/tmp") / ("x" * length)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    ray_found = next(one for one in examine(None) if one.name == "Ray")
    assert ray_found.verdict is (Verdict.OK if length < 40 else Verdict.FAIL)
    assert ("set RAY_TMPDIR" in ray_found.text) == (length > 40)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_address_of_a_dashboard_is_told_from_a_clusters(scheme, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{scheme}://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(BadInput, match=rf"RAY_ADDRESS: {address} is a dashboard.*unset.*ray job submit"):
            require_answer(address)
        monkeypatch.setenv("RAY_ADDRESS", address)
        ray_found = next(one for one in examine(None) if one.name == "Ray")
    assert ray_found.verdict is Verdict.FAIL
    assert "unset RAY_ADDRESS" in ray_found.text


def test_a_cluster_is_asked_before_the_encoder_is_loaded_and_only_if_it_is_needed(tiny_data, monkeypatch):
    loaded = []

    def load(settings, adapters, features):
        loaded.append(settings.name)
        return check_encoder(settings, adapters, features)

    monkeypatch.setattr(pipeline_module, "check_encoder", load)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    recipe = tiny_recipe(tiny_data)
    with pytest.raises(Unavailable, match="no Ray cluster answers there"):
        Pipeline(recipe).build()
    assert loaded == []
    pipeline = Pipeline(recipe)
    for step in pipeline.steps():
        pipeline.store.commit(step.key, {})
    assert pipeline.preflight
    assert loaded == ["fake"]
