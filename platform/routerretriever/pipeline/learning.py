"""From feedback to a challenger: judgements, new train and dev queries, the same training and tests.

Documents and their vectors stay; only the experts of domains with new judgements, and the router, change.
Each time all feedback is read and the domain's first collection is the start, so that what a user has
deleted is gone from the next expert, and running twice is the same as once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.config.loading import load_recipe
from routerretriever.config.recipe import Recipe
from routerretriever.config.serving import FeedbackSettings
from routerretriever.datasets.collection import Collection, Qrels, open_collection
from routerretriever.datasets.feedback import Feedback, FeedbackLog, Judged, judge
from routerretriever.datasets.passages import parent_of
from routerretriever.datasets.splitting import hold_out
from routerretriever.datasets.texts import normal_text
from routerretriever.datasets.variant import read_provenance, write_variant
from routerretriever.hashing import content_hash
from routerretriever.pipeline.domains import change_collections
from routerretriever.pipeline.pipeline import Registered

_FOLDER = "learned"
_DEV_SHARE = 0.2
_START = "learned_from"


@dataclass(frozen=True)
class Learned:
    """What the feedback on one domain amounts to."""

    domain: str
    reports: int
    train: int
    dev: int
    path: str
    """The new collection, as the recipe names it; empty if nothing is new."""

    def told(self) -> str:
        """One line for people."""
        what = f"{self.domain}: {self.reports} reports, {self.train} train and {self.dev} dev queries of them"
        return what if self.path else f"{what}; nothing new"


def learn(recipe_path: Path) -> tuple[list[Learned], Registered | None]:
    """Train the experts of domains with new feedback again, and make the bundle the challenger.

    Returns:
        What was found for each domain, and what was registered; None if there is nothing new.

    Raises:
        RecipeError: other experts would have to be trained anew.
    """
    recipe = load_recipe(recipe_path)
    store = ArtifactStore.open(recipe.storage)
    log = FeedbackLog(store.files)
    log.compact()
    settings = recipe.serving.feedback or FeedbackSettings()
    found = []
    for name in recipe.expert_domains:
        if reports := log.read(name):
            found.append(_collect(recipe, name, reports, settings))
    paths = {one.domain: one.path for one in found if one.path}
    if not paths:
        return found, None
    registered = change_collections(recipe_path, paths)
    from routerretriever.registry.registry import Registry

    Registry.of(recipe, store).challenge(registered.version)
    return found, registered


def _collect(recipe: Recipe, name: str, reports: Sequence[Feedback], settings: FeedbackSettings) -> Learned:
    """Write a domain's collection with the judgements of its users, unless it is there."""
    now = open_collection(name, recipe.domain_path(name), recipe.domains[name])
    start = read_provenance(now.folder).get(_START)
    first = open_collection(name, start, recipe.domains[name]) if start else now
    judged = usable(first, judge(reports, settings.discount, settings.least))
    if not judged:
        return Learned(name, len(reports), 0, 0, "")
    digest = content_hash(first.corpus_hash(), first.split_hash("train"), first.split_hash("dev"),
                          [[one.query, one.grades] for one in judged])  # fmt: skip
    folder = Path(recipe.data_root).expanduser() / _FOLDER / f"{name}-{digest}"
    if not folder.exists():
        write_learned(first, judged, folder, len(reports))
    counts = read_provenance(folder)["counts"]
    is_new = folder.resolve() != now.folder.resolve()
    path = f"{_FOLDER}/{folder.name}" if is_new else ""
    return Learned(name, len(reports), counts["train"], counts["dev"], path)


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


def write_learned(collection: Collection, judged: Sequence[Judged], folder: Path, reports: int) -> None:
    """Write a collection with more train and dev queries; test stays."""
    plain = collection.uncut
    texts: dict[str, str] = {}
    qrels: dict[str, Qrels] = {}
    for split in plain.splits():
        texts |= plain.queries(split)
        qrels[split] = plain.qrels(split)
    new = {f"feedback-{content_hash(normal_text(one.query))}": one for one in judged}
    held = hold_out(new, _DEV_SHARE, "feedback") if len(new) > 1 else set()
    for query, one in new.items():
        texts[query] = one.query
        qrels["dev" if query in held else "train"][query] = one.grades
    counts = {"reports": reports, "train": len(new) - len(held), "dev": len(held)}
    write_variant(
        collection,
        folder,
        ({"_id": query, "text": text} for query, text in texts.items()),
        qrels,
        {_START: str(collection.folder), "learned_by": "routerretriever learn", "counts": counts},
    )
