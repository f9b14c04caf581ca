"""What is installed, what this machine can do, and what a run would fail on, each with what to do."""

from __future__ import annotations

import importlib.util
import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from rich.table import Table

from routerretriever.artifacts.filesystem import FileSystem, cache_folder, local_path
from routerretriever.config.recipe import Recipe
from routerretriever.encoder.source import FAKE, is_here
from routerretriever.errors import RouterRetrieverError, Unavailable, without_secrets
from routerretriever.runtime import machine
from routerretriever.runtime.cluster import has_room_for_sockets, ray_folder, require_answer, why_silent

_SECONDS = 20.0
"""A check that has no answer by then has failed."""
_ROOM = 5e9
_SHOWN = ("torch", "ray", "transformers", "peft", "mlflow", "faiss-cpu")
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
"""What opens each kind of storage."""
_PROBE = "doctor"


class Verdict(Enum):
    """What a check came to; the values are words for people."""

    OK = "ok"
    NOTE = "note"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    name: str
    verdict: Verdict
    text: str
    """What was found, and for all but ``OK`` what to do."""


Check = Callable[[], tuple[Verdict, str]]


def examine(recipe: Recipe | None) -> list[Finding]:
    """Make all checks, none of which takes longer than half a minute or changes anything.

    Args:
        recipe: what is to be run; without one, only machine and installation are looked at.
    """
    checks: dict[str, Check] = {
        "packages": check_packages,
        "processor": lambda: check_processor(recipe),
        "memory": check_memory,
        "gpu": lambda: check_gpu(recipe),
        "disk": lambda: check_disk(recipe),
        "Ray": check_ray,
        "model hub": lambda: check_hub(recipe),
    }
    if recipe is not None:
        checks |= {
            "storage": lambda: check_storage(recipe.storage),
            "collections": lambda: check_collections(recipe),
            "MLflow": lambda: check_mlflow(recipe),
            "port": lambda: check_port(recipe.serving.host, recipe.serving.port),
        }
    import torch  # noqa: F401 -- takes seconds, which are no check's

    with ThreadPoolExecutor(len(checks)) as pool:
        return list(pool.map(_made, checks.keys(), checks.values()))


def findings_table(findings: Sequence[Finding]) -> Table:
    """Findings for a person."""
    table = Table("", "check", "found")
    for finding in findings:
        table.add_row(finding.verdict.value, finding.name, finding.text)
    return table


def check_packages() -> tuple[Verdict, str]:
    """Whether what the project asks for is installed, in versions that it takes."""
    shown = ", ".join(f"{name} {metadata.version(name)}" for name in _SHOWN if _has(name))
    try:
        wanted = [Requirement(text) for text in metadata.requires("routerretriever") or []]
    except metadata.PackageNotFoundError:
        return Verdict.NOTE, f"{shown}; routerretriever itself is used from its source, not installed"
    wrong = [
        f"{one.name}{one.specifier} (found {metadata.version(one.name) if _has(one.name) else 'none'})"
        for one in wanted
        if (one.marker is None or one.marker.evaluate({"extra": ""}))
        and not (_has(one.name) and one.specifier.contains(metadata.version(one.name), prereleases=True))
    ]
    if wrong:
        return Verdict.FAIL, f"missing: {', '.join(wrong)}; pip install routerretriever again"
    return Verdict.OK, f"Python {platform.python_version()}, {shown}"


def check_processor(recipe: Recipe | None = None) -> tuple[Verdict, str]:
    """Cores, and the units that make encoding on them fast, also in the recipe's precision."""
    units = machine.vector_units()
    text = f"{machine.cpus():g} CPUs, {platform.machine()}" + (f" with {', '.join(units)}" if units else "")
    if recipe is not None and (reason := machine.why_slow(recipe.serving.engine.precision)):
        return Verdict.NOTE, f"{text}; serving.engine.precision: {reason}"
    if machine.VNNI in units:
        text += "; the service is faster with serving.engine.precision: int8"
    return Verdict.OK, text


def check_memory() -> tuple[Verdict, str]:
    """Memory, of which Ray and one worker with a small encoder take some gigabytes."""
    size = machine.memory_bytes()
    if size < 4e9:
        return Verdict.NOTE, f"{size / 1e9:.1f} GB: little; set workers: 1 under corpus and scoring"
    return Verdict.OK, f"{size / 1e9:.1f} GB"


def check_gpu(recipe: Recipe | None) -> tuple[Verdict, str]:
    """Whether torch can use the GPUs that there are, and the recipe gets those that it asks for."""
    there, usable = machine.nvidia_gpus(), machine.torch_gpus()
    asking = [] if recipe is None else recipe.asks_for_gpus()
    torch = f"torch {metadata.version('torch')}"
    if there and not usable:
        return Verdict.FAIL if asking else Verdict.NOTE, (
            f"{there} GPUs that {torch} cannot use: install a CUDA build of torch that fits the driver"
        )
    if asking and not usable and "RAY_ADDRESS" not in os.environ:
        return Verdict.FAIL, (
            f"none, and the recipe asks for some ({', '.join(asking)}): set them to 0, or RAY_ADDRESS to a "
            "cluster that has GPUs"
        )
    if usable and recipe is not None and not asking:
        if recipe.encoder.device == "cpu":
            return Verdict.NOTE, f"{usable} that the recipe leaves unused by encoder.device: cpu"
        return Verdict.NOTE, (
            f"{usable}, none of which the recipe reserves, so that all workers of a machine share its first: "
            "set gpus_per_worker under corpus, scoring and training, and gpus under serving.router"
        )
    if asking and not usable:
        return Verdict.OK, "none here; the recipe asks the cluster for some"
    return Verdict.OK, f"{usable} that {torch} can use" if usable else "none, and none is asked for"


def check_disk(recipe: Recipe | None) -> tuple[Verdict, str]:
    """Room for results, for the copies of remote files, and for Ray."""
    places = {"cache": cache_folder(), "Ray's files": ray_folder()}
    if recipe is not None and (folder := _local_folder(recipe.storage)) is not None:
        places["storage"] = folder
    free = {name: machine.free_bytes(folder) for name, folder in places.items()}
    text = ", ".join(f"{size / 1e9:.0f} GB for {name}" for name, size in free.items())
    little = [name for name, size in free.items() if size < _ROOM]
    if little:
        return Verdict.NOTE, f"{text} free: make room for {', '.join(little)} ({_ROOM / 1e9:.0f} GB or more)"
    return Verdict.OK, f"{text} free"


def check_ray() -> tuple[Verdict, str]:
    """Whether the cluster that is to be joined answers."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        folder = ray_folder()
        if not has_room_for_sockets(folder):
            return Verdict.FAIL, f"{folder}: too long a path for Ray's sockets; set RAY_TMPDIR to /tmp"
        if not os.access(machine.nearest_folder(folder / "ray"), os.W_OK):
            return Verdict.FAIL, f"{folder}: not to be written by Ray; set RAY_TMPDIR to a folder that is"
        return Verdict.OK, "RAY_ADDRESS is not set: a run starts a Ray of its own here"
    require_answer(address)
    return Verdict.OK, f"the cluster at {without_secrets(address)} answers"


def check_hub(recipe: Recipe | None) -> tuple[Verdict, str]:
    """Whether models can be downloaded, if the recipe's encoder has to be."""
    from huggingface_hub import constants

    name = None if recipe is None or recipe.encoder.name == FAKE else recipe.encoder.name
    here = name is None or (recipe is not None and is_here(recipe.encoder))
    place = urlsplit(constants.ENDPOINT)
    offline = constants.HF_HUB_OFFLINE
    proxy = machine.goes_through_proxy(constants.ENDPOINT)
    reached = not offline and (proxy or not why_silent(place.hostname or "", place.port or 443, _SECONDS / 2))
    state = "reached" if reached else "switched off by HF_HUB_OFFLINE" if offline else "not reached"
    if not here and not reached:
        return Verdict.FAIL, (
            f"{state}, and {name} is not on this machine: set encoder.name to a folder with its files"
        )
    if not here:
        return Verdict.NOTE, f"{state}; {name} is downloaded when a run starts"
    return Verdict.OK, f"{state}; nothing has to be downloaded"


def check_storage(uri: str) -> tuple[Verdict, str]:
    """Whether storage can be written: a small file comes and goes."""
    package = _PACKAGES.get(urlsplit(uri).scheme)
    if package is not None and importlib.util.find_spec(package) is None:
        extra = "s3" if package == "s3fs" else "gcs"
        return Verdict.FAIL, f"{uri} needs {package}: pip install 'routerretriever[{extra}]'"
    if (folder := _local_folder(uri)) is not None:
        try:
            with tempfile.TemporaryFile(dir=machine.nearest_folder(folder)) as file:
                file.write(b"0")
        except OSError as error:  # which names the file that was tried, not the folder
            return Verdict.FAIL, f"{folder}: {error.strerror}; name a folder that can be written"
        return Verdict.OK, f"{folder} can be written"
    files = FileSystem.open(uri)
    files.require_answer()
    files.write(_PROBE, b"0")
    files.remove(_PROBE)
    return Verdict.OK, f"{without_secrets(uri)} can be written"


def check_collections(recipe: Recipe) -> tuple[Verdict, str]:
    """Whether every collection is there; `run --dry-run` reads all that is in them."""
    from routerretriever.datasets.collection import open_collection

    for name, settings in recipe.domains.items():
        open_collection(name, recipe.domain_path(name), settings)
    return Verdict.OK, f"{len(recipe.domains)} are there; `run --dry-run` reads them through"


def check_mlflow(recipe: Recipe) -> tuple[Verdict, str]:
    """Whether the registry answers, and what it has released."""
    from routerretriever.artifacts.store import ArtifactStore
    from routerretriever.registry.registry import Registry

    # Not opened, which would make the folder.
    registry = Registry.of(recipe, ArtifactStore(str(_local_folder(recipe.storage) or recipe.storage)))
    released = registry.released()
    state = "nothing is released yet" if released is None else f"version {released} is released"
    return Verdict.OK, f"{without_secrets(registry.tracking_uri)}: {state}"


def check_port(host: str, port: int) -> tuple[Verdict, str]:
    """Whether the service could listen."""
    if port == 0:
        return Verdict.OK, "a free one is taken"
    if reason := machine.why_not_listening(host, port):
        return Verdict.NOTE, f"{host}:{port}: {reason}; if it is not this service: --set serving.port=PORT"
    return Verdict.OK, f"{host}:{port} is free"


def _local_folder(storage: str) -> Path | None:
    """The folder that a storage is; None if it is remote."""
    path = local_path(storage)
    return None if path is None else Path(path).expanduser().absolute()


def _made(name: str, check: Check) -> Finding:
    try:
        verdict, text = machine.within(_SECONDS, check, name)
    except Unavailable as error:
        verdict, text = Verdict.FAIL, str(error)
    except (RouterRetrieverError, OSError) as error:
        verdict, text = Verdict.FAIL, without_secrets(str(error))
    return Finding(name, verdict, text.splitlines()[0])


def _has(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
