"""What the commands do can be called: the same names, the same work."""

from __future__ import annotations

import errno
import inspect
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import routerretriever
from routerretriever import commands
from routerretriever.bundle import archive, export
from routerretriever.cli import steps
from routerretriever.cli.main import app
from routerretriever.config import starter
from routerretriever.errors import BadInput
from routerretriever.pipeline import doctor, documents, domains, learning, pipeline
from routerretriever.registry import backup
from routerretriever.serving.deployments import run as deployments
from routerretriever.studies import assess as assessment
from routerretriever.studies import reproduction, runs
from support.paths import ROOT
from support.recipes import tiny_recipe
from typer.main import get_command

RECIPE = ROOT / "jobs" / "recipes" / "sample.yaml"


class Work:
    """A pipeline that notes what it is asked."""

    asked: list[object] = []  # noqa: RUF012  (tests look at what all of them were asked)

    def __init__(self, recipe):
        self.recipe = recipe

    def build(self, stages):
        self.asked.append((self.recipe.name, stages))

    @property
    def evaluation(self):
        return f"evaluation of {self.recipe.name}"

    def register(self, release=True):
        return (self.recipe.name, release)

    def calibrate(self, domain):
        return (self.recipe.name, domain)


@pytest.fixture(autouse=True)
def work(monkeypatch):
    Work.asked = []
    monkeypatch.setattr(pipeline, "Pipeline", Work)


def test_every_command_is_a_call_or_on_the_python_page():
    page = (ROOT / "docs" / "reference" / "python.md").read_text()
    calls = {name.replace("_", "-") for name in routerretriever.__all__}
    others = set(get_command(app).commands) - calls
    assert [name for name in others if f"`{name}" not in page] == [], "name its function in python.md"


@pytest.mark.parametrize("given", ["path", "text", "recipe"])
def test_a_recipe_is_read_from_a_file_or_made_in_python(given, tmp_path):
    recipe = {"path": RECIPE, "text": str(RECIPE), "recipe": tiny_recipe(tmp_path)}[given]
    name = "tiny" if given == "recipe" else "sample"
    assert routerretriever.evaluate(recipe) == f"evaluation of {name}"
    assert routerretriever.run(recipe) == (name, True)
    assert routerretriever.register(recipe, release=False) == (name, False)


@pytest.mark.parametrize("stage", ["encode", "train", "score"])
def test_a_step_builds_its_stage(stage, tmp_path):
    getattr(routerretriever, stage)(tiny_recipe(tmp_path))
    assert Work.asked == [("tiny", [stage])]


def test_a_recipe_is_written_examined_calibrated_and_learned_for(tiny_data, tmp_path, monkeypatch):
    written = routerretriever.init([tiny_data / "data"], tmp_path / "new.yaml")
    assert routerretriever.calibrate(written, "fruit") == ("new", "fruit")
    monkeypatch.setattr(doctor, "examine", lambda recipe: recipe and recipe.name)
    assert [routerretriever.doctor(), routerretriever.doctor(str(written))] == [None, "new"]
    monkeypatch.setattr(learning, "learn", lambda path: ([], path))
    assert routerretriever.learn(str(written)) == ([], written)


def test_domains_are_changed_and_the_bundle_served(monkeypatch, tmp_path):
    monkeypatch.setattr(domains, "add_domain", lambda *given: ("added", *given))
    monkeypatch.setattr(domains, "remove_domain", lambda *given: ("removed", *given))
    monkeypatch.setattr(deployments, "serve_forever", lambda recipe, _: Work.asked.append(recipe.name))
    assert routerretriever.add_expert(str(RECIPE), "law", "law", False) == (
        "added",
        RECIPE,
        "law",
        "law",
        False,
    )
    assert routerretriever.remove_expert(RECIPE, "law") == ("removed", RECIPE, "law", True)
    routerretriever.serve(tiny_recipe(tmp_path))
    assert Work.asked == ["tiny"]


def test_an_expert_is_added_from_documents_or_from_a_collection(monkeypatch):
    monkeypatch.setattr(documents, "add_from_documents", lambda *given: ("generated", given))
    found = routerretriever.add_expert(str(RECIPE), "law", documents="files", examples="asked.jsonl")
    assert found == (RECIPE, "law", Path("files"), Path("asked.jsonl"), True)
    for given in ({}, {"path": "a", "documents": "b"}, {"path": "a", "examples": "b"}):
        with pytest.raises(BadInput, match="give either path, or documents"):
            routerretriever.add_expert(RECIPE, "law", **given)


@pytest.mark.parametrize("call", ["backup", "export", "export_expert", "init", "restore"])
def test_what_cannot_be_written_is_told_as_by_the_command(call, tmp_path, monkeypatch):
    def fail(*_):
        raise NotADirectoryError(errno.ENOTDIR, "Not a directory", "file/x")

    monkeypatch.setattr(commands, "open_registry", lambda _: SimpleNamespace(store=None))
    monkeypatch.setattr(commands, "_bundle", lambda *_: nullcontext(tmp_path))
    for module, name in (
        (archive, "pack"), (backup, "back_up"), (backup, "restore"), (export, "export_expert"),
        (starter, "write_recipe"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, fail)
    given = {"export_expert": (RECIPE, "law"), "init": (["sample:health"],)}.get(call, (RECIPE,))
    with pytest.raises(BadInput, match=r"^file/x: Not a directory; name another place$"):
        getattr(routerretriever, call)(*given, "file/x")


def test_a_run_is_studied(monkeypatch, tmp_path):
    asked = []
    for name in ("analyse_run", "measure_noise_floor", "draw_learning_curve", "tune_router"):
        monkeypatch.setattr(runs, name, lambda pipeline, *given: asked.append(given))
    recipe = tiny_recipe(tmp_path)
    routerretriever.analyse(recipe, ("a", "b"))
    routerretriever.noise_floor(recipe, "fruit", 3)
    routerretriever.learning_curve(recipe, "fruit", (5, 9))
    routerretriever.tune_router(recipe)
    assert asked == [(["a", "b"], [1, 2, 4, 8]), ("fruit", 3), ("fruit", [5, 9], 1), (0.2,)]
    monkeypatch.setattr(reproduction, "reproduce", lambda *given: given)
    assert routerretriever.reproduce("known.yaml", ["a"]) == (Path("known.yaml"), ["a"], [])
    monkeypatch.setattr(assessment, "assess_documents", lambda *given: given)
    found = routerretriever.assess(recipe, "files", examples="asked.jsonl")
    assert found == (recipe, "assessed", Path("files"), Path("asked.jsonl"))


@pytest.mark.parametrize(
    "name",
    sorted(
        {"add-expert", "remove-expert", "register", "tune-training", "calibrate", "learn", "init", "doctor"}
        | {"migrate", "export", "export-expert", "analyse", "noise-floor", "learning-curve", "tune-router"}
        | {"reproduce", "assess"}
    ),
)
def test_a_call_has_no_options_of_its_own(name):
    call = inspect.signature(getattr(routerretriever, name.replace("-", "_"))).parameters
    command = {each.name for each in get_command(app).commands[name].params}
    assert set(call) <= command, "another name, or an option that the command has not"


def test_a_run_ends_with_what_to_type_next(monkeypatch, capsys):
    monkeypatch.setattr(steps, "open_pipeline", lambda *_: Ended())
    monkeypatch.setattr(steps, "show_evaluation", lambda _: None)
    steps.run(Path("my recipe.yaml"), ["storage=a b"], ask=False)
    said = capsys.readouterr().out.rstrip()
    assert said.endswith("next: routerretriever serve 'my recipe.yaml' --set 'storage=a b'")


@pytest.mark.parametrize("command", ["add_expert", "remove_expert", "register"])
def test_what_is_not_released_is_told_with_the_command_that_releases_it(command, monkeypatch, capsys):
    left = pipeline.Registered("models:/shop/7", 7, {"law": 1}, "sqlite:///mlflow.db", released=False)
    monkeypatch.setattr(domains, "add_domain", lambda *_: left)
    monkeypatch.setattr(domains, "remove_domain", lambda *_: left)
    monkeypatch.setattr(steps, "open_pipeline", lambda *_: SimpleNamespace(register=lambda release: left))
    options = {
        "add_expert": {"name": "law", "path": "law"},
        "remove_expert": {"name": "law"},
        "register": {"overrides": ["storage=a b"]},
    }[command]
    getattr(steps, command)(RECIPE, release=False, **options)
    said = capsys.readouterr().out
    assert "bundle models:/shop/7 (version 7, not released; experts: law v1)" in said
    again = " --set 'storage=a b'" if command == "register" else ""
    assert said.rstrip().endswith(f"next: routerretriever release {RECIPE} --version 7{again}")


class Ended:
    """A pipeline whose run is over."""

    evaluation = None
    report_folder = "reports"

    def require_test_sets(self):
        pass

    def open_registry(self):
        pass

    def register(self):
        return pipeline.Registered("models:/mine@champion", 1, {"law": 1}, "sqlite:///mlflow.db")
