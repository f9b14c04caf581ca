"""What the commands do, as calls of the same names, for programs and notebooks.

    import routerretriever as rr

    recipe = rr.Recipe(name="mine", domains={"health": {"path": "sample:health"}})
    rr.evaluate(recipe).frame()
    rr.register(recipe)

A recipe is a ``Recipe`` or the path of its file. Each call makes what it needs and skips what is there.
Nothing is printed; ``routerretriever.runtime.progress.set_up(quiet=False)`` shows bars and log lines, in
notebooks too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from routerretriever.config.loading import load_recipe
from routerretriever.config.recipe import Recipe
from routerretriever.errors import BadInput, writing

if TYPE_CHECKING:
    from routerretriever.evaluation.evaluation import Evaluation
    from routerretriever.methods.base import Calibration
    from routerretriever.pipeline.doctor import Finding
    from routerretriever.pipeline.learning import Learned
    from routerretriever.pipeline.pipeline import Pipeline, Registered
    from routerretriever.registry.backup import Backup
    from routerretriever.registry.registry import BundleVersion, Registry
    from routerretriever.routing.protocol import Router
    from routerretriever.studies.analyses import Analyses, NoiseFloor
    from routerretriever.studies.assess import Assessment
    from routerretriever.studies.learning_curve import LearningCurve
    from routerretriever.studies.reproduction import Outcome
    from routerretriever.studies.training_search import Ranking
    from routerretriever.studies.tuning import Trial

AnyRecipe = Recipe | str | Path


def run(recipe: AnyRecipe) -> Registered:
    """Encode, train, score, route, evaluate and register; serve the result with ``serve``."""
    return _pipeline(recipe).register()


def encode(recipe: AnyRecipe) -> None:
    """Encode the documents of all collections, once, with the base encoder."""
    _pipeline(recipe).build(["encode"])


def train(recipe: AnyRecipe) -> None:
    """Train the experts, in parallel; finished ones are skipped."""
    _pipeline(recipe).build(["train"])


def score(recipe: AnyRecipe) -> None:
    """Score the training queries with every expert and the base."""
    _pipeline(recipe).build(["score"])


def pilots(recipe: AnyRecipe) -> Router:
    """Fit the recipe's router from the scores."""
    return _pipeline(recipe).deployed.deployment().router


def evaluate(recipe: AnyRecipe) -> Evaluation:
    """Evaluate base, experts, router and oracles on the test sets."""
    return _pipeline(recipe).evaluation


def register(recipe: AnyRecipe, release: bool = True) -> Registered:
    """Register the experts and the router bundle in MLflow; ``release`` moves the alias to it."""
    return _pipeline(recipe).register(release)


def calibrate(recipe: AnyRecipe, domain: str) -> Calibration:
    """Learn how much BM25 counts in one domain; the next ``register`` finds the figures there."""
    return _pipeline(recipe).calibrate(domain)


def tune_training(recipe: AnyRecipe, domains: Sequence[str] | None = None, seeds: int = 1) -> Ranking:
    """Try the training settings of ``tuning.space`` on dev; trials that have ended are not run again."""
    from routerretriever.studies import runs

    return runs.tune_training(_pipeline(recipe), domains, seeds)


def tune_router(recipe: AnyRecipe, unseen_share: float = 0.2) -> list[Trial]:
    """Try routers on dev queries; the best comes first."""
    from routerretriever.studies import runs

    return runs.tune_router(_pipeline(recipe), unseen_share)


def analyse(
    recipe: AnyRecipe, order: Sequence[str] | None = None, clusters: Sequence[int] = (1, 2, 4, 8)
) -> Analyses:
    """The paper's analyses: with and without an expert, experts one by one, centroids."""
    from routerretriever.studies import runs

    return runs.analyse_run(_pipeline(recipe), None if order is None else list(order), list(clusters))


def noise_floor(recipe: AnyRecipe, domain: str, copies: int = 6) -> NoiseFloor:
    """How much of two oracles' gain is luck: by copies of one expert, and by the words of other queries."""
    from routerretriever.studies import runs

    return runs.measure_noise_floor(_pipeline(recipe), domain, copies)


def learning_curve(
    recipe: AnyRecipe, domain: str, sizes: Sequence[int] | None = None, seeds: int = 1
) -> LearningCurve:
    """Quality by number of training queries: experts trained on nested samples, measured on test."""
    from routerretriever.studies import runs

    return runs.draw_learning_curve(_pipeline(recipe), domain, None if sizes is None else list(sizes), seeds)


def reproduce(file: str | Path, only: Sequence[str] = ()) -> list[Outcome]:
    """Run the recipes of a file, or some of its cases, and compare with its expected figures."""
    from routerretriever.studies import reproduction

    return reproduction.reproduce(Path(file), only, [])


def assess(
    recipe: AnyRecipe, documents: str | Path, name: str = "assessed", examples: str | Path | None = None
) -> Assessment:
    """Which of the experts, the base or BM25 helps documents that have no queries yet."""
    from routerretriever.studies.assess import assess_documents

    return assess_documents(_read(recipe), name, Path(documents), _file(examples))


def add_expert(
    recipe: str | Path,
    name: str,
    path: str | None = None,
    release: bool = True,
    documents: str | Path | None = None,
    examples: str | Path | None = None,
) -> Registered:
    """Add a domain: train its expert, register a bundle, update the recipe file.

    Args:
        recipe: path of the recipe's file.
        name: of the new domain.
        path: its collection, from ``data_root`` on, or ``sample:<domain>``.
        release: whether the bundle is served from now on.
        documents: instead of ``path``, a file or folder of documents, about which queries are generated.
        examples: with ``documents``, a file of up to eight queries as people write them.

    Raises:
        BadInput: neither or both of ``path`` and ``documents`` are given.
    """
    from routerretriever.pipeline.documents import add_from_documents
    from routerretriever.pipeline.domains import add_domain

    if path is not None and documents is None and examples is None:
        return add_domain(Path(recipe), name, path, release)
    if path is None and documents is not None:
        return add_from_documents(Path(recipe), name, Path(documents), _file(examples), release)[1]
    raise BadInput("add_expert: give either path, or documents, to which examples may be added")


def remove_expert(recipe: str | Path, name: str, release: bool = True) -> Registered:
    """Remove an expert: register a bundle without it, update the recipe file. Nothing is trained."""
    from routerretriever.pipeline.domains import remove_domain

    return remove_domain(Path(recipe), name, release)


def learn(recipe: str | Path) -> tuple[list[Learned], Registered | None]:
    """Train experts again on users' feedback, and challenge the release; None if there is nothing new."""
    from routerretriever.pipeline import learning

    return learning.learn(Path(recipe))


def init(
    folders: Sequence[str | Path], to: str | Path = Path("recipe.yaml"), name: str | None = None
) -> Path:
    """Write a commented recipe for collections; gives the file, which must be new."""
    from routerretriever.config.starter import write_recipe
    from routerretriever.runtime.machine import torch_gpus

    with writing(Path(to)):
        return write_recipe(folders, Path(to), name, torch_gpus() > 0)


def doctor(recipe: AnyRecipe | None = None) -> list[Finding]:
    """What is installed, what this machine can do, and what would fail of a recipe."""
    from routerretriever.pipeline.doctor import examine

    return examine(None if recipe is None else _read(recipe))


def versions(recipe: AnyRecipe) -> Sequence[BundleVersion]:
    """The registered bundles."""
    return open_registry(recipe).bundles()


def release(recipe: AnyRecipe, version: int, take_over: bool = False) -> int | None:
    """Release a registered bundle; gives the version that was released before.

    A recipe file then names the collections that ``learn`` made for it.
    """
    before = open_registry(recipe).release(version, take_over)
    _follow(recipe)
    return before


def rollback(recipe: AnyRecipe) -> int:
    """Release again what was released before; gives its version."""
    version = open_registry(recipe).roll_back()
    _follow(recipe)
    return version


def backup(recipe: AnyRecipe, to: str | Path, minimal: bool = False) -> Backup:
    """Write a back-up of a recipe's storage and registry, a folder or a .tar.gz; runs may be at work.

    ``minimal`` leaves out what can be made again, apart from the documents that the released bundle searches.
    """
    from routerretriever.registry.backup import back_up

    registry = open_registry(recipe)
    with writing(Path(to)):
        return back_up(registry, Path(to), minimal)


def restore(source: str | Path, to: str | Path) -> int:
    """Make a storage of a back-up, in a new or empty folder; gives the number of files."""
    from routerretriever.registry.backup import restore as bring_back

    with writing(Path(to)):
        return bring_back(Path(source), Path(to))


def serve(recipe: AnyRecipe) -> None:
    """Serve the released bundle over HTTP until interrupted; the collections' files are not needed."""
    from routerretriever.pipeline.places import open_storage
    from routerretriever.serving.deployments.run import serve_forever

    settings = _read(recipe)
    serve_forever(settings, open_storage(settings))


def migrate(recipe: AnyRecipe) -> bool:
    """Bring the MLflow database to the installed MLflow's schema; gives whether it was older."""
    return open_registry(recipe).migrate()


def export_expert(
    recipe: AnyRecipe, name: str, to: str | Path, merged: bool = False, version: int | None = None
) -> Path:
    """Write an expert as a folder that PEFT and sentence-transformers open on any machine."""
    from routerretriever.bundle import export

    with writing(Path(to)), _bundle(open_registry(recipe), version) as bundle:
        return export.export_expert(bundle, name, Path(to), merged)


def export(recipe: AnyRecipe, to: str | Path, documents: bool = True, version: int | None = None) -> Path:
    """Write a bundle as one file, with the documents that it searches, for ``import_bundle`` elsewhere."""
    from routerretriever.bundle.archive import pack

    registry = open_registry(recipe)
    with writing(Path(to)), _bundle(registry, version) as bundle:
        return pack(bundle, Path(to), registry.store if documents else None)


def import_bundle(
    recipe: AnyRecipe, archive: str | Path, release: bool = True, take_over: bool = False
) -> str:
    """Register an exported bundle, under the recipe's ``registry.name``; gives the URI of its version."""
    from routerretriever.bundle.archive import unpack

    registry = open_registry(recipe)
    with TemporaryDirectory() as scratch:
        bundle = unpack(Path(archive), Path(scratch), registry.store)
        return registry.version_uri(registry.register_folder(bundle, release, take_over))


@contextmanager
def _bundle(registry: Registry, version: int | None) -> Iterator[Path]:
    """The files of a version, or of the released one, while a block uses them."""
    from routerretriever.registry.loading import fetch_bundle

    uri = registry.bundle_uri if version is None else registry.version_uri(version)
    with TemporaryDirectory() as scratch:
        yield fetch_bundle(uri, Path(scratch), registry.tracking_uri)


def _file(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _read(recipe: AnyRecipe) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe)


def _pipeline(recipe: AnyRecipe) -> Pipeline:
    from routerretriever.pipeline.pipeline import Pipeline

    return Pipeline(_read(recipe))


def _follow(recipe: AnyRecipe) -> None:
    if not isinstance(recipe, Recipe):
        from routerretriever.pipeline.learning import follow_release

        follow_release(Path(recipe))


def open_registry(recipe: AnyRecipe) -> Registry:
    """The registry of a recipe; nothing is changed.

    Raises:
        RecipeError: storage is relative, in a submitted job.
        StorageError: it cannot be opened, or does not answer.
    """
    from routerretriever.pipeline.places import open_storage
    from routerretriever.registry.registry import Registry

    settings = _read(recipe)
    return Registry.of(settings, open_storage(settings))
