"""What a run would do: its steps, what of them is there already, and what they ask of the cluster.

Reads collections and storage; starts no Ray, loads no model, writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rich.table import Table

from routerretriever.adapters.files import tower_fingerprint
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.config.recipe import Recipe
from routerretriever.corpus.artifact import corpus_key
from routerretriever.datasets.collection import Collection
from routerretriever.methods.ddr import DdrPipeline
from routerretriever.methods.settings import DdrSettings
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.scoring.table import score_key
from routerretriever.training.experts import (
    average_key,
    checkpoints_key,
    ddr_key,
    expert_key,
    general_prefix_key,
    joint_key,
    open_expert,
)
from routerretriever.types import BASE


@dataclass(frozen=True)
class PlannedStep:
    """One step; ``to_do`` is empty if all of it is there."""

    step: str
    to_do: str
    there: str
    asks_for: str


def plan_run(pipeline: Pipeline) -> list[PlannedStep]:
    """The steps of ``run``, in order."""
    recipe, store = pipeline.recipe, pipeline.store
    collections = list(pipeline.collections.values())
    tested = [collection for collection in collections if "test" in collection.splits()]
    experts = {
        each.name: expert_key(each, recipe.encoder, recipe.training) for each in pipeline.expert_collections
    }
    singles = _single_keys(recipe, pipeline.expert_collections, list(experts.values()))
    return [
        _encoding(collections, recipe, store),
        _training("train experts", experts, pipeline),
        _training("train baselines", singles, pipeline),
        *_ddr(pipeline),
        _scoring(pipeline.expert_collections, pipeline.source_split, experts, recipe, store),
        _scoring(tested, "test", {**experts, **singles}, recipe, store),
        PlannedStep("route", f"fit router {recipe.routing.router}", "", "the driver"),
        PlannedStep("evaluate", f"{len(tested)} test sets", "", "the driver"),
        PlannedStep("register", f"bundle {recipe.registry.name}", "", "the driver, and MLflow"),
    ]


def plan_table(steps: list[PlannedStep]) -> Table:
    """The plan for people."""
    table = Table("step", "to do", "there already", "asks for", title="plan", show_lines=True)
    for step in steps:
        table.add_row(step.step, step.to_do or "nothing", step.there, step.asks_for)
    return table


def _encoding(collections: list[Collection], recipe: Recipe, store: ArtifactStore) -> PlannedStep:
    to_do, there, total, settings = [], [], 0, recipe.corpus
    for collection in collections:
        key = corpus_key(collection, recipe.encoder)
        if store.exists(key):
            there.append(collection.name)
            continue
        documents = sum(1 for _ in collection.documents())
        total += documents
        shards = -(-documents // settings.shard_size)
        left = sum(name.startswith("embeddings/") for name in store.unfinished(key))
        resumed = f", {left} there" if left else ""
        to_do.append(f"{collection.name}: {documents} documents in {shards} shards{resumed}")
    if to_do:
        to_do.append(f"{total} documents in all")
    workers = f"{settings.workers or 'as many as fit'} workers"
    return PlannedStep(
        "encode documents",
        "\n".join(to_do),
        ", ".join(there),
        f"{workers}, each {_amount(settings.cpus_per_worker, settings.gpus_per_worker)}",
    )


def _training(step: str, keys: dict[str, str], pipeline: Pipeline) -> PlannedStep:
    recipe, store, collections = pipeline.recipe, pipeline.store, pipeline.collections
    training = recipe.training
    there = [name for name, key in keys.items() if store.exists(key)]
    to_do = []
    for name, key in keys.items():
        if name in there:
            continue
        if name in recipe.single_models:
            to_do.append(f"{name}: {recipe.single_models[name].kind} of {len(recipe.expert_domains)} domains")
            continue
        queries = len(collections[name].qrels("train"))
        resumed = ", from its last checkpoint" if store.holds(checkpoints_key(key)) else ""
        to_do.append(f"{name}: {queries} queries{resumed}")
    limit = f"{training.max_steps} steps" if training.max_steps else f"{training.max_epochs} epochs"
    workers = f"{training.workers} workers each" if training.workers > 1 else "1 worker each"
    return PlannedStep(
        step,
        "\n".join([*to_do, f"each at most {limit} of {training.batch_size} queries"] if to_do else []),
        ", ".join(there),
        f"{workers}, a worker {_amount(training.cpus_per_worker, training.gpus_per_worker)}",
    )


def _ddr(pipeline: Pipeline) -> list[PlannedStep]:
    recipe, store = pipeline.recipe, pipeline.store
    ddr = recipe.ddr
    if ddr is None:
        return []
    asks_for = _amount(recipe.training.cpus_per_worker, recipe.training.gpus_per_worker)
    if ddr.general is None:
        return [_domain_prefixes(DdrPipeline(recipe, None), ddr, asks_for)]
    domains = [pipeline.collections[name] for name in recipe.general_domains]
    key = general_prefix_key(domains, recipe.encoder, recipe.training, ddr.general, ddr.prefix)
    prefix = f"at most {ddr.general.max_steps} steps on {', '.join(recipe.general_domains)}"
    if not store.exists(key):
        later = "all documents again, with the prefix; then domain prefixes and routers"
        return [PlannedStep("train general prefix", f"{prefix}\n{later}", "", asks_for)]
    inner = DdrPipeline(recipe, open_expert(store, key))
    again = _encoding(list(inner.collections.values()), inner.recipe, store)
    return [
        PlannedStep("train general prefix", "", "general-prefix", asks_for),
        replace(again, step="encode documents with it"),
        _domain_prefixes(inner, ddr, asks_for),
    ]


def _domain_prefixes(inner: DdrPipeline, ddr: DdrSettings, asks_for: str) -> PlannedStep:
    recipe = inner.recipe
    collections = inner.expert_collections
    keys = {
        name: ddr_key(name, labels, inner.modules, collections, recipe.encoder, recipe.training, ddr)
        for name, labels in inner.allowed.items()
    }
    missing = [name for name, own in keys.items() if not inner.store.exists(own)]
    return PlannedStep(
        "train domain prefixes",
        "\n".join(f"{name}: {len(inner.modules)} modules, {len(collections)} domains" for name in missing),
        ", ".join(name for name in keys if name not in missing),
        asks_for,
    )


def _scoring(
    collections: list[Collection], split: str, experts: dict[str, str], recipe: Recipe, store: ArtifactStore
) -> PlannedStep:
    versions = {BASE: tower_fingerprint(recipe.encoder)}
    versions |= {name: key.rsplit("-", 1)[-1] for name, key in experts.items()}
    settings, to_do, there, total = recipe.scoring, [], 0, 0
    for collection in collections:
        missing = [
            name
            for name, version in versions.items()
            if not store.exists(
                score_key(
                    collection, split, f"{name}-{version}", recipe.encoder, recipe.corpus.index, settings
                )
            )
        ]
        there += len(versions) - len(missing)
        if missing:
            queries = len(collection.qrels(split))
            to_do.append(f"{collection.name}: {queries} queries x {len(missing)} models")
            total += queries * len(missing)
    if to_do:
        to_do.append(f"{total} query encodings and searches in all")
    workers = f"{settings.workers or 'as many as fit'} workers"
    return PlannedStep(
        f"score {split}",
        "\n".join(to_do),
        f"{there} of {len(collections) * len(versions)} partitions",
        f"{workers}, each {_amount(settings.cpus_per_worker, settings.gpus_per_worker)}",
    )


def _single_keys(recipe: Recipe, collections: list[Collection], experts: list[str]) -> dict[str, str]:
    return {
        name: joint_key(name, collections, recipe.encoder, recipe.training, model)
        if model.kind == "joint"
        else average_key(name, experts)
        for name, model in recipe.single_models.items()
    }


def _amount(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU" + (f", {gpus:g} GPU" if gpus else "")
