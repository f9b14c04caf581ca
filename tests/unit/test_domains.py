"""What adding and removing a domain does to the recipe file; the training itself is an integration test."""

from __future__ import annotations

import errno
import stat
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from routerretriever.config.loading import load_recipe
from routerretriever.errors import RecipeError
from routerretriever.pipeline import domains
from routerretriever.pipeline.domains import (
    add_domain,
    changing_domains,
    remove_domain,
    set_collections,
    set_routing,
)
from routerretriever.pipeline.pipeline import Registered
from routerretriever.registry import turns
from routerretriever.routing.settings import RoutingSettings

RECIPE = """
name: tiny
storage: {root}/storage
domains:
  fruit: {{path: fruit}}  # ours
  legal:
    path: legal
    passages: {{tokens: 180}}
    lexical: {{language: german}}
    expert: false

  # For evaluation only.
  sport: {{path: sport, expert: false}}
encoder: {{name: fake}}
"""


class Work:
    """Pipelines that register at once; notes the experts of each bundle."""

    def __init__(self):
        self.bundles = []
        self.meanwhile = lambda: None
        """What others do before a bundle is registered."""

    def pipeline(self, recipe):
        def register(release):
            self.meanwhile()
            self.bundles.append(recipe.expert_domains)
            return Registered("uri", len(self.bundles), {}, "here")

        deployed = SimpleNamespace(deployment=lambda: SimpleNamespace(experts={}))
        return SimpleNamespace(deployed=deployed, register=register, untrained=list)


@pytest.fixture
def work(monkeypatch):
    work = Work()
    monkeypatch.setattr(domains, "Pipeline", work.pipeline)
    monkeypatch.setattr(turns, "_POLL_SECONDS", 0.01)
    return work


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(root=tmp_path))
    return path


@pytest.mark.parametrize(
    ("given", "right"), [("small/tax law", "'tax law'"), ("other/tax", "{root}/other/tax")]
)
def test_a_path_from_the_working_folder_is_answered_with_what_to_type(
    path, work, monkeypatch, tmp_path, given, right
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / given).mkdir(parents=True)
    path.write_text(path.read_text() + "data_root: small\n")
    before = path.read_text()
    missing = tmp_path / "small" / given
    with pytest.raises(RecipeError) as refused:
        add_domain(path, "tax", given)
    assert str(refused.value) == (
        f"domains.tax.path: no folder {missing}: paths start at data_root, which is small; "
        f"give --path {right.format(root=tmp_path)}"
    )
    assert (path.read_text(), work.bundles) == (before, [])


def test_a_path_from_data_root_is_not_looked_for_in_the_working_folder(path, work, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for folder in ("tax", "small/tax"):
        (tmp_path / folder).mkdir(parents=True)
    path.write_text(path.read_text() + "data_root: small\n")
    add_domain(path, "tax", "tax")
    assert load_recipe(path).domain_path("tax") == "small/tax"


def test_a_domain_that_gets_an_expert_keeps_its_other_settings(path, work):
    before = load_recipe(path).domains["legal"]
    add_domain(path, "legal", "more/legal")
    after = load_recipe(path).domains["legal"]
    assert after == before.model_copy(update={"path": "more/legal", "expert": True})
    assert "# ours" in path.read_text()
    assert "\n\n  # For evaluation only.\n  sport:" in path.read_text()
    remove_domain(path, "legal")
    add_domain(path, "legal", "more/legal")
    assert load_recipe(path).domains["legal"] == after
    assert work.bundles == [["fruit", "legal"], ["fruit"], ["fruit", "legal"]]


def test_what_others_edit_while_an_expert_is_trained_stays(path, work):
    work.meanwhile = lambda: path.write_text(path.read_text() + "serving: {port: 9000}\n")
    add_domain(path, "new", "new")
    recipe = load_recipe(path)
    assert (recipe.serving.port, recipe.expert_domains) == (9000, ["fruit", "new"])


def test_a_file_that_others_have_broken_meanwhile_is_one_line_and_stays(path, work):
    work.meanwhile = lambda: path.write_text("name: [")
    with pytest.raises(RecipeError, match=f"^{path}:1: not readable as YAML"):
        add_domain(path, "new", "new")
    assert path.read_text() == "name: ["
    assert list(path.parent.glob(".*")) == []


def test_a_domain_that_others_have_taken_out_meanwhile_is_not_put_back(path, work):
    add_domain(path, "legal", "legal")
    without = path.read_text().replace("  fruit: {path: fruit}  # ours\n", "")
    work.meanwhile = lambda: path.write_text(without)
    remove_domain(path, "fruit")
    assert list(load_recipe(path).domains) == ["legal", "sport"]


def test_two_that_are_added_at_once_are_both_in_recipe_and_bundle(path, work, caplog, monkeypatch):
    monkeypatch.setattr(turns.log, "propagate", True)
    caplog.set_level("INFO", turns.log.name)
    second = threading.Thread(target=add_domain, args=(path, "second", "second"))

    def wait_for_the_second():
        if not second.ident:
            second.start()
            while second.is_alive() and "waiting for another run" not in caplog.text:
                second.join(0.01)

    work.meanwhile = wait_for_the_second
    add_domain(path, "first", "first")
    second.join()
    assert work.bundles == [["fruit", "first"], ["fruit", "first", "second"]]
    assert load_recipe(path).expert_domains == ["fruit", "first", "second"]


def test_two_drafts_of_one_recipe_do_not_meet(path, work):
    work.meanwhile = lambda: set_routing(path, RoutingSettings(temperature=0.5))
    add_domain(path, "new", "new")
    recipe = load_recipe(path)
    assert (recipe.routing.temperature, recipe.expert_domains) == (0.5, ["fruit", "new"])


def test_a_turn_ends_with_what_failed_in_it(path, work):
    with pytest.raises(RecipeError, match="has an expert already"):
        add_domain(path, "fruit", "fruit")
    with changing_domains(path) as recipe:
        assert recipe.expert_domains == ["fruit"]


def test_a_recipe_that_is_reached_by_a_link_is_changed_where_it_lies(path, work, tmp_path):
    link = tmp_path / "here" / "recipe.yaml"
    link.parent.mkdir()
    link.symlink_to(path)
    path.chmod(0o600)
    add_domain(link, "new", "new")
    assert link.is_symlink()
    assert load_recipe(path).expert_domains == ["fruit", "new"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in link.parent.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    "shared",
    [
        "  one: &own {path: one}\n  two: {<<: *own, lexical: null}\n",
        "  one: &own {path: one}\n  two: *own\n",
        "  two: &own\n    path: one  # of both\n  one: *own\n",
    ],
)
def test_a_domain_that_lends_its_settings_by_an_anchor_is_changed_alone(path, work, tmp_path, shared):
    path.write_text(f"name: tiny\nstorage: {tmp_path}/storage\ndomains:\n{shared}encoder: {{name: fake}}\n")
    before = load_recipe(path).domains
    remove_domain(path, "one")
    expected = {**before, "one": before["one"].model_copy(update={"expert": False})}
    assert load_recipe(path).domains == expected
    assert work.bundles == [["two"]]
    add_domain(path, "one", "other")
    changes = {"path": "other", "expert": True}
    assert load_recipe(path).domains == {**before, "one": before["one"].model_copy(update=changes)}


@pytest.mark.parametrize("name", ["2024", "true", "null", "0123", "1_000", "1e3", "2026-01-31"])
def test_a_domain_whose_name_yaml_reads_as_no_text_is_changed_like_others(path, work, name):
    path.write_text(path.read_text().replace("  fruit:", f"  {name}: {{path: old}}\n  fruit:"))
    remove_domain(path, name)
    assert work.bundles == [["fruit"]]
    assert load_recipe(path).expert_domains == ["fruit"]
    add_domain(path, name, "more")
    set_collections(path, {name: "most"})
    recipe = load_recipe(path)
    assert (recipe.expert_domains, recipe.domains[name].path) == ([name, "fruit"], "most")


def test_lines_that_a_change_does_not_concern_stay_as_they_were_written(path, work):
    question = "what shall I do about the landlord who wants to keep the deposit for a stain in the hall " * 2
    path.write_text(f"{path.read_text()}question: {question.strip()}\ndata_root: '.'\n")
    before = path.read_text().splitlines()
    set_collections(path, {"fruit": "other"})
    after = path.read_text().splitlines()
    assert [line for line in before if line not in after] == ["  fruit: {path: fruit}  # ours"]


def test_a_recipe_whose_folder_takes_no_draft_is_refused_in_one_line_before_anything_is_made(path, work):
    longest = path.rename(path.with_name("r" * 250))
    with pytest.raises(RecipeError, match=f"^{longest}: cannot be changed: File name too long; "):
        add_domain(longest, "new", "new")
    assert work.bundles == []


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_recipe_keeps_its_line_ends(path, work, end):
    path.write_bytes(path.read_bytes().replace(b"\n", end))
    add_domain(path, "new", "new")
    set_collections(path, {"fruit": "other"})
    lines = path.read_bytes().splitlines(keepends=True)
    assert all(line.removesuffix(end) == line.rstrip(b"\r\n") for line in lines)
    assert b"  fruit: {path: other}  # ours" + end in lines


def test_a_recipe_that_is_mounted_by_itself_is_changed_in_place(path, work, monkeypatch):
    def busy(self, target):
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(Path, "replace", busy)
    before = path.stat().st_ino
    add_domain(path, "new", "new")
    assert (load_recipe(path).expert_domains, path.stat().st_ino) == (["fruit", "new"], before)
    assert [each.name for each in path.parent.iterdir() if each.name.endswith(".new")] == []


def test_a_recipe_that_is_mounted_to_be_read_is_refused_before_anything_is_made(path, work, monkeypatch):
    opens = Path.open

    def read_only(self, mode="r", *more, **options):
        if self == path and mode != "r":
            raise OSError(errno.EROFS, "Read-only file system")
        return opens(self, mode, *more, **options)

    monkeypatch.setattr(Path, "open", read_only)
    with pytest.raises(RecipeError, match="cannot be changed: Read-only file system; "):
        add_domain(path, "new", "new")
    assert work.bundles == []
