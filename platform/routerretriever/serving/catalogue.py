"""Collections that were created over HTTP. One hand writes the catalogue: the writer's."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.datasets.settings import PassageSettings
from routerretriever.index.settings import LexicalSettings
from routerretriever.serving.ports import CollectionRef


def empty_corpus(dimension: int) -> str:
    """Key of the corpus without documents that created collections begin with."""
    return f"corpora/empty-{dimension}"


class Catalogue:
    """A note in storage of all created collections, by name."""

    def __init__(self, store: ArtifactStore, name: str) -> None:
        """Read it; none was written before the first collection."""
        self._store, self._name = store, name
        saved = store.read_pointer(name) or {"collections": {}}
        self.collections: dict[str, CollectionRef] = {
            name: _ref(values) for name, values in saved["collections"].items()
        }

    def create(self, name: str, ref: CollectionRef, dimension: int) -> bool:
        """Add a collection without documents; False if another has its name. May be called again."""
        if name in self.collections:
            return self.collections[name] == ref
        if not self._store.exists(ref.corpus):
            self._store.commit(ref.corpus, {"kind": "corpus", "shards": [], "dimension": dimension})
        self._write({**self.collections, name: ref})
        return True

    def weigh(self, name: str, ref: CollectionRef, weight: float) -> bool:
        """Set the weight of words in a collection; False if it is not there."""
        if self.collections.get(name) != ref:
            return False
        self._write({**self.collections, name: replace(ref, lexical_weight=weight)})
        return True

    def drop(self, name: str, ref: CollectionRef) -> None:
        """Take a collection out, then delete its documents. May be called again."""
        if self.collections.get(name) == ref:
            self._write({other: kept for other, kept in self.collections.items() if other != name})
        self._store.delete(ref.changes)

    def holds(self, ref: CollectionRef) -> bool:
        """Whether a created collection is there."""
        return ref in self.collections.values()

    def _write(self, collections: dict[str, CollectionRef]) -> None:
        saved = {name: _values(ref) for name, ref in collections.items()}
        self._store.write_pointer(self._name, {"collections": saved})
        self.collections = collections


def _values(ref: CollectionRef) -> dict[str, Any]:
    settings = {"lexical": ref.lexical, "passages": ref.passages}
    return {**asdict(ref), **{name: one and one.model_dump() for name, one in settings.items()}}


def _ref(values: dict[str, Any]) -> CollectionRef:
    lexical, passages = values["lexical"], values.get("passages")
    return CollectionRef(
        values["corpus"],
        values["changes"],
        None if lexical is None else LexicalSettings.model_validate(lexical),
        None if passages is None else PassageSettings.model_validate(passages),
        values["created_for"],
        values.get("lexical_weight"),
    )
