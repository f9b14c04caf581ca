"""Starting the service on this machine or cluster, asking it, and shutting it down."""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from rich.table import Table

from routerretriever.errors import BundleError, Unavailable
from routerretriever.runtime.cluster import connect
from routerretriever.runtime.haproxy import free_port
from routerretriever.runtime.machine import why_not_listening, why_slow
from routerretriever.runtime.progress import at_work, console, log, show
from routerretriever.runtime.ray_metrics import running_ray

if TYPE_CHECKING:
    from routerretriever.artifacts.store import ArtifactStore
    from routerretriever.config.recipe import Recipe
    from routerretriever.config.serving import ServingSettings
    from routerretriever.pipeline.pipeline import Pipeline

APPLICATION = "routerretriever"


def deploy(recipe: Recipe, store: ArtifactStore, port: int | None = None) -> str:
    """Start or update the service with the released bundle; returns its URL once it is ready.

    ``port`` replaces the recipe's; 0 takes a free one. Where Serve runs already, its own address stays.

    Raises:
        Unavailable: there is no cluster at ``RAY_ADDRESS``, or the address cannot be listened on.
        NotFound: nothing is released yet.
        BundleError: no bundle can be served; it says why.
    """
    settings = recipe.serving
    port = (settings.port if port is None else port) or free_port(settings.host)
    _connect(settings, port)  # before Serve is imported: some of its settings are read then

    from ray import serve
    from ray.serve.context import _get_global_client

    from routerretriever.serving.deployments.app import build_application

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    application = build_application(recipe, store)
    if _get_global_client(raise_if_no_controller_running=False) is None:
        require_free(settings.host, port)
    serve.start(http_options={"host": settings.host, "port": port})
    try:
        with at_work("starting the service"):
            serve.run(application, name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        deployments = serve.status().applications[APPLICATION].deployments.values()
        messages = "\n".join([str(error), *(deployment.message for deployment in deployments)])
        if (reason := why_not_started(messages)) is None:
            raise
        raise BundleError(f"the service did not start: {reason}") from None
    there = _get_global_client().http_config
    return f"http://{there.host}:{there.port}"


def serve_forever(recipe: Recipe, store: ArtifactStore) -> None:
    """Serve until interrupted, terminated or hung up, then shut down cleanly; a start can be stopped too."""
    stop = _Stop()
    stop.listen()
    try:
        _require_servable(recipe, store)  # before Ray starts, which takes a while
        with _hang_up_held():
            _connect(recipe.serving, recipe.serving.port)
            stop.listen()  # Ray has put handlers of its own in place
        url = deploy(recipe, store)
        log.info("serving at %s (docs: %s/docs); Ctrl-C stops it", url, url)
        stop.wait()
        log.info("shutting down")
    except KeyboardInterrupt:
        log.info("stopped before the service was ready")
    finally:
        # Also where writing to a terminal that was closed has failed. A start that failed by itself stays
        # out of the way of a service that runs on the cluster already.
        if stop.asked:
            _shut_down()


def _require_servable(recipe: Recipe, store: ArtifactStore) -> None:
    """Check what can be told without Ray; ``build_application`` does too, for those who start it otherwise.

    Raises:
        RecipeError: other machines could ask without a token, or the tokens file is wrong.
        NotFound: nothing is released yet.
        RegistryError: the registry is away, and nothing was served before.
    """
    from routerretriever.registry.registry import Registry
    from routerretriever.serving.http.auth import read_tokens
    from routerretriever.serving.releases import require_servable

    read_tokens(recipe.serving)
    require_servable(recipe, Registry.of(recipe, store), store)


class _Stop:
    """What ends a service: the first Ctrl-C, SIGTERM or SIGHUP; later ones change nothing."""

    def __init__(self) -> None:
        self.asked = False

    def listen(self) -> None:
        """Have the signals raise ``KeyboardInterrupt``, except for a SIGHUP that ``nohup`` ignores."""
        signal.signal(signal.SIGINT, self._ask)
        signal.signal(signal.SIGTERM, self._ask)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._ask)

    def wait(self) -> None:
        """Return once a signal has come, also if that was earlier and somebody swallowed its exception."""
        with suppress(KeyboardInterrupt):
            while not self.asked:
                time.sleep(0.2)

    def _ask(self, *_: object) -> None:
        # No lock in here, as an Event has: a second signal would find it held by the first, for ever.
        if not self.asked:
            self.asked = True
            raise KeyboardInterrupt


@contextmanager
def _hang_up_held() -> Iterator[None]:
    """Hold SIGHUP back for a block, and for good from the processes that are started in it.

    A terminal that is closed sends it to all of them: Ray would be gone before Serve could be shut down.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def served(pipeline: Pipeline, port: int = 0) -> Iterator[str]:
    """The service for as long as a block runs; gives its URL. A port of 0 takes a free one."""
    try:
        yield deploy(pipeline.recipe, pipeline.store, port)
    finally:
        _shut_down()


def _connect(settings: ServingSettings, port: int) -> None:
    """Connect to Ray. What does not suit a Ray of our own, on this machine, is told before it starts.

    Raises:
        Unavailable: nothing answers at ``RAY_ADDRESS``, or the address cannot be listened on.
    """
    if running_ray() is None and not os.environ.get("RAY_ADDRESS"):
        require_free(settings.host, port)
        if reason := why_slow(settings.engine.precision):
            log.warning("serving.engine.precision: %s", reason)
        # By default Ray has its workers give way to every other program, clients on this machine among them.
        os.environ.setdefault("RAY_worker_niceness", "0")
    connect()


def _shut_down() -> None:
    if running_ray() is None:  # Serve would start one to look for what there is to shut down
        return
    from ray import serve

    serve.shutdown()


def ask_once(pipeline: Pipeline) -> None:
    """Serve, ask the recipe's question (or a dev query), print the answer, shut down."""
    import httpx

    from routerretriever.client import Client

    name = pipeline.recipe.expert_domains[-1]
    question = pipeline.recipe.question or next(iter(pipeline.collections[name].queries("dev").values()))
    # A transport of its own, since a proxy of the environment would look for this service where it is itself.
    with served(pipeline) as url, Client(url, transport=httpx.HTTPTransport()) as client:
        collection = client.route([question])[0].expert
        if collection not in pipeline.recipe.domains:
            collection = name
        answer = client.search(question, collection, top_k=3)
    console.print(f"\nquestion   {question}\nexpert     {answer.expert}")
    console.print(f"collection {answer.collection}")
    table = Table("score", "document", "text")
    for hit in answer.results:
        table.add_row(f"{hit.score:.3f}", hit.title or hit.id, hit.text[:160])
    show(table)


def require_free(host: str, port: int) -> None:
    """Raise ``Unavailable`` if the address cannot be listened on."""
    if reason := why_not_listening(host, port):
        raise Unavailable(
            f"serving.port: {host}:{port} cannot be used ({reason}); "
            "choose another with --set serving.port=PORT, or 0 for a free one"
        )


def why_not_started(message: str) -> str | None:
    """Our own reason in what Ray says of an application that did not start, without the traceback around."""
    found = re.findall(r"routerretriever\.errors\.\w+: (.+)", message)
    return found[-1].strip() if found else None
