"""From feedback to new train and dev queries; the training itself is an integration test."""

from __future__ import annotations

import pytest
from routerretriever.artifacts.filesystem import FileSystem
from routerretriever.config.loading import load_recipe
from routerretriever.datasets.checking import check_collection
from routerretriever.datasets.collection import open_collection
from routerretriever.datasets.feedback import Feedback, FeedbackLog, Judged
from routerretriever.pipeline import learning
from routerretriever.pipeline.learning import learn, usable, write_learned
from routerretriever.pipeline.pipeline import Registered
from routerretriever.registry import registry
from support.recipes import save_recipe, tiny_recipe


@pytest.fixture
def fruit(tiny_data):
    return open_collection("fruit", tiny_data / "data" / "fruit")


def reports(number, users=("ann", "bob")):
    """Two users mark a document for each of some queries."""
    return [
        Feedback(
            f"{user}-{n}", float(n), "", user, "fruit", f"new query {n}", (f"d{n}",), relevant=(f"d{n}",)
        )
        for n in range(number)
        for user in users
    ]


def test_only_documents_that_are_there_and_no_held_out_query_are_learned_from(fruit):
    test_query = next(iter(fruit.queries("test").values()))
    judged = [
        Judged("fresh", {"d1": 2, "gone": 1}),
        Judged("stale", {"gone": 1}),
        Judged(test_query.upper(), {"d2": 1}),
    ]
    assert usable(fruit, judged) == [Judged("fresh", {"d1": 2})]


def test_the_new_collection_has_the_old_documents_and_test_queries(fruit, tmp_path):
    judged = [Judged(f"new query {n}", {f"d{n}": 1}) for n in range(10)]
    write_learned(fruit, judged, tmp_path / "learned", 20)
    made = open_collection("fruit", tmp_path / "learned")
    assert check_collection(made.folder, 5).errors == 0
    assert made.corpus_hash() == fruit.corpus_hash()
    assert made.split_hash("test") == fruit.split_hash("test")
    assert len(made.queries("train")) == len(fruit.queries("train")) + 8
    assert len(made.queries("dev")) == len(fruit.queries("dev")) + 2
    assert not set(made.queries("train").values()) & set(made.queries("dev").values())


def test_learning_starts_from_the_first_collection_and_twice_is_once(tiny_data, monkeypatch):
    recipe = tiny_recipe(tiny_data)
    path = save_recipe(recipe, tiny_data / "recipe.yaml")
    log = FeedbackLog(FileSystem.open(recipe.storage))
    changes, challenged = [], []

    def change_collections(recipe_path, paths):
        changes.append(paths)
        values = load_recipe(recipe_path).model_dump(mode="json")
        for name, where in paths.items():
            values["domains"][name]["path"] = where
        save_recipe(tiny_recipe(tiny_data, domains=values["domains"]), recipe_path)
        return Registered("uri", len(changes), {}, "here")

    class Registry:
        @classmethod
        def of(cls, *_):
            return cls()

        def challenge(self, version):
            challenged.append(version)

    monkeypatch.setattr(learning, "change_collections", change_collections)
    monkeypatch.setattr(registry, "Registry", Registry)
    assert learn(path) == ([], None)
    for one in reports(10):
        log.append(one)
    (found,), registered = learn(path)
    assert registered is not None
    assert (found.reports, found.train, found.dev) == (20, 8, 2)
    assert challenged == [1]
    (again,), nothing = learn(path)
    assert nothing is None
    assert "nothing new" in again.told()

    # What a user deletes counts no more the next time.
    log.forget("ann")
    log.append(Feedback("c-1", 99.0, "", "cay", "fruit", "another", ("d1",), relevant=("d1",)))
    (later,), _ = learn(path)
    assert (later.train, later.dev) == (9, 2)
    now = open_collection("fruit", load_recipe(path).domain_path("fruit"))
    first = open_collection("fruit", tiny_data / "data" / "fruit")
    assert len(now.queries("train")) == len(first.queries("train")) + 9
