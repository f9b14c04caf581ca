"""What `learn` makes of simulated users, night by night, while what they ask about changes halfway.

    python -m jobs.benchmarks.feedback
    python -m jobs.benchmarks.feedback my-recipe.yaml --domain manuals --drift contracts --clicks cascade

One collection holds the documents of two domains. It has a few labelled queries of the first. Users ask the
other train and dev queries, whose labels are hidden: in the first half of the nights those of the first
domain, then those of the second. Few queries are asked often and many seldom (Zipf's law). What users see is
what the released bundle finds; what they click goes into the feedback log; each night `learn` runs, and its
challenger is released. Beside it stand the first bundle, which does not learn, and one that is trained in the
same way on the true labels of all queries that were asked so far.

Click models, with their authors' parameters:

* ``pbm``: rank r is looked at with probability 1/r; what is looked at is clicked if it is relevant, else
  one time in ten (Joachims, Swaminathan, Schnabel, WSDM 2017).
* ``cascade``: users read from the top; they click 95 % of what is relevant and 5 % of the rest, and leave
  after a click in 90 and 20 % (the navigational user of Hofmann, Whiteson, de Rijke, CIKM 2011).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from routerretriever import RouterRetriever
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.commands import open_registry, register, release
from routerretriever.config.loading import load_recipe, parse_recipe
from routerretriever.config.recipe import Recipe
from routerretriever.datasets.collection import Collection, Qrels, open_collection
from routerretriever.datasets.feedback import Feedback, FeedbackLog, Judged
from routerretriever.datasets.splitting import first_by_hash
from routerretriever.datasets.writing import FolderWriter
from routerretriever.measures import mean_ndcg
from routerretriever.pipeline.domains import register_with
from routerretriever.pipeline.learning import Learned, learn, write_learned
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.runtime.progress import log, set_up
from ruamel.yaml import YAML

from jobs.benchmarks.measure import measured, report

_DOMAIN = "stream"
_USERS = 200
_SHOWN = 10
_DEFAULT: dict[str, Any] = {
    # As small as jobs/recipes/sample.yaml; an expert is deployed only if it is better than the base on dev.
    "training": {"batch_size": 16, "max_steps": 50, "evaluate_every": 5, "patience": 3, "selection": "dev"},
}


class Clicks(StrEnum):
    """A click model."""

    PBM = "pbm"
    CASCADE = "cascade"


@dataclass(frozen=True)
class Asked:
    """Queries whose labels are hidden from the service, of one of the two domains."""

    texts: dict[str, str]
    qrels: Qrels


@dataclass(frozen=True)
class Stream:
    """The merged collection, what is asked of it, and its held-out queries by domain."""

    folder: Path
    asked: Sequence[Asked]
    held_out: Mapping[str, Asked]


@dataclass
class Night:
    """Figures of one night; nDCG@10 of held-out queries by domain and over all of them."""

    sessions: int
    """Since the beginning."""
    queries: int
    """Different ones that were asked since the beginning."""
    found: Learned | None
    precision: float
    """Share of the learned pairs of query and document that are relevant."""
    ndcg_at_10: dict[str, dict[str, float]]
    """System -> domain -> mean."""
    seconds: float


def click_pbm(shown: Sequence[str], relevant: set[str], rng: np.random.Generator) -> list[str]:
    """A session of a user who looks at rank r with probability 1/r."""
    looked = [document for rank, document in enumerate(shown, start=1) if rng.random() < 1 / rank]
    return [document for document in looked if rng.random() < (1.0 if document in relevant else 0.1)]


def click_cascade(shown: Sequence[str], relevant: set[str], rng: np.random.Generator) -> list[str]:
    """A session of a user who reads from the top and leaves when content."""
    clicked = []
    for document in shown:
        click, leave = (0.95, 0.9) if document in relevant else (0.05, 0.2)
        if rng.random() < click:
            clicked.append(document)
            if rng.random() < leave:
                break
    return clicked


_CLICKS: dict[Clicks, Callable[[Sequence[str], set[str], np.random.Generator], list[str]]] = {
    Clicks.PBM: click_pbm,
    Clicks.CASCADE: click_cascade,
}


def merge(collections: Sequence[Collection], folder: Path, labelled: int) -> Stream:
    """Write one collection of several, with some labelled queries of the first, half train and half dev."""
    writer = FolderWriter(folder)
    asked, held_out = [], {}
    for collection in collections:
        for document in collection.documents():
            writer.document(document.text, document.title, f"{collection.name}-{document.id}")
        splits = {name: _own(collection, name) for name in ("train", "dev", "test")}
        hidden = Asked(
            splits["train"].texts | splits["dev"].texts, splits["train"].qrels | splits["dev"].qrels
        )
        if collection is collections[0]:
            known = first_by_hash(hidden.texts, labelled, "labelled")
            for split, queries in (("train", known[::2]), ("dev", known[1::2])):
                _write(writer, split, _only(hidden, queries))
            hidden = _only(hidden, [query for query in hidden.texts if query not in known])
        asked.append(hidden)
        held_out[collection.name] = splits["test"]
        _write(writer, "test", splits["test"])
    writer.close()
    return Stream(folder, asked, held_out)


def _own(collection: Collection, split: str) -> Asked:
    """A split's queries, with ids that two domains do not share."""
    name = collection.name
    return Asked(
        {f"{name}-{query}": text for query, text in collection.queries(split).items()},
        {
            f"{name}-{query}": {f"{name}-{document}": grade for document, grade in own.items() if grade > 0}
            for query, own in collection.qrels(split).items()
        },
    )


def _only(asked: Asked, queries: Sequence[str]) -> Asked:
    return Asked({i: asked.texts[i] for i in queries}, {i: asked.qrels[i] for i in queries})


def _write(writer: FolderWriter, split: str, asked: Asked) -> None:
    for query, text in asked.texts.items():
        writer.query(text, query)
        for document, grade in asked.qrels[query].items():
            writer.judge(split, query, document, grade, split)


class Searcher:
    """Ranks the collection's documents with a registered bundle."""

    def __init__(self, recipe: Recipe, version: int) -> None:
        registry = open_registry(recipe)
        uri = f"models:/{recipe.registry.name}/{version}"
        self._model = RouterRetriever.load(uri, registry.tracking_uri)
        self._index = Pipeline(recipe).workspace.open_index(_DOMAIN)

    def run(self, texts: Mapping[str, str]) -> dict[str, dict[str, float]]:
        """Query id -> document -> score."""
        return self._index.run(list(texts), self._model.encode_queries(list(texts.values())), _SHOWN)

    def measure(self, held_out: Mapping[str, Asked]) -> dict[str, float]:
        """Mean nDCG@10 by domain, and over all queries."""
        found = {name: mean_ndcg(own.qrels, self.run(own.texts)) for name, own in held_out.items()}
        sizes = [len(own.texts) for own in held_out.values()]
        return {**found, "all": float(np.average(list(found.values()), weights=sizes))}


class Simulation:
    """A recipe on disk, its users, and a bundle of true labels beside it."""

    def __init__(self, recipe: Recipe, stream: Stream, root: Path, clicks: Clicks, seed: int) -> None:
        self.stream = stream
        self._path = root / "recipe.yaml"
        with self._path.open("w", encoding="utf-8") as file:
            YAML().dump(recipe.model_dump(mode="json"), file)
        self._first = recipe
        self._clicks = _CLICKS[clicks]
        self._rng = np.random.default_rng(seed)
        self._log = FeedbackLog(ArtifactStore.open(recipe.storage).files)
        self._order = [self._rng.permutation(list(asked.texts)).tolist() for asked in stream.asked]
        self.asked: dict[str, Asked] = {}
        """What was asked so far, by query."""
        self.sessions = 0
        self.released = self._start = register(self._path).version

    @cached_property
    def static(self) -> dict[str, float]:
        """Figures of the bundle that does not learn."""
        return Searcher(self._first, self._start).measure(self.stream.held_out)

    def day(self, half: int, sessions: int) -> None:
        """Users ask the released bundle and click."""
        asked, order = self.stream.asked[half], self._order[half]
        run = Searcher(self._first, self.released).run(asked.texts)
        share = 1 / np.arange(1, len(order) + 1)
        for place in self._rng.choice(len(order), sessions, p=share / share.sum()):
            query = order[place]
            shown = sorted(run[query], key=lambda document: (-run[query][document], document))
            clicked = self._clicks(shown, set(asked.qrels[query]), self._rng)
            user = f"user-{self._rng.integers(_USERS)}"
            self.asked.setdefault(query, _only(asked, [query]))
            self.sessions += 1
            self._log.append(
                Feedback(
                    f"s{self.sessions}", float(self.sessions), "", user, _DOMAIN, asked.texts[query],
                    tuple(shown), tuple(clicked),
                )
            )  # fmt: skip

    def night(self) -> Night:
        """Learn from all sessions so far and release; train on the true labels of the same queries beside."""
        with measured("learn") as cost:
            found, registered = learn(self._path)
            if registered is not None:
                self.released = registered.version
                release(self._path, self.released)
        labelled = self._labelled()
        one = next(iter(found), None)
        return Night(
            self.sessions,
            len(self.asked),
            one,
            self._precision(one),
            {
                "static": self.static,
                "learning": Searcher(self._first, self.released).measure(self.stream.held_out),
                "labelled": Searcher(self._first, labelled).measure(self.stream.held_out),
            },
            cost.seconds,
        )

    def _labelled(self) -> int:
        """Register a bundle of the true labels of all queries that were asked, split as `learn` splits."""
        first = open_collection(_DOMAIN, self.stream.folder)
        judged = [
            Judged(asked.texts[query], asked.qrels[query]) for query, asked in sorted(self.asked.items())
        ]
        folder = self.stream.folder.with_name(f"labelled-{self.sessions}")
        write_learned(first, judged, folder, self.sessions, str(self.stream.folder))
        return register_with(self._first, {_DOMAIN: str(folder)}).version

    def _precision(self, learned: Learned | None) -> float:
        if learned is None:
            return float("nan")
        collection = open_collection(_DOMAIN, load_recipe(self._path).collection_path(learned.path))
        truth = {asked.texts[query]: set(asked.qrels[query]) for query, asked in self.asked.items()}
        right = [
            document in truth[text]
            for split in ("train", "dev")
            for query, text in collection.queries(split).items()
            if text in truth
            for document in collection.qrels(split)[query]
        ]
        return float(np.mean(right)) if right else float("nan")


def main(
    recipe: Annotated[
        Path | None, typer.Argument(help="Default: shell, then tenancy, of the sample.")
    ] = None,
    domain: Annotated[str, typer.Option(help="What users ask about first.")] = "shell",
    drift: Annotated[str, typer.Option(help="What they ask about in the second half.")] = "tenancy",
    sessions: Annotated[int, typer.Option(help="Over all nights.", min=4)] = 1000,
    nights: Annotated[int, typer.Option(min=2)] = 4,
    labelled: Annotated[int, typer.Option(help="Labelled queries at the start.", min=4)] = 30,
    clicks: Annotated[Clicks, typer.Option(help="How users click.")] = Clicks.PBM,
    seed: int = 0,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
) -> None:
    """Simulate days and nights, and show what was gained on held-out queries."""
    set_up(quiet=True)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        settings = _settings(recipe, (domain, drift), overrides)
        own = [open_collection(name, settings.domain_path(name), settings.domains[name]).uncut
               for name in (domain, drift)]  # fmt: skip
        stream = merge(own, root / _DOMAIN, labelled)
        own_place = {"registry": {}, "storage": str(root / "storage"), "data_root": str(root)}
        domains = {_DOMAIN: {"path": _DOMAIN}}
        merged = parse_recipe(
            {**settings.model_dump(mode="json"), **own_place, "name": "feedback", "domains": domains}
        )
        simulation = Simulation(merged, stream, root, clicks, seed)
        done: list[Night] = []
        for night in range(nights):
            simulation.day(int(night >= nights / 2), sessions // nights)
            done.append(simulation.night())
            log.info("night %d: %s", night + 1, done[-1])
    _report(settings, (domain, drift), clicks, seed, done)


def _settings(recipe: Path | None, names: Sequence[str], overrides: list[str] | None) -> Recipe:
    if recipe is not None:
        settings = load_recipe(recipe, overrides)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            domains = {name: {"path": f"sample:{name}"} for name in names}
            file = Path(scratch) / "recipe.yaml"
            with file.open("w", encoding="utf-8") as opened:
                YAML().dump({"name": "sample", **_DEFAULT, "domains": domains}, opened)
            settings = load_recipe(file, overrides)
    if missing := [name for name in names if name not in settings.domains]:
        raise typer.BadParameter(f"no domain {missing[0]!r}; there are {', '.join(settings.domains)}")
    return settings


def _report(
    settings: Recipe, names: Sequence[str], clicks: Clicks, seed: int, nights: Sequence[Night]
) -> None:
    shown = (*names, "all")
    rows = []
    for number, night in enumerate(nights, start=1):
        judged = night.found.train + night.found.dev if night.found else 0
        for system, figures in night.ndcg_at_10.items():
            about = (
                [str(number), str(night.sessions), str(night.queries), str(judged), f"{night.precision:.2f}"]
                if system == "static"
                else [""] * 5
            )
            rows.append([*about, system, *(f"{100 * figures[name]:.1f}" for name in shown)])
    last = nights[-1].ndcg_at_10
    gains = {name: last[name]["all"] - last["static"]["all"] for name in ("learning", "labelled")}
    log.info(
        "gained in all: learning %+.1f, labelled %+.1f nDCG@10 x 100", *(100 * one for one in gains.values())
    )
    report(
        f"feedback-{'-'.join(names)}-{clicks}-{seed}",
        f"users who click ({clicks}): {names[0]}, then {names[1]}; nDCG@10 x 100 on held-out queries",
        ["night", "sessions", "asked", "judged", "precision", "system", *shown],
        rows,
        {"recipe": settings.model_dump(mode="json"), "clicks": clicks, "seed": seed, "nights": nights},
    )


if __name__ == "__main__":
    typer.run(main)
