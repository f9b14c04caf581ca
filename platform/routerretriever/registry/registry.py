"""MLflow: runs for figures, model versions for experts and bundles, an alias for what is released."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar
from urllib.parse import unquote

from mlflow import MlflowClient
from mlflow.entities import Experiment, Run
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList
from rich.table import Table

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.bundle.build import BundleParts, write_bundle
from routerretriever.bundle.manifest import read_manifest
from routerretriever.config.recipe import Recipe, bundle_settings
from routerretriever.config.registry import PREVIOUS, RegistrySettings
from routerretriever.errors import BadInput, NotFound, Refused, StorageError, without_secrets
from routerretriever.hashing import content_hash
from routerretriever.registry.connection import (
    ARTIFACTS,
    default_tracking_uri,
    migrate,
    open_to_read,
    open_to_write,
    reached,
    require_folder,
    warn_of_local_artifacts,
)
from routerretriever.registry.loading import fetch_manifest, find_version
from routerretriever.registry.recording import (
    BUNDLE_RUN,
    DOMAIN_TAG,
    RECIPE_TAG,
    TEST_FIGURE,
    VERSION_TAG,
    Recorded,
    RunRecord,
    record_bundle,
    record_expert,
)
from routerretriever.registry.turns import turn
from routerretriever.runtime.progress import log
from routerretriever.training.expert import Expert

Entity = TypeVar("Entity")


@dataclass(frozen=True)
class BundleVersion:
    """One registered bundle."""

    version: int
    registered: datetime
    experts: str
    ndcg_at_10: Mapping[str, float]
    """Test set -> mean of its queries, when it was registered; empty where nothing was evaluated."""
    recipe: str
    """Name of the recipe that made it; empty if it is older than this tag."""


class Registry:
    """One MLflow store and the names under which a recipe's models live there.

    Reading creates and migrates nothing. No method touches MLflow's global state.
    """

    def __init__(
        self, settings: RegistrySettings, store: ArtifactStore, challenger_alias: str = "challenger"
    ) -> None:
        """Connects to nothing yet.

        Raises:
            BadInput: storage is remote and no server is named.
        """
        self._name = settings.name
        self._alias = settings.alias
        self._challenger = challenger_alias
        self._released_note = settings.released_note
        self.store = store
        self._is_local = settings.tracking_uri is None
        self.tracking_uri = tracking_uri(settings, store)

    @classmethod
    def of(cls, recipe: Recipe, store: ArtifactStore) -> Registry:
        """The registry of a recipe, with its aliases."""
        return cls(recipe.registry, store, recipe.serving.releases.challenger_alias)

    def require_answer(self) -> None:
        """Look into the registry once, so that a run does not find out at its end that it cannot register.

        Raises:
            RegistryError: it cannot be reached, or its database has no folder.
            Refused: its database was made by another version of MLflow, or an expert has the bundles' name.
        """
        require_folder(self.tracking_uri)
        self.released()
        with reached(self.tracking_uri):
            if (client := open_to_read(self.tracking_uri)) is not None:
                self._require_no_expert(client)

    @property
    def bundle_uri(self) -> str:
        """What serving loads."""
        return f"models:/{self._name}@{self._alias}"

    def version_uri(self, version: int) -> str:
        """A bundle version, released or not."""
        return f"models:/{self._name}/{version}"

    def expert_model(self, domain: str) -> str:
        """Name of a domain's registered model."""
        return f"{self._name}-expert-{domain}"

    def register_bundle(
        self, parts: BundleParts, record: RunRecord, release: bool = True, take_over: bool = False
    ) -> tuple[int, dict[str, int]]:
        """Register the experts that are new and a bundle that pins all of them.

        The same content is the same version, also of runs that register it at the same time.

        Args:
            parts: what the bundle is made of.
            record: what to keep of the run.
            release: whether the alias moves to the new version.
            take_over: whether it may be taken from a bundle that another recipe made.

        Returns:
            The bundle's version number, and each expert's.

        Raises:
            Refused: the alias belongs to another recipe; the version is registered, not released.
        """
        with self.alone(), reached(self.tracking_uri, patient=True):
            experiment = self._experiment()
            versions = {
                name: self._register_expert(expert, experiment) for name, expert in parts.experts.items()
            }
            version = self._register_bundle(parts, versions, record, experiment)
        if release:
            self.release(version, take_over)
        return version, versions

    def register_folder(self, folder: Path, release: bool = True, take_over: bool = False) -> int:
        """Register a bundle that was made elsewhere, from its folder; returns its version number.

        Its experts are in it and get no versions of their own.

        Raises:
            BundleError: a file is missing or altered, or the base encoder here is not the bundle's.
            Refused: the alias belongs to another recipe; the version is registered, not released.
        """
        manifest = read_manifest(folder)
        evaluation = manifest.get("evaluation") or {}
        deployed = evaluation.get("deployed")
        means = evaluation.get("mean_ndcg_at_10", {}).get(deployed, {})
        figures = evaluation.get("ndcg_at_10", {}).get(deployed, {})
        record = RunRecord(
            {f"{TEST_FIGURE}{name}": figure for name, figure in figures.items()}, means.get("with_expert")
        )
        with self.alone(), reached(self.tracking_uri, patient=True):
            version = self._register_files(folder, manifest, record, self._experiment())
        if release:
            self.release(version, take_over)
        return version

    def release(self, version: int, take_over: bool = False) -> int | None:
        """Point the alias at a bundle version; running services follow. The one before is remembered.

        The experts' aliases follow what the bundle pins. A challenger that is released is no challenger any
        more.

        Returns:
            The version that was released before.

        Raises:
            NotFound: there is no such version.
            BadInput: its files are gone.
            BundleError: its manifest is damaged.
            Refused: another recipe made the released version, and ``take_over`` was not asked for.
        """
        bundles = {bundle.version: bundle for bundle in self.bundles()}
        new = self._require(version, bundles)
        before = self.released()
        present = bundles.get(before) if before is not None else None
        if present is not None and not take_over and _of_others(present, new):
            raise Refused(
                f"{self.bundle_uri}: is version {before}, made by recipe {present.recipe!r}; version "
                f"{version} is registered and was made by recipe {new.recipe!r}. Give registry.name a name "
                f"of its own, or release it with `routerretriever release --version {version} --take-over`"
            )
        manifest = self._manifest_of(version)
        with reached(self.tracking_uri):
            if before != version:
                if before is not None:
                    self._writer.set_registered_model_alias(self._name, PREVIOUS, str(before))
                self._writer.set_registered_model_alias(self._name, self._alias, str(version))
            pins = manifest["experts"]
            self._release_experts({pin.get("folder", pin["name"]): pin["version"] for pin in pins})
        if self.challenger() == version:
            self.challenge(None)
        self._note_release(version)
        return before

    def _note_release(self, version: int) -> None:
        """Have a service that starts while the registry is away know what was rolled back from."""
        try:
            self.store.write_pointer(self._released_note, {"version": version})
        except StorageError as error:
            log.warning(
                "%s; a service that starts while the registry is away may take what was before", error
            )

    def roll_back(self) -> int:
        """Release the version that was released before the present one; returns its number.

        Raises:
            NotFound: nothing was released before.
            Refused: the alias was moved by hand, and the version before is released already.
        """
        before = self._version_of(PREVIOUS)
        if before is None:
            raise NotFound(
                f"{self._name}: nothing was released before in {without_secrets(self.tracking_uri)}"
            )
        if before == self.released():
            raise Refused(
                f"{self.bundle_uri}: is version {before} already, which the alias {PREVIOUS} names too; "
                "release another with `routerretriever release --version N`"
            )
        self.release(before, take_over=True)
        return before

    def challenge(self, version: int | None) -> int | None:
        """Give a bundle version the challenger's share of the traffic; None takes the challenger away.

        Returns:
            The version that was the challenger before.

        Raises:
            NotFound: there is no such version.
            Refused: it is released already.
        """
        if version is not None:
            self._require(version, {bundle.version: bundle for bundle in self.bundles()})
            if version == self.released():
                raise Refused(
                    f"version {version} of {self._name} is released, so it has all of the traffic; name "
                    "another version as the challenger"
                )
        before = self.challenger()
        with reached(self.tracking_uri):
            if version is not None:
                self._writer.set_registered_model_alias(self._name, self._challenger, str(version))
            elif before is not None:
                self._writer.delete_registered_model_alias(self._name, self._challenger)
        return before

    def challenger(self) -> int | None:
        """The version that the challenger's alias points at."""
        return self._version_of(self._challenger)

    def released(self) -> int | None:
        """The version that the alias points at."""
        return self._version_of(self._alias)

    def require_released(self) -> None:
        """Refuse a service of nothing.

        Raises:
            NotFound: no version is released.
            RegistryError: the registry cannot be reached.
        """
        if self.released() is None:
            raise NotFound(
                f"{self.bundle_uri}: nothing is released in {self.tracking_uri}; "
                "`routerretriever run` with the recipe trains, registers and releases a bundle"
            )

    def bundles(self) -> list[BundleVersion]:
        """All registered bundles, the newest first."""
        with reached(self.tracking_uri):
            client = open_to_read(self.tracking_uri)
            found = [] if client is None else _versions(client, self._name)
            figures = {} if client is None else _test_figures(client, self._name)
        bundles = [
            BundleVersion(
                int(version.version),
                datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
                version.tags.get("experts", ""),
                figures.get(version.run_id, {}),
                version.tags.get(RECIPE_TAG, ""),
            )
            for version in found
        ]
        return sorted(bundles, key=lambda bundle: -bundle.version)

    def recipe_of(self, version: int) -> dict[str, Any]:
        """The recipe that a bundle version was made by, as JSON.

        Raises:
            NotFound: there is no such version.
        """
        recipe: dict[str, Any] = self._manifest_of(version)["recipe"]
        return recipe

    def migrate(self) -> bool:
        """Bring the database to the schema of the installed MLflow; returns whether it was older.

        Raises:
            NotFound: there is no database: a server migrates its own.
        """
        return migrate(self.tracking_uri)

    @cached_property
    def _writer(self) -> MlflowClient:
        return open_to_write(self.tracking_uri)

    def alone(self) -> AbstractContextManager[None]:
        """Keep other runs that share the storage from registering meanwhile."""
        return turn(self.store.files, f"registry/{self._name}")

    def _experiment(self) -> str:
        """The id of the experiment that runs are logged under."""
        with reached(self.tracking_uri):  # a server that is away is found out soon
            location, name = None, self._name
            if self._is_local:
                location = Path(self.store.location(ARTIFACTS)).as_uri()
            found = self._writer.get_experiment_by_name(name)
            if found is not None and location and found.artifact_location != location:
                # The storage was moved; what is logged under the old experiment would go to the old place.
                name = f"{name}-{content_hash(location)[:8]}"
                found = self._writer.get_experiment_by_name(name)
            if found is None:
                found = self._writer.get_experiment(
                    self._writer.create_experiment(name, artifact_location=location)
                )
            warn_of_local_artifacts(found.artifact_location, self.tracking_uri)
            return str(found.experiment_id)

    def _require_no_expert(self, client: MlflowClient) -> None:
        """Keep bundles out of the registered model of another recipe's expert."""
        if (domain := _taken_by(client, self._name, DOMAIN_TAG, RECIPE_TAG)) is not None:
            raise Refused(
                f"registry.name: {self._name} is the registered model of another recipe's expert, of domain "
                f"{domain!r}; give bundles a name of their own"
            )

    def _require_no_bundle(self, model: str, domain: str) -> None:
        """Keep an expert out of the registered model of another recipe's bundles."""
        if (recipe := _taken_by(self._writer, model, RECIPE_TAG, DOMAIN_TAG)) is not None:
            raise Refused(
                f"registry.name: {self._name}: the expert of domain {domain!r} would be registered as "
                f"{model}, where the bundles of recipe {recipe!r} are; give registry.name another name"
            )

    def _register_expert(self, expert: Expert, experiment: str) -> int:
        model = self.expert_model(expert.domain)
        self._require_no_bundle(model, expert.domain)
        self.ensure_model(
            model,
            f"The adapter of domain {expert.domain!r} on base encoder {expert.card['encoder']['name']}.",
        )
        if (known := self._version_with(model, expert.version)) is not None:
            return known
        recorded = record_expert(self._writer, experiment, expert, expert.folder(self.store))
        return self._create_version(model, recorded)

    def _release_experts(self, pinned: Mapping[str, str]) -> None:
        """Point the experts' aliases at what a bundle pins; experts that are not in it lose theirs.

        Args:
            pinned: domain -> content of its expert. That of an imported bundle has no version here.
        """
        wanted = f"name LIKE '{self._name}%'"
        models: list[RegisteredModel] = _search_all(self._writer.search_registered_models, wanted)
        for model in models:
            domain = model.name.removeprefix(self.expert_model(""))
            if domain == model.name:
                continue
            number = self._version_with(model.name, pinned[domain]) if domain in pinned else None
            if number is not None:
                self._writer.set_registered_model_alias(model.name, self._alias, str(number))
            elif self._is_expert_released(model.name, domain):
                self._writer.delete_registered_model_alias(model.name, self._alias)

    def _is_expert_released(self, model: str, domain: str) -> bool:
        """Whether an expert's alias points anywhere; a bundle may be registered under such a name too."""
        version = find_version(self._writer, f"models:/{model}@{self._alias}")
        return version is not None and version.tags.get(DOMAIN_TAG) == domain

    def _register_bundle(
        self, parts: BundleParts, versions: Mapping[str, int], record: RunRecord, experiment: str
    ) -> int:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "bundle"
            folder.mkdir()
            manifest = write_bundle(folder, parts, versions, self.store)
            return self._register_files(folder, manifest, record, experiment)

    def _register_files(
        self, folder: Path, manifest: Mapping[str, Any], record: RunRecord, experiment: str
    ) -> int:
        recipe = str(manifest["recipe"]["name"])
        self._require_no_expert(self._writer)
        self.ensure_model(
            self._name, f"Router and experts of recipe {recipe!r}; the alias says what is served."
        )
        content = _content_of(manifest)
        if (known := self._version_with(self._name, content)) is not None:
            return known
        recorded = record_bundle(self._writer, experiment, folder, manifest, content, record)
        return self._create_version(self._name, recorded)

    def _create_version(self, model: str, recorded: Recorded) -> int:
        created = self._writer.create_model_version(
            model,
            # Not its models:/ URI, which MLflow would look up in the process's own store.
            recorded.model.artifact_location,
            recorded.run,
            tags=recorded.tags,
            description=recorded.description,
            model_id=recorded.model.model_id,
        )
        return int(created.version)

    def ensure_model(self, name: str, description: str) -> None:
        """Create a registered model if it is not there."""
        try:
            self._writer.create_registered_model(name, description=description)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _version_with(self, model: str, content: str) -> int | None:
        """The version of a model that has this content."""
        numbers = [
            int(version.version)
            for version in _versions(self._writer, model)
            if version.tags.get(VERSION_TAG) == content
        ]
        return max(numbers, default=None)

    def _require(self, version: int, bundles: Mapping[int, BundleVersion]) -> BundleVersion:
        if version not in bundles:
            known = f"the newest is {max(bundles)}" if bundles else "nothing is registered yet"
            where = without_secrets(self.tracking_uri)
            raise NotFound(f"{self._name}: no version {version} in {where}; {known}")
        return bundles[version]

    def _manifest_of(self, version: int) -> dict[str, Any]:
        return fetch_manifest(self.version_uri(version), self.tracking_uri)

    def _version_of(self, alias: str) -> int | None:
        with reached(self.tracking_uri):
            client = open_to_read(self.tracking_uri)
            found = None if client is None else find_version(client, f"models:/{self._name}@{alias}")
        return None if found is None else int(found.version)


def versions_table(
    bundles: Sequence[BundleVersion], released: int | None, challenger: int | None = None
) -> Table:
    """Bundles for a person to choose from; a star marks the released one, a word the challenger.

    Figures are means over the test sets that all evaluated bundles have; others would not compare.
    """
    evaluated = [set(bundle.ndcg_at_10) for bundle in bundles if bundle.ndcg_at_10]
    shared = sorted(set.intersection(*evaluated)) if evaluated else []
    means = f"test nDCG@10 x 100, mean of {len(shared)} common test set(s)"
    table = Table("", "version", "registered (UTC)", means, "experts")
    for bundle in bundles:
        marks = {"*": released, "challenger": challenger}
        mark = " ".join(name for name, version in marks.items() if version == bundle.version)
        figures = [bundle.ndcg_at_10[name] for name in shared if bundle.ndcg_at_10]
        figure = f"{100 * fmean(figures):.1f}" if figures else ""
        registered = f"{bundle.registered:%Y-%m-%d %H:%M}"
        table.add_row(mark, str(bundle.version), registered, figure, bundle.experts)
    return table


def _taken_by(client: MlflowClient, model: str, tag: str, own_tag: str) -> str | None:
    """Whose versions a registered model has, by their tag; None if some are one's own, or have neither."""
    tags = [version.tags for version in _versions(client, model)]
    found = [str(each[tag]) for each in tags if tag in each]
    return found[0] if found and not any(own_tag in each for each in tags) else None


def tracking_uri(settings: RegistrySettings, store: ArtifactStore) -> str:
    """The recipe's tracking server, or SQLite in a local storage folder.

    Raises:
        BadInput: no server is named, and storage is remote or cannot hold MLflow's database.
    """
    if settings.tracking_uri is not None:
        return settings.tracking_uri
    if not store.is_local:
        raise BadInput(
            f"registry.tracking_uri: storage {store.uri} is no local folder; name an MLflow server"
        )
    uri = default_tracking_uri(store.uri)
    if "?" in uri or unquote(uri) != uri:
        # SQLAlchemy would open a file in another folder, and MLflow makes that of an address that is encoded.
        raise BadInput(
            f"storage: {store.uri}: its path holds a question mark, or a percent sign before two digits, "
            "which MLflow reads as something else; name another folder, or an MLflow server as "
            "registry.tracking_uri"
        )
    return uri


def _content_of(manifest: Mapping[str, Any]) -> str:
    """Hash of what makes a bundle another one.

    That a recipe has another port or storage does not, nor where the encoder's settings came from.
    """
    evaluation = manifest.get("evaluation") or {}
    # What the manifest has elsewhere: the recipe, and the encoder's settings.
    figures = {name: value for name, value in evaluation.items() if name not in ("settings", "encoder")}
    content = {name: value for name, value in manifest.items() if name != "encoder_sources"}
    return content_hash({**content, "recipe": bundle_settings(manifest["recipe"]), "evaluation": figures})


def _of_others(present: BundleVersion, new: BundleVersion) -> bool:
    # Versions that are older than the tag may be anybody's.
    return bool(present.recipe and new.recipe) and present.recipe != new.recipe


def _versions(client: MlflowClient, model: str) -> list[ModelVersion]:
    return _search_all(client.search_model_versions, f"name='{model}'")


def _test_figures(client: MlflowClient, name: str) -> dict[str, dict[str, float]]:
    """Run that made a bundle -> test set -> nDCG@10 of what the bundle serves."""

    def experiments(wanted: str, page_token: str | None) -> PagedList[Experiment]:
        return client.search_experiments(filter_string=wanted, page_token=page_token)

    found: list[Experiment] = _search_all(experiments, f"name LIKE '{name}%'")
    places = [experiment.experiment_id for experiment in found]
    wanted = f"attributes.run_name LIKE '{BUNDLE_RUN}%'"
    runs: list[Run] = _search_all(partial(client.search_runs, places), wanted) if places else []
    return {
        run.info.run_id: {
            metric.removeprefix(TEST_FIGURE): figure
            for metric, figure in run.data.metrics.items()
            if metric.startswith(TEST_FIGURE)
        }
        for run in runs
    }


def _search_all(search: Callable[..., PagedList[Entity]], wanted: str) -> list[Entity]:
    """All pages of what MLflow finds."""
    found: list[Entity] = []
    page = None
    while True:
        answer = search(wanted, page_token=page)
        found += answer
        page = answer.token
        if not page:
            return found
