"""From feedback to new train and dev queries; the training itself is an integration test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from routerretriever.artifacts.filesystem import FileSystem
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.config.loading import load_recipe, parse_recipe
from routerretriever.datasets.checking import check_collection
from routerretriever.datasets.collection import open_collection
from routerretriever.datasets.feedback import Feedback, FeedbackLog, Judged
from routerretriever.datasets.settings import DomainSettings
from routerretriever.datasets.variant import read_provenance
from routerretriever.errors import RecipeError
from routerretriever.pipeline import learning
from routerretriever.pipeline.domains import set_collections, with_collections
from routerretriever.pipeline.learning import follow_release, learn, usable, write_learned
from routerretriever.pipeline.pipeline import Registered


@pytest.fixture
def fruit(tiny_data):
    return open_collection("fruit", tiny_data / "data" / "fruit")


RECIPE = """
name: tiny
storage: {root}/storage
data_root: {root}/data
domains:
  fruit: {{path: fruit}}  # ours
  metal: {{path: metal}}
  sport: {{path: sport, expert: false}}
encoder: {{name: fake}}
"""
FIRST = [f"new query {number}" for number in range(4)]


def mark(user, query, collection="fruit"):
    return Feedback(f"{user}-{query}", 99.0, "", user, collection, query, ("d1",), relevant=("d1",))


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
    write_learned(fruit, judged, tmp_path / "learned", 20, "fruit")
    made = open_collection("fruit", tmp_path / "learned")
    assert check_collection(made.folder, 5).errors == 0
    assert made.corpus_hash() == fruit.corpus_hash()
    assert made.split_hash("test") == fruit.split_hash("test")
    assert len(made.queries("train")) == len(fruit.queries("train")) + 8
    assert len(made.queries("dev")) == len(fruit.queries("dev")) + 2
    assert not set(made.queries("train").values()) & set(made.queries("dev").values())


@pytest.mark.parametrize("name", ["final", "dev"])
def test_the_new_collection_is_read_by_the_settings_of_the_old(tiny_data, tmp_path, name):
    qrels = tiny_data / "data" / "fruit" / "qrels"
    (qrels / "test.tsv").rename(qrels / f"{name}.tsv")
    settings = DomainSettings(path="", test_split=name)
    fruit = open_collection("fruit", qrels.parent, settings)
    judged = [Judged(f"new query {n}", {f"d{n}": 1}) for n in range(10)]
    write_learned(fruit, judged, tmp_path / "learned", 20, "fruit")
    made = open_collection("fruit", tmp_path / "learned", settings)
    assert made.split_hash("test") == fruit.split_hash("test")
    counts = read_provenance(made.folder)["counts"]
    labelled = {split: len(made.queries(split)) for split in ("train", "dev")}
    assert sum(labelled.values()) == 10 + sum(len(fruit.queries(split)) for split in ("train", "dev"))
    assert counts["dev"] == (0 if name == "dev" else 2)


def test_what_train_asks_already_is_not_held_out(fruit, tmp_path):
    asked = [text.upper() for text in fruit.queries("train").values()]
    judged = [Judged(text, {"d1": 1}) for text in [*asked, "fresh", "fresher"]]
    write_learned(fruit, judged, tmp_path / "learned", 20, "fruit")
    made = open_collection("fruit", tmp_path / "learned")
    assert not made.read()[0].equal_queries
    assert len(made.queries("dev")) == len(fruit.queries("dev")) + 1


def test_queries_written_about_one_document_stay_together(fruit, tmp_path):
    file = fruit.folder / "queries.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({**one, "metadata": {"source": f"d{one['_id'][1:]}"}}) + "\n"
                            for one in records))  # fmt: skip
    train = fruit.folder / "qrels" / "train.tsv"
    train.write_text(train.read_text().replace("q1\td1\t1\n", "q1\td1\t1\nq1\td0\t1\nq0\td1\t1\n"))
    file.write_text(file.read_text().replace('"source": "d1"', '"source": "d0"'))
    assert fruit.groups("train")["q0"] == fruit.groups("train")["q1"]
    write_learned(fruit, [Judged("new query", {"d2": 1})], tmp_path / "learned", 1, "fruit")
    made = open_collection("fruit", tmp_path / "learned")
    assert {query: made.groups("train")[query] for query in fruit.groups("train")} == fruit.groups("train")


class Versions:
    """A registry that holds the recipes of its versions; the same recipe is the same version."""

    def __init__(self, recipe):
        self.recipes = [recipe.model_dump(mode="json")]
        self.alias = {"champion": 1}

    def register(self, recipe, paths):
        made = with_collections(recipe, paths).model_dump(mode="json")
        if made not in self.recipes:
            self.recipes.append(made)
        return Registered("uri", self.recipes.index(made) + 1, {}, "here")

    def released(self):
        return self.alias["champion"]

    def release(self, version):
        self.alias["champion"] = version
        if self.challenger() == version:
            self.challenge(None)

    def challenger(self):
        return self.alias.get("challenger")

    def challenge(self, version):
        self.alias["challenger"] = version

    def recipe_of(self, version):
        return self.recipes[version - 1]


class Project:
    """A recipe file, its users and its registry."""

    def __init__(self, root, monkeypatch):
        self.path = root / "recipe.yaml"
        self.path.write_text(RECIPE.format(root=root))
        recipe = load_recipe(self.path)
        self.log = FeedbackLog(FileSystem.open(recipe.storage))
        self.versions = Versions(recipe)
        monkeypatch.setattr(learning, "register_with", self.versions.register)
        monkeypatch.setattr(learning, "_registry", lambda *_: self.versions)

    def ask(self, *queries, user="ann", collection="fruit"):
        for query in queries:
            self.log.append(mark(user, query, collection))

    def learn(self):
        """The states of the domains with feedback, and the challenger's number if there is a new one."""
        found, registered = learn(self.path)
        return {one.domain: one.state for one in found}, registered and registered.version

    def named(self, domain="fruit"):
        return load_recipe(self.path).domains[domain].path

    def train_queries(self, version):
        recipe = parse_recipe(self.versions.recipe_of(version))
        made = open_collection("fruit", recipe.domain_path("fruit"))
        return set(made.queries("train").values()) | set(made.queries("dev").values())


@pytest.fixture
def project(tiny_data, monkeypatch):
    return Project(tiny_data, monkeypatch)


def test_the_recipe_describes_what_is_released_until_the_challenger_is(project):
    before = project.path.read_text()
    assert project.learn() == ({}, None)
    project.ask(*FIRST)
    assert project.learn() == ({"fruit": "new"}, 2)
    assert project.versions.challenger() == 2
    assert project.path.read_text() == before
    assert project.learn() == ({"fruit": "challenger"}, None)
    assert project.path.read_text() == before

    project.versions.release(2)
    assert project.learn() == ({"fruit": "released"}, None)
    assert project.named().startswith("learned/fruit-")
    assert "# ours" in project.path.read_text()


def test_each_challenger_learns_from_all_feedback(project):
    project.ask(*FIRST)
    project.learn()
    project.ask("a later query", user="cay")
    assert project.learn() == ({"fruit": "new"}, 3)
    assert project.versions.challenger() == 3
    assert {"a later query", *FIRST} <= project.train_queries(3)
    # So does a domain that waits beside one with new feedback.
    project.ask("of metal", collection="metal")
    assert project.learn() == ({"fruit": "challenger", "metal": "new"}, 4)
    learned = project.versions.recipe_of(4)["domains"]
    assert learned["fruit"] == project.versions.recipe_of(3)["domains"]["fruit"]
    assert learned["metal"]["path"].startswith("learned/metal-")


def test_reports_that_nothing_is_learned_from_are_told(project, caplog):
    project.ask("of sport", collection="sport")
    project.ask("of notes", "and more", collection="notes")
    assert project.learn() == ({}, None)
    assert "no expert is of the collection: notes (2), sport (1)" in caplog.text


def test_a_challenger_that_lost_comes_back_with_new_feedback_only(project):
    project.ask(*FIRST)
    project.learn()
    project.versions.challenge(None)
    assert project.learn() == ({"fruit": "lost"}, None)
    assert project.learn() == ({"fruit": "lost"}, None)
    # Another domain's feedback does not bring it back either.
    project.ask("of metal", collection="metal")
    assert project.learn() == ({"fruit": "lost", "metal": "new"}, 3)
    assert project.versions.recipe_of(3)["domains"]["fruit"]["path"] == "fruit"
    project.versions.challenge(None)
    project.ask("a later query", user="cay")
    assert project.learn() == ({"fruit": "new", "metal": "lost"}, 4)
    assert "new query 1" in project.train_queries(4)


def test_a_challenger_that_was_replaced_by_hand_has_lost(project):
    project.ask(*FIRST)
    project.learn()
    project.versions.challenge(1)
    assert project.learn() == ({"fruit": "lost"}, None)
    assert project.versions.challenger() == 1


def test_the_recipe_follows_a_roll_back(project):
    project.ask(*FIRST)
    project.learn()
    project.versions.release(2)
    assert list(follow_release(project.path)) == ["fruit"]
    learned = project.named()
    assert follow_release(project.path) == {}
    project.versions.release(1)
    assert follow_release(project.path) == {"fruit": "fruit"}
    assert project.learn() == ({"fruit": "lost"}, None)
    project.versions.release(2)
    assert follow_release(project.path) == {"fruit": learned}


def test_what_was_rolled_back_from_does_not_come_back_with_another_domains_feedback(project):
    project.ask(*FIRST)
    project.learn()
    project.versions.release(2)
    project.ask("of metal", collection="metal")
    assert project.learn() == ({"fruit": "released", "metal": "new"}, 3)
    project.versions.release(1)
    assert project.learn() == ({"fruit": "lost", "metal": "challenger"}, 4)
    assert project.versions.recipe_of(4)["domains"]["fruit"]["path"] == "fruit"
    assert project.learn() == ({"fruit": "lost", "metal": "challenger"}, None)
    project.versions.release(2)
    assert project.learn() == ({"fruit": "released", "metal": "challenger"}, 3)


def test_a_release_that_learn_did_not_make_leaves_what_it_names(project):
    project.ask(*FIRST)
    project.learn()
    project.versions.release(2)
    follow_release(project.path)
    learned = project.named()
    settings = load_recipe(project.path)
    project.versions.release(project.versions.register(settings.model_copy(update={"name": "x"}), {}).version)
    assert follow_release(project.path) == {}
    assert project.named() == learned
    assert project.learn() == ({"fruit": "released"}, None)


def test_a_collection_that_a_person_has_put_into_the_recipe_stays(project, caplog):
    project.ask(*FIRST)
    project.learn()
    set_collections(project.path, {"fruit": "sport"})
    project.versions.release(2)
    assert follow_release(project.path) == {}
    assert project.named() == "sport"
    assert "domains.fruit.path is sport; version 2 was made of learned/fruit-" in caplog.text


def test_a_challenger_is_made_again_if_the_recipe_has_changed(project):
    project.ask(*FIRST)
    project.learn()
    before = project.path.read_text()
    project.path.write_text(before + "question: another?\nscoring: {workers: 7}\n")
    assert project.learn() == ({"fruit": "challenger"}, None)
    project.path.write_text(before.replace("  sport: {path: sport, expert: false}\n", ""))
    assert project.learn() == ({"fruit": "challenger"}, 3)
    assert "sport" not in project.versions.recipe_of(3)["domains"]


def test_what_a_user_deletes_is_in_no_later_bundle(project):
    project.ask(*FIRST)
    project.ask("a later query", user="cay")
    project.learn()
    assert "a later query" in project.train_queries(2)
    project.log.forget("cay")
    assert project.learn() == ({"fruit": "new"}, 3)
    assert "a later query" not in project.train_queries(3)
    # Nothing is left: a challenger that learned from it goes, and a released one is challenged without it.
    project.log.forget("ann")
    assert project.learn() == ({}, None)
    assert project.versions.challenger() is None
    project.versions.release(3)
    assert project.learn() == ({"fruit": "new"}, 1)
    assert project.versions.challenger() == 1


def test_a_run_that_was_cut_off_after_registering_is_repeated(project, monkeypatch):
    project.ask(*FIRST)

    def write_pointer(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(ArtifactStore, "write_pointer", write_pointer)
        with pytest.raises(OSError, match="full"):
            learn(project.path)
    assert project.learn() == ({"fruit": "new"}, 2)
    assert project.versions.challenger() == 2
    assert project.learn() == ({"fruit": "challenger"}, None)


def test_a_recipe_of_the_package_is_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(learning, "load_recipe", lambda *_: pytest.fail("was read"))
    with pytest.raises(RecipeError, match="comes with the package"):
        learn(Path("sample"))
