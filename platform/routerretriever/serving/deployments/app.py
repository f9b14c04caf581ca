"""The Serve application: ingress, index, writer and release controller.

Experts are not bound here. With dedicated placement each is an application of its own, started and stopped
by the release controller: the list of experts can then change without a restart of anything else, where new
arguments of an application would replace its replicas.

``build`` is what ``serve run`` and the command line both call.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.serve import Application
from ray.serve.context import _get_global_client

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.config.loading import load_recipe, parse_settings
from routerretriever.config.recipe import Recipe
from routerretriever.config.serving import ReplicaSettings
from routerretriever.serving.deployments.index import Index
from routerretriever.serving.deployments.ingress import Ingress
from routerretriever.serving.deployments.releases import ReleaseControllerDeployment
from routerretriever.serving.deployments.sizes import room_for_replicas, sized
from routerretriever.serving.deployments.writer import Writer
from routerretriever.serving.http.auth import read_tokens
from routerretriever.serving.releases import require_servable
from routerretriever.settings import Settings

_WITHOUT_CPU = ReplicaSettings(cpus=0)


class Arguments(Settings):
    """``args`` of the application in a Serve file."""

    recipe: str
    """A recipe file."""
    set: tuple[str, ...] = ()
    """``key=value`` overrides."""
    revision: int | str = ""
    """Means nothing here. Serve builds an application anew only if its Serve file is another: not if the
    recipe is, or the tokens file."""


def build(args: dict[str, Any]) -> Application:
    """Build the application for a recipe's released bundle.

    Args:
        args: fields of ``Arguments``.

    Raises:
        RecipeError: one of them, or the recipe, is wrong.
    """
    arguments = parse_settings(Arguments, args, "Serve file: args")
    recipe = load_recipe(arguments.recipe, list(arguments.set))
    return build_application(recipe, ArtifactStore.open(recipe.storage))


def build_application(recipe: Recipe, store: ArtifactStore) -> Application:
    """Bind the deployments. What is served is read from the registry when they start.

    Raises:
        RecipeError: other machines could ask without a token, or the tokens file is wrong.
        NotFound: nothing is released yet.
        RegistryError: the registry is away, and nothing was served before.
    """
    from routerretriever.registry.registry import Registry

    serving = recipe.serving
    tokens = read_tokens(serving, _listens_at())
    require_servable(recipe, Registry.of(recipe, store), store)
    indexes = [
        sized(Index, f"index-{part}" if serving.index_shards > 1 else "index", serving.index).bind(
            recipe.corpus.index, store, serving.refresh_seconds, part, serving.index_shards
        )
        for part in range(serving.index_shards)
    ]
    writer = sized(Writer, "writer", _WITHOUT_CPU).bind(store, serving.compact_every, recipe.registry.name)
    controller = sized(ReleaseControllerDeployment, "releases", _WITHOUT_CPU).bind(recipe, store, indexes)
    router = sized(Ingress, "router", serving.router, room_for_replicas(serving.router))
    return router.bind(recipe, tokens, store, controller, indexes, writer)


def _listens_at() -> str | None:
    """The host of a Serve that runs already: a Serve file names one, or whoever started it."""
    if not ray.is_initialized():  # Serve would start it
        return None
    client = _get_global_client(raise_if_no_controller_running=False)
    return None if client is None else client.http_config.host
