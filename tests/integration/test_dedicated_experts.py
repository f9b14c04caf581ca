"""The service with an application for every expert, over real HTTP."""

from __future__ import annotations

import numpy as np
import pytest
from ray import serve
from routerretriever import RouterRetriever
from routerretriever.client import Client
from routerretriever.config.loading import parse_recipe
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.registry.registry import Registry
from routerretriever.serving.deployments.run import deploy
from support.runs import served
from support.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("services")]
QUERIES = ["where is grape with fig", "where is tin with lead", "x"]


@pytest.fixture
def serve_ends():
    yield
    serve.shutdown()


def test_experts_of_their_own_answer_the_same_and_come_and_go(run, serve_ends):
    pipeline = served(run, "embeddings", placement="dedicated", limits={"seconds": 2})
    registered = pipeline.register()
    model = RouterRetriever.load(registered.uri, registered.tracking_uri)
    with Client(deploy(pipeline.recipe, pipeline.store)) as client:
        np.testing.assert_allclose(client.embed(QUERIES), model.encode_queries(QUERIES), atol=1e-5)
        for expert in ("fruit", "base"):
            all_of_it = np.ones((len(QUERIES), 1), dtype=np.float32)
            alone = model.embed(model.tokenize(QUERIES), all_of_it, [expert])
            np.testing.assert_allclose(client.embed(QUERIES, expert), alone, atol=1e-5)
        assert len(applications()) == 2
        assert {expert.name: expert.replicas for expert in client.experts()} == {
            "fruit": {"RUNNING": 1},
            "metal": {"RUNNING": 1},
        }
        registry = Registry(pipeline.recipe.registry, pipeline.store)
        merges_weights = run.registered.version
        registry.release(merges_weights)
        wait_until(lambda: "routing.merge" in client.service().refused.get(merges_weights, ""))
        values = pipeline.recipe.model_dump(mode="json")
        values["domains"]["metal"]["expert"] = False
        alone = Pipeline(
            parse_recipe({**values, "methods": {}, "routing": {"router": "uniform", "merge": "embeddings"}})
        ).register(False)
        registry.release(alone.version)
        wait_until(lambda: client.service().version == alone.version)
        wait_until(lambda: len(applications()) == 1)
        # What the one expert does not know goes to the base.
        assert set(client.route(QUERIES[:1])[0].weights) <= {"fruit", "base"}


def applications() -> list[str]:
    return [
        name
        for name, application in serve.status().applications.items()
        if name.startswith("expert-") and application.status == "RUNNING"
    ]
