"""From feedback to a challenger: judgements, new train and dev queries, the same training and tests.

Documents and their vectors stay; only the experts of domains with new judgements, and the router, change.
Each time all feedback is read and the domain's first collection is the start, so that what a user has
deleted is gone from the next expert, and running twice is the same as once.

The recipe file describes what is released. A challenger is trained from a recipe that is changed in memory;
the file follows when the challenger is released (``follow_release``). What ``learn`` has tried is noted in
storage, so that a challenger that lost is not registered again from the same feedback.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.config.loading import load_recipe
from routerretriever.config.recipe import Recipe, bundle_settings
from routerretriever.config.serving import FeedbackSettings
from routerretriever.datasets.collection import Collection, Qrels, open_collection
from routerretriever.datasets.feedback import Feedback, FeedbackLog, Judged, judge
from routerretriever.datasets.passages import parent_of
from routerretriever.datasets.splitting import hold_out
from routerretriever.datasets.texts import normal_text
from routerretriever.datasets.variant import read_provenance, write_variant
from routerretriever.hashing import content_hash
from routerretriever.pipeline.domains import (
    changing_domains,
    is_shipped,
    register_with,
    set_collections,
    with_collections,
)
from routerretriever.pipeline.pipeline import Registered
from routerretriever.pipeline.places import open_storage, require_lasting_data
from routerretriever.runtime.progress import log

if TYPE_CHECKING:
    from routerretriever.registry.registry import Registry

_FOLDER = "learned"
_DEV_SHARE = 0.2
_START = "learned_from"

State = Literal["new", "challenger", "released", "lost", "nothing"]
_TOLD: dict[State, str] = {
    "new": "new",
    "challenger": "the challenger has learned from them",
    "released": "the released bundle has learned from them",
    "lost": "a challenger that was taken away had learned from them; new feedback makes a new one",
    "nothing": "no judgements that users agree on",
}


@dataclass(frozen=True)
class Learned:
    """What the feedback on one domain amounts to."""

    domain: str
    reports: int
    train: int
    dev: int
    path: str
    """The collection with these judgements, as a recipe names it; without any the domain's first one."""
    state: State = "new"
    """What has become of it."""

    def told(self) -> str:
        """One line for people."""
        numbers = f"{self.reports} reports, {self.train} train and {self.dev} dev queries of them"
        return f"{self.domain}: {numbers}; {_TOLD[self.state]}"


@dataclass(frozen=True)
class _Attempt:
    """The last challenger that ``learn`` registered; kept in storage."""

    version: int | None = None
    made_of: str = ""
    """Hash of the settings that it was made by."""
    collections: dict[str, str] = field(default_factory=dict)
    """Domain -> the collection that it learned from."""
    lost: dict[str, list[str]] = field(default_factory=dict)
    """Domain -> collections of challengers before it that were not released."""

    @classmethod
    def read(cls, store: ArtifactStore, recipe: Recipe) -> _Attempt:
        return cls(**(store.read_pointer(_note(recipe)) or {}))

    def write(self, store: ArtifactStore, recipe: Recipe) -> None:
        store.write_pointer(_note(recipe), asdict(self))

    def without(self, collections: Mapping[str, str]) -> _Attempt:
        """The same where these, by domain, were rolled back from; those that ``learn`` made have lost."""
        lost = {name: list(paths) for name, paths in self.lost.items()}
        for name, path in collections.items():
            if _is_learned(path) and path not in lost.setdefault(name, []):
                lost[name].append(path)
        return replace(self, lost=lost)

    def all_lost(self, recipe: Recipe, aliased: Sequence[int | None]) -> dict[str, list[str]]:
        """Collections of challengers that are neither released nor challenge any more, this one's too."""
        lost = {name: list(paths) for name, paths in self.lost.items()}
        if self.version not in aliased:
            for name, path in self.collections.items():
                if name in recipe.domains and recipe.domains[name].path != path:
                    lost.setdefault(name, []).append(path)
        return lost


def learn(recipe_path: Path) -> tuple[list[Learned], Registered | None]:
    """Train the experts of domains with new feedback again, and make the bundle the challenger.

    The recipe file is changed only to follow what is released.

    Returns:
        What was found for each domain, and what was registered; None if there is nothing new.

    Raises:
        RecipeError: other experts would have to be trained anew, the recipe comes with the package, or a
            submitted job would write into Ray's copy of the working directory.
    """
    with changing_domains(recipe_path):
        follow_release(recipe_path)
        return _learn(load_recipe(recipe_path))


def _learn(recipe: Recipe) -> tuple[list[Learned], Registered | None]:
    require_lasting_data(recipe)
    store = open_storage(recipe)
    registry = _registry(recipe, store)
    last = _Attempt.read(store, recipe)
    challenger, released = registry.challenger(), registry.released()
    lost = last.all_lost(recipe, (challenger, released))
    is_waiting = last.version is not None and last.version == challenger != released
    found = [
        _with_state(one, recipe, lost, last.collections if is_waiting else {})
        for one in _collect_all(recipe, store)
    ]
    paths = {one.domain: one.path for one in found if one.state in ("new", "challenger")}
    if not paths:
        if is_waiting:
            registry.challenge(None)
            _Attempt(lost=lost).write(store, recipe)
            log.warning("version %d is no challenger any more: the feedback that it learned from is gone",
                        challenger)  # fmt: skip
        return found, None
    made_of = content_hash(bundle_settings(with_collections(recipe, paths).model_dump(mode="json")))
    if is_waiting and made_of == last.made_of:
        return found, None
    registered = register_with(recipe, paths)
    registry.challenge(registered.version)
    _Attempt(registered.version, made_of, paths, lost).write(store, recipe)
    return found, registered


def follow_release(recipe_path: Path, overrides: list[str] | None = None) -> dict[str, str]:
    """Have a recipe file name the collections that the released bundle was made of.

    That concerns collections that ``learn`` made, and those that it made them of; what else was changed in
    the file stays. To be called whenever the alias has moved.

    Args:
        recipe_path: the recipe file.
        overrides: what replaces its settings; they say which storage and registry are meant.

    Returns:
        Domain -> its collection, of those that changed.
    """
    recipe = load_recipe(recipe_path, overrides)
    store = open_storage(recipe)
    if is_shipped(recipe_path) or store.read_pointer(_note(recipe)) is None:
        return {}
    registry = _registry(recipe, store)
    version = registry.released()
    if version is None:
        return {}
    changes = {}
    made = registry.recipe_of(version)["domains"]
    for name in [name for name in recipe.domains if name in made]:
        now, theirs = recipe.domains[name].path, made[name]["path"]
        if now == theirs:
            continue
        if _start(recipe, now) == _start(recipe, theirs):
            changes[name] = theirs
        elif _is_learned(now) or _is_learned(theirs):
            log.warning("%s: domains.%s.path is %s; version %d was made of %s. It is left as it is",
                        recipe_path, name, now, version, theirs)  # fmt: skip
    if changes:
        last = _Attempt.read(store, recipe)
        if version != last.version:
            last.without({name: recipe.domains[name].path for name in changes}).write(store, recipe)
        set_collections(recipe_path, changes)
    for name, path in changes.items():
        log.info(
            "%s: domains.%s.path is now %s, of which version %d was made", recipe_path, name, path, version
        )
    return changes


def _collect_all(recipe: Recipe, store: ArtifactStore) -> list[Learned]:
    """The feedback on every domain that has an expert and reports, or has learned from some before."""
    feedback = FeedbackLog(store.files)
    feedback.compact()
    reports = defaultdict[str, list[Feedback]](list)
    for one in feedback.read():
        reports[one.collection].append(one)
    if others := sorted(reports.keys() - recipe.expert_domains):
        told = ", ".join(f"{name} ({len(reports[name])})" for name in others)
        log.warning("reports that nothing is learned from, as no expert is of the collection: %s", told)
    settings = recipe.serving.feedback or FeedbackSettings()
    return [
        _collect(recipe, name, reports[name], settings)
        for name in recipe.expert_domains
        if reports[name] or _is_learned(recipe.domains[name].path)
    ]


def _collect(recipe: Recipe, name: str, reports: Sequence[Feedback], settings: FeedbackSettings) -> Learned:
    """Write a domain's collection with the judgements of its users, unless it is there."""
    start = _start(recipe, recipe.domains[name].path)
    first = open_collection(name, recipe.collection_path(start), recipe.domains[name])
    judged = usable(first, judge(reports, settings.discount, settings.least, settings.passed_over))
    if not judged:
        return Learned(name, len(reports), 0, 0, start)
    digest = content_hash(first.corpus_hash(), first.split_hash("train"), first.split_hash("dev"),
                          [[one.query, one.grades] for one in judged])  # fmt: skip
    path = f"{_FOLDER}/{name}-{digest}"
    folder = Path(recipe.collection_path(path))
    if not folder.exists():
        write_learned(first, judged, folder, len(reports), start)
    counts = read_provenance(folder)["counts"]
    return Learned(name, len(reports), counts["train"], counts["dev"], path)


def _with_state(
    one: Learned, recipe: Recipe, lost: Mapping[str, Sequence[str]], waiting: Mapping[str, str]
) -> Learned:
    state: State = "new"
    if one.path == recipe.domains[one.domain].path:
        state = "released" if one.train else "nothing"
    elif one.path == waiting.get(one.domain):
        state = "challenger"
    elif one.path in lost.get(one.domain, ()):
        state = "lost"
    return replace(one, state=state)


def usable(collection: Collection, judged: Sequence[Judged]) -> list[Judged]:
    """The judgements that may be learned from: of documents that are there, and of no dev or test query."""
    plain = collection.uncut
    held = {normal_text(text) for split in ("dev", "test") if split in plain.splits()
            for text in plain.queries(split).values()}  # fmt: skip
    ids = {document.id for document in plain.documents()}
    cut = collection.settings.passages is not None
    found = []
    for one in judged:
        grades: dict[str, int] = {}
        for document, grade in one.grades.items():
            # Passages were reported by their own ids before searches told documents.
            whole = parent_of(document) if cut and document not in ids else document
            if whole in ids:
                grades[whole] = max(grade, grades.get(whole, 0))
        if grades and normal_text(one.query) not in held:
            found.append(Judged(one.query, grades))
    return sorted(found, key=lambda one: normal_text(one.query))


def write_learned(
    collection: Collection, judged: Sequence[Judged], folder: Path, reports: int, start: str
) -> None:
    """Write a collection with more train and dev queries; test stays, and what each was written about.

    Where dev plays test, dev is held out of train when that is read, as it is of the first collection.

    Args:
        collection: the domain's first.
        judged: what is added.
        folder: the new folder.
        reports: how many it was judged by.
        start: the first collection, as the recipe names it.
    """
    plain = collection.uncut
    has_dev = plain.settings.test_split != "dev"
    texts: dict[str, str] = {}
    about: dict[str, dict[str, object]] = {}
    qrels: dict[str, Qrels] = {}
    for split in plain.splits():
        texts |= plain.queries(split)
        sources = plain.require(split).sources
        about |= {query: {"metadata": {"source": source}} for query, source in sources.items()}
        qrels.setdefault(split if has_dev or split != "dev" else "train", {}).update(plain.qrels(split))
    new = {f"feedback-{content_hash(normal_text(one.query))}": one for one in judged}
    # What train asks already stays there: held out, it would be known.
    known = {normal_text(text) for text in texts.values()}
    fresh = [query for query, one in new.items() if normal_text(one.query) not in known]
    held = hold_out(fresh, _DEV_SHARE, "feedback") if len(fresh) > 1 and has_dev else set()
    for query, one in new.items():
        texts[query] = one.query
        qrels["dev" if query in held else "train"][query] = one.grades
    counts = {"reports": reports, "train": len(new) - len(held), "dev": len(held)}
    write_variant(
        collection,
        folder,
        ({"_id": query, "text": text} | about.get(query, {}) for query, text in texts.items()),
        qrels,
        {_START: start, "learned_by": "routerretriever learn", "counts": counts},
    )


def _start(recipe: Recipe, path: str) -> str:
    """The collection that a learned one was made of, as a recipe names it; any other is its own start."""
    return str(read_provenance(Path(recipe.collection_path(path))).get(_START, path))


def _is_learned(path: str) -> bool:
    return path.startswith(f"{_FOLDER}/")


def _note(recipe: Recipe) -> str:
    """Name of the note that says what was tried."""
    return f"learned-{recipe.registry.name}"


def _registry(recipe: Recipe, store: ArtifactStore) -> Registry:
    from routerretriever.registry.registry import Registry

    return Registry.of(recipe, store)
