"""Experts with processes of their own, beside a Ray Serve that only says what it has."""

import asyncio
from types import SimpleNamespace

import pytest
from ray import serve
from ray.serve.schema import ApplicationStatus
from routerretriever.config.recipe import Recipe
from routerretriever.serving.deployments.releases import ExpertApplications
from routerretriever.serving.ports import Rejection, ValidatedBundle

BUNDLE = ValidatedBundle("bundles/b", {"encoder": {"name": "fake"}}, {}, 32)


@pytest.fixture
def applications():
    return ExpertApplications(Recipe(name="r", domains={"fruit": {"path": "here"}}), None)


def test_an_expert_that_is_ending_does_not_count_as_there(applications, monkeypatch):
    def application(status):
        replicas = SimpleNamespace(replica_states={"RUNNING": 1})
        return SimpleNamespace(status=status, deployments={"Expert": replicas})

    there = {
        "expert-fruit": application(ApplicationStatus.RUNNING),
        "expert-metal": application(ApplicationStatus.DELETING),
        "router": application(ApplicationStatus.RUNNING),
    }
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications=there))
    assert asyncio.run(applications.replicas()) == {"expert-fruit": {"RUNNING": 1}}


def test_experts_that_do_not_start_are_stopped_so_that_they_are_started_at_the_next_attempt(
    applications, monkeypatch
):
    stopped = []

    def fail(targets):
        raise RuntimeError(f"{targets[0].name} failed")

    monkeypatch.setattr(serve, "run_many", fail)
    monkeypatch.setattr(serve, "delete", lambda name, _blocking: stopped.append(name))
    wanted = {"fruit": "expert-fruit-1", "metal": "expert-metal-1"}
    refused = asyncio.run(applications.start(wanted, BUNDLE))
    reason = "experts fruit, metal did not start: expert-fruit-1 failed"
    assert refused == Rejection(reason, transient=True)
    assert stopped == ["expert-fruit-1", "expert-metal-1"]
