"""MLflow: runs for figures, model versions for experts and bundles, an alias for what is released."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from routerretriever.errors import BadInput, NotFound, RegistryError

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING", "false")

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from rich.table import Table

import routerretriever
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.bundle.bundle import RouterRetriever, ServiceFacts, write_bundle
from routerretriever.config.recipe import Recipe
from routerretriever.evaluation.evaluation import Evaluation
from routerretriever.reports.page import write_reports
from routerretriever.reports.tables import as_dict
from routerretriever.routing.protocol import Router
from routerretriever.runtime.progress import RUN_ID
from routerretriever.training.expert import Expert

_VERSION_TAG = "content_version"
_PREVIOUS = "previous"
"""Alias of the bundle that was released before the present one."""


@dataclass(frozen=True)
class BundleVersion:
    """One registered bundle."""

    version: int
    registered: datetime
    experts: str
    ndcg_at_10: str
    """Mean over the test sets that have an expert, when it was registered."""


class BundleModel(mlflow.pyfunc.PythonModel):
    """The bundle as an MLflow pyfunc: ``predict(["a query", ...])`` gives one vector per query."""

    def load_context(self, context: Any) -> None:
        """Load the bundle from the model's artifacts."""
        self._bundle = RouterRetriever(Path(context.artifacts["bundle"]))

    def predict(  # type: ignore[no-untyped-def]  # MLflow reads the hints, and knows none for an array
        self, context: Any, model_input: list[str], params: dict[str, Any] | None = None
    ):
        """Route and embed queries: [B, d]."""
        return self._bundle.encode_queries(model_input)


class Registry:
    """One tracking store and the names under which a recipe's models live there."""

    def __init__(self, recipe: Recipe, store: ArtifactStore) -> None:
        self._recipe = recipe
        self._name = recipe.registry.name
        self._alias = recipe.registry.alias
        self._challenger = recipe.serving.releases.challenger_alias
        self.tracking_uri = tracking_uri(recipe, store)
        mlflow.set_tracking_uri(self.tracking_uri)
        for chatty in ("mlflow", "alembic"):
            # Every registration would warn that models of this kind are pickled.
            logging.getLogger(chatty).setLevel(logging.ERROR)
        self._client = MlflowClient()
        with self._reached():
            if self._client.get_experiment_by_name(self._name) is None:
                local = recipe.registry.tracking_uri is None
                location = Path(store.location("mlflow-artifacts")).as_uri() if local else None
                self._client.create_experiment(self._name, artifact_location=location)
            mlflow.set_experiment(self._name)

    def expert_model(self, domain: str) -> str:
        """Name of a domain's registered model."""
        return f"{self._name}-expert-{domain}"

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """MLflow's client tries for minutes by itself; then the user is told what to do."""
        try:
            yield
        except MlflowException as error:
            raise RegistryError(
                f"registry.tracking_uri: {self.tracking_uri}: {error.message}\nnothing is lost: all that was "
                "made lies in storage; run the same command again, which registers what is missing"
            ) from error

    def register_expert(self, expert: Expert, store: ArtifactStore) -> int:
        """Register an expert's adapter, once; returns its version number."""
        model = self.expert_model(expert.domain)
        self._ensure_model(model)
        for version in self._client.search_model_versions(f"name='{model}'"):
            if version.tags.get(_VERSION_TAG) == expert.version:
                return int(version.version)
        card = expert.card
        with mlflow.start_run(run_name=f"expert-{expert.domain}") as run:
            plain = dict(card["training"])
            lora, prefix = plain.pop("lora", None), plain.pop("prefix", None)  # of the first release
            old = {"kind": "prefix", **prefix} if prefix else {"kind": "lora", **(lora or {})}
            adapter = {f"adapter.{key}": value for key, value in plain.pop("adapter", old).items()}
            mlflow.log_params(
                {"domain": expert.domain, "encoder": card["encoder"]["name"], **adapter, **plain}
            )
            for step, dev in card["history"]:
                mlflow.log_metric("dev_ndcg_at_10", dev, step=step)
            mlflow.log_metrics(
                {
                    "best_dev_ndcg_at_10": card["dev_ndcg_at_10"],
                    "base_dev_ndcg_at_10": card["base_dev_ndcg_at_10"],
                    "train_seconds": card["seconds"],
                    "train_steps_per_second": card["steps"] / max(card["seconds"], 1e-9),
                }
            )
            mlflow.log_artifacts(str(expert.folder(store)), "expert")
            tags = {_VERSION_TAG: expert.version, "encoder_fingerprint": card["encoder_fingerprint"],
                    "domain": expert.domain, "train_data": card["train"], "corpus": card["corpus"],
                    "dev_ndcg_at_10": f"{card['dev_ndcg_at_10']:.4f}"}  # fmt: skip
            created = self._client.create_model_version(
                model, source=f"{run.info.artifact_uri}/expert", run_id=run.info.run_id, tags=tags
            )
        self._client.set_registered_model_alias(model, self._alias, created.version)
        return int(created.version)

    def register_bundle(
        self,
        recipe: Recipe,
        router: Router,
        experts: Mapping[str, Expert],
        evaluation: Evaluation,
        way: str,
        facts: ServiceFacts,
        store: ArtifactStore,
        release: bool = True,
        figures: Mapping[str, float] | None = None,
    ) -> tuple[int, dict[str, int]]:
        """Register the experts that are new and a bundle that pins all of them.

        Args:
            recipe: the run that made the parts.
            router: the fitted router.
            experts: experts by name.
            evaluation: figures to carry along.
            way: what the evaluation calls this bundle's way of answering.
            facts: what a service is to know.
            store: where the experts lie.
            release: whether the alias moves to the new version.
            figures: what else to keep among the run's metrics, as how long the steps took that led here.

        Returns:
            The bundle's version number, and each expert's.
        """
        with self._reached():
            versions = {name: self.register_expert(expert, store) for name, expert in experts.items()}
            version = self._register_bundle(
                recipe, router, experts, versions, evaluation, way, facts, store, figures or {}
            )
            if release:
                self.release(version)
        return version, versions

    def _register_bundle(
        self,
        recipe: Recipe,
        router: Router,
        experts: Mapping[str, Expert],
        versions: Mapping[str, int],
        evaluation: Evaluation,
        way: str,
        facts: ServiceFacts,
        store: ArtifactStore,
        figures: Mapping[str, float],
    ) -> int:
        self._ensure_model(self._name)
        with (
            tempfile.TemporaryDirectory() as scratch,
            mlflow.start_run(run_name=f"bundle-{recipe.name}") as run,
        ):
            folder = Path(scratch) / "bundle"
            folder.mkdir()
            write_bundle(folder, recipe, router, experts, versions, as_dict(evaluation), facts, store)
            mlflow.log_metrics(
                {
                    f"ndcg_at_10/{each}/{dataset}": value
                    for each, means in evaluation.ndcg_at_10.items()
                    for dataset, value in means.items()
                }
            )
            mlflow.log_metrics(dict(figures))
            mlflow.set_tag("run", RUN_ID)
            mlflow.log_params({"router": recipe.routing.router, "experts": ", ".join(experts)})
            write_reports(evaluation, Path(scratch) / "evaluation")
            mlflow.log_artifacts(str(Path(scratch) / "evaluation"), "evaluation")
            logged = mlflow.pyfunc.log_model(
                name="bundle",
                python_model=BundleModel(),
                artifacts={"bundle": str(folder)},
                pip_requirements=[f"routerretriever=={routerretriever.__version__}"],
            )
            mean = evaluation.mean(way)
            # Not through log_model, which prints about it.
            created = self._client.create_model_version(
                self._name,
                source=logged.model_uri,
                run_id=run.info.run_id,
                model_id=logged.model_id,
                tags={
                    "experts": ", ".join(experts),
                    # No domain with an expert may have a test split.
                    **({} if mean is None else {"ndcg_at_10": f"{mean:.4f}"}),
                },
            )
        return int(created.version)

    def release(self, version: int) -> None:
        """Point the alias at a bundle version; running services follow. The one before is remembered.

        Raises:
            NotFound: there is no such version.
        """
        self._require(version)
        before = self.released()
        if before == version:
            return
        with self._reached():
            if before is not None:
                self._client.set_registered_model_alias(self._name, _PREVIOUS, str(before))
            self._client.set_registered_model_alias(self._name, self._alias, str(version))

    def roll_back(self) -> int:
        """Release the version that was released before the present one; returns its number.

        Raises:
            NotFound: nothing was released before.
        """
        before = self._version_of(_PREVIOUS)
        if before is None:
            raise NotFound(f"{self._name}: nothing was released before in {self.tracking_uri}")
        self.release(before)
        return before

    def challenge(self, version: int | None) -> None:
        """Give a bundle version the challenger's share of the traffic; None takes the challenger away.

        Raises:
            NotFound: there is no such version.
        """
        if version is not None:
            self._require(version)
        with self._reached():
            if version is not None:
                self._client.set_registered_model_alias(self._name, self._challenger, str(version))
            elif self.challenger() is not None:
                self._client.delete_registered_model_alias(self._name, self._challenger)

    def challenger(self) -> int | None:
        """The version that the challenger's alias points at."""
        return self._version_of(self._challenger)

    def released(self) -> int | None:
        """The version that the alias points at."""
        return self._version_of(self._alias)

    def bundles(self) -> list[BundleVersion]:
        """All registered bundles, the newest first."""
        with self._reached():
            found = self._client.search_model_versions(f"name='{self._name}'")
        return sorted(
            (
                BundleVersion(
                    int(version.version),
                    datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
                    version.tags.get("experts", ""),
                    version.tags.get("ndcg_at_10", ""),
                )
                for version in found
            ),
            key=lambda bundle: -bundle.version,
        )

    def _require(self, version: int) -> None:
        if version not in [bundle.version for bundle in self.bundles()]:
            raise NotFound(f"{self._name}: no version {version} in {self.tracking_uri}")

    def _version_of(self, alias: str) -> int | None:
        with self._reached():
            try:
                return int(self._client.get_model_version_by_alias(self._name, alias).version)
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise

    @property
    def bundle_uri(self) -> str:
        """What serving loads."""
        return bundle_uri(self._recipe)

    def _ensure_model(self, name: str) -> None:
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def versions_table(bundles: Sequence[BundleVersion], released: int | None) -> Table:
    """Bundles for a person to choose from."""
    table = Table("", "version", "registered (UTC)", "test nDCG@10 x 100", "experts")
    for bundle in bundles:
        star = "*" if bundle.version == released else ""
        figure = f"{100 * float(bundle.ndcg_at_10):.1f}" if bundle.ndcg_at_10 else ""
        registered = f"{bundle.registered:%Y-%m-%d %H:%M}"
        table.add_row(star, str(bundle.version), registered, figure, bundle.experts)
    return table


def bundle_uri(recipe: Recipe) -> str:
    """The released bundle of a recipe."""
    return f"models:/{recipe.registry.name}@{recipe.registry.alias}"


def tracking_uri(recipe: Recipe, store: ArtifactStore) -> str:
    """The recipe's tracking server, or SQLite in a local storage folder.

    Raises:
        BadInput: storage is remote and no server is named.
    """
    if recipe.registry.tracking_uri is not None:
        return recipe.registry.tracking_uri
    if not store.is_local:
        raise BadInput(
            f"registry.tracking_uri: storage {store.uri} is no local folder; name an MLflow server"
        )
    return f"sqlite:///{store.uri}/mlflow.db"


def fetch_bundle(uri: str, into: Path, tracking: str | None = None) -> Path:
    """A folder with a bundle's files: ``uri`` itself if it is a folder, a copy from MLflow otherwise.

    Args:
        uri: ``models:/<name>@<alias>``, ``models:/<name>/<version>`` or a folder.
        into: an empty folder that receives the copy.
        tracking: the registry, if it is not MLflow's present one.

    Raises:
        NotFound: the registry has no such model version.
    """
    if not uri.startswith("models:/"):
        return Path(uri)
    if tracking is not None:
        mlflow.set_tracking_uri(tracking)
    try:
        fetched = mlflow.artifacts.download_artifacts(uri, dst_path=str(into))
    except MlflowException as error:
        raise NotFound(f"{uri}: not in the registry {mlflow.get_tracking_uri()} ({error.message})") from None
    return Path(fetched) / "artifacts" / "bundle"
