"""What MLflow keeps of an expert or a bundle: a run with figures, data sets and a card, and a model."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModel, Metric, Param, RunTag
from mlflow.tracking.context.registry import resolve_tags

from routerretriever.bundle.card import bundle_card, expert_card
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.registry.pyfunc import BundleModel, ExpertModel, log_model
from routerretriever.routing.saving import load_router
from routerretriever.runtime.progress import RUN_ID
from routerretriever.training.expert import Expert, version_of

VERSION_TAG = "content_version"
RECIPE_TAG = "recipe"
DOMAIN_TAG = "domain"
TEST_FIGURE = "ndcg_at_10/"
"""Begins the names of a bundle's metrics that say what it serves on a test set, whose name follows."""
BUNDLE_RUN = "bundle-"
_COMMIT_TAG = "git_commit"
_MLFLOW_COMMIT = "mlflow.source.git.commit"
_FORBIDDEN = re.compile(r"[^/\w.\- :]")
"""What MLflow takes in no name of a metric: ``base + BM25`` becomes ``base _ BM25``."""
_CARD = "model_card.md"
_LONGEST = 4500
"""Characters of a description that MLflow's databases take, and some to spare."""


@dataclass(frozen=True)
class RunRecord:
    """What MLflow keeps of the run that made a bundle, beside the bundle."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    mean_ndcg_at_10: float | None = None
    """Mean over the test sets that have an expert; None if none has."""
    reports: Path | None = None
    """Folder of the evaluation's reports."""


@dataclass(frozen=True)
class Recorded:
    """A run and its model, from which a version can be made."""

    run: str
    model: LoggedModel
    tags: dict[str, str]
    description: str


def record_expert(client: MlflowClient, experiment: str, expert: Expert, folder: Path) -> Recorded:
    """Log an expert's training, with its curve, and the expert as a model of its own."""
    card = expert.card
    with _run(client, experiment, f"expert-{expert.domain}") as (run, commit):
        plain = dict(card["training"])
        lora, prefix = plain.pop("lora", None), plain.pop("prefix", None)  # of the first release
        old = {"kind": "prefix", **prefix} if prefix else {"kind": "lora", **(lora or {})}
        adapter = {f"adapter.{key}": value for key, value in plain.pop("adapter", old).items()}
        for step, dev in card["history"]:
            client.log_metric(run, "dev_ndcg_at_10", dev, step=step)
        _log(
            client,
            run,
            {"domain": expert.domain, "encoder": card["encoder"]["name"], **adapter, **plain},
            {
                "best_dev_ndcg_at_10": card["dev_ndcg_at_10"],
                "base_dev_ndcg_at_10": card["base_dev_ndcg_at_10"],
                "train_seconds": card["seconds"],
                "train_steps_per_second": card["steps"] / max(card["seconds"], 1e-9),
            },
            {"train_data": card["train"], "corpus": card["corpus"]},
        )
        _log_data(client, run, {expert.domain: card["corpus"]}, "training", {"judgements": card["train"]})
        text = expert_card(expert.domain, card, EncoderSettings.model_validate(card["encoder"]), None)
        client.log_text(run, text, _CARD)
        with tempfile.TemporaryDirectory() as scratch:
            model = log_model(
                client, experiment, run, "expert", ExpertModel(), {"expert": folder}, Path(scratch)
            )
        tags = {
            VERSION_TAG: expert.version,
            "encoder_fingerprint": card["encoder_fingerprint"],
            DOMAIN_TAG: expert.domain,
            "train_data": card["train"],
            "corpus": card["corpus"],
            "dev_ndcg_at_10": f"{card['dev_ndcg_at_10']:.4f}",
            **commit,
        }
    first = (
        f"Best of {card['steps']} steps at {card['best_step']}: dev nDCG@10 {card['dev_ndcg_at_10']:.4f}, "
        f"base {card['base_dev_ndcg_at_10']:.4f}."
    )
    return Recorded(run, model, tags, f"{first}\n\n{text}"[:_LONGEST])


def record_bundle(
    client: MlflowClient,
    experiment: str,
    folder: Path,
    manifest: Mapping[str, Any],
    content: str,
    record: RunRecord,
) -> Recorded:
    """Log a bundle's figures and pages, and the bundle as a model."""
    recipe, corpora = str(manifest["recipe"]["name"]), manifest["corpora"]
    experts = ", ".join(pin["name"] for pin in manifest["experts"])
    encoder, router = manifest["encoder"]["name"], load_router(folder / "router").kind
    with _run(client, experiment, f"{BUNDLE_RUN}{recipe}") as (run, commit):
        tags = {
            VERSION_TAG: content,
            RECIPE_TAG: recipe,
            "experts": experts,
            "encoder_fingerprint": str(manifest["encoder_fingerprint"]),
            **{f"corpus.{name}": key for name, key in corpora.items()},
            **commit,
        }
        mean = record.mean_ndcg_at_10
        if mean is not None:
            tags["ndcg_at_10"] = f"{mean:.4f}"
        params = {"recipe": recipe, "encoder": encoder, "router": router, "merge": manifest.get("merge", ""),
                  "experts": experts}  # fmt: skip
        _log(client, run, params, record.metrics, tags)
        _log_data(client, run, corpora, "retrieval", {})
        card = bundle_card(manifest)
        client.log_text(run, card, _CARD)
        client.log_dict(run, dict(manifest["recipe"]), "recipe.json")
        if record.reports is not None:
            client.log_artifacts(run, str(record.reports), "evaluation")
        with tempfile.TemporaryDirectory() as scratch:
            model = log_model(
                client, experiment, run, "bundle", BundleModel(), {"bundle": folder}, Path(scratch)
            )
    first = f"Recipe {recipe!r}: {len(manifest['experts'])} experts ({experts}) on {encoder}, router {router}"
    first += "." if mean is None else f"; mean test nDCG@10 {mean:.4f}."
    return Recorded(run, model, tags, f"{first}\n\n{card}"[:_LONGEST])


@contextmanager
def _run(client: MlflowClient, experiment: str, name: str) -> Iterator[tuple[str, dict[str, str]]]:
    """A run while a block logs to it: its id, and the tag that says where the code came from."""
    origin = dict(resolve_tags())
    run = client.create_run(experiment, tags={**origin, "run": RUN_ID}, run_name=name).info.run_id
    try:
        yield run, {_COMMIT_TAG: origin[_MLFLOW_COMMIT]} if _MLFLOW_COMMIT in origin else {}
    except BaseException:
        client.set_terminated(run, "FAILED")
        raise
    client.set_terminated(run)


def _log(
    client: MlflowClient,
    run: str,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
) -> None:
    now = int(time.time() * 1000)
    client.log_batch(
        run,
        [Metric(_FORBIDDEN.sub("_", name), value, now, 0) for name, value in metrics.items()],
        [Param(name, str(value)) for name, value in params.items()],
        [RunTag(name, value) for name, value in tags.items()],
    )


def _log_data(
    client: MlflowClient, run: str, corpora: Mapping[str, str], use: str, more: Mapping[str, str]
) -> None:
    """Name the collections that a run read, by the hashes of what is in them."""
    inputs = [
        DatasetInput(
            Dataset(
                name,
                version_of(key)[:36],
                "routerretriever",
                json.dumps({"corpus": key, **more}, indent=None),
            ),
            [InputTag("mlflow.data.context", use)],
        )
        for name, key in corpora.items()
    ]
    client.log_inputs(run, inputs)
