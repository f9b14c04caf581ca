"""The command line stays small enough to be learned: few commands, few options, one line of help for each."""

from __future__ import annotations

import io
import json
import shutil
import sys

import pytest
from routerretriever.cli.main import app, main
from routerretriever.studies import runs
from support.recipes import save_recipe, tiny_recipe
from typer.main import get_command

TOP = get_command(app)
COMMANDS = {
    f"{group} {name}".strip(): command
    for group, commands in [("", TOP.commands)]
    + [(name, one.commands) for name, one in TOP.commands.items() if hasattr(one, "commands")]
    for name, command in commands.items()
    if not hasattr(command, "commands")
}


def test_commands_stay_few():
    assert len(COMMANDS) <= 38, sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_few_options_and_says_what_each_does(name):
    command = COMMANDS[name]
    options = [one for one in command.params if one.param_type_name == "option" and one.name != "help"]
    assert len(options) <= 8, [one.name for one in options]
    assert all(one.help for one in options), [one.name for one in options if not one.help]
    assert len(command.get_short_help_str(limit=200)) > 10


@pytest.fixture
def fails(monkeypatch, capsys):
    """Runs a command that must fail before Ray starts, and gives the one line that it tells."""
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("this is to be known before Ray starts"))

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["routerretriever", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 1
        return capsys.readouterr().err.rstrip()

    return run


@pytest.fixture
def recipe(tiny_data):
    return save_recipe(tiny_recipe(tiny_data), tiny_data / "recipe.yaml")


@pytest.mark.parametrize(
    ("encoding", "errors"), [("ascii", "strict"), ("cp1252", "strict"), ("ascii", "surrogateescape")]
)
def test_a_terminal_that_lacks_a_character_is_shown_its_number(tiny_data, monkeypatch, encoding, errors):
    folder = tiny_data / "data" / "fruit"
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "问题", "text": "x"}) + "\n", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["routerretriever", "datasets", "check", str(folder)])
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding, errors))
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    sys.stdout.seek(0)
    assert r"query '\u95ee\u9898' has no judgement" in sys.stdout.read()


def test_a_file_that_cannot_be_written_is_one_line(fails, tmp_path):
    for target in (tmp_path / "missing" / "file", tmp_path):
        told = fails("schema", "--to", target)
        assert str(target) in told
        assert len(told.splitlines()) == 1
    assert "Not a directory" in fails("init", "sample:kitchen", "--to", "/dev/null/recipe.yaml")


def test_a_change_that_the_recipe_cannot_hold_names_the_recipe_and_leaves_it(fails, recipe):
    before = recipe.read_text()
    told = fails("add-expert", recipe, "--name", "a b", "--path", "sport")
    assert f"{recipe}: 1 wrong setting(s)" in told
    for name in ("fruit", "metal"):
        fails("remove-expert", recipe, "--name", name)
    assert recipe.read_text() == before
    assert {path.name for path in recipe.parent.iterdir()} >= {recipe.name}
    assert not list(recipe.parent.glob(".recipe*"))


@pytest.mark.parametrize("name", ["../x", "A B", "base"])
def test_documents_are_not_read_for_a_name_that_no_domain_can_have(fails, recipe, name):
    (recipe.parent / "notes.txt").write_text("words")
    documents = ("--documents", recipe.parent / "notes.txt", "--name", name)
    for command in ("add-expert", "assess"):
        assert "domains." in fails(command, recipe, *documents)
    assert not (recipe.parent / "data" / "generated").exists()


def test_a_recipe_of_the_package_is_not_tuned_for_hours_to_be_refused(fails):
    assert "copy" in fails("tune-router", "sample", "--write")


def test_serving_what_was_never_released_says_what_to_do(fails, recipe):
    assert "nothing is released" in fails("serve", recipe, "--quiet").splitlines()[-1]


@pytest.mark.parametrize(
    "options", ["--version 1 --challenger --take-over", "--retry --challenger", "--take-over"]
)
def test_options_of_release_that_do_not_go_together_are_refused(recipe, monkeypatch, capsys, options):
    monkeypatch.setattr("sys.argv", ["routerretriever", "release", str(recipe), *options.split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "--take-over" in capsys.readouterr().err


def test_what_is_served_needs_no_files_of_the_collections(fails, recipe):
    shutil.rmtree(recipe.parent / "data")
    assert "nothing is released" in fails("serve", recipe, "--quiet").splitlines()[-1]


def test_versions_of_nothing_are_no_empty_table(recipe, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["routerretriever", "versions", str(recipe)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("nothing is registered yet for models:/tiny@champion")


def test_an_errors_control_and_direction_characters_are_shown_as_text(fails, tmp_path):
    folder = tmp_path / "a\x1b[31m\u202eb"
    told = fails("datasets", "check", folder)
    assert r"a\u001b[31m\u202eb" in told
    assert not {"\x1b", "\u202e"} & set(told)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["assess", "r.yaml", "--documents", ""], "the argument after --documents"),
        (["schema", "--to="], "--to"),
        (["datasets", "check", ""], "the argument after check"),
    ],
)
def test_an_empty_argument_is_not_the_working_folder(tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("words")
    monkeypatch.setattr("sys.argv", ["routerretriever", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {told} is empty; ")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_names_in_an_option_may_have_spaces_between(recipe, monkeypatch):
    asked = []
    monkeypatch.setattr("sys.argv", ["routerretriever", "analyse", str(recipe), "--order", "metal, fruit"])
    monkeypatch.setattr(runs, "analyse_run", lambda _, order, __: asked.append(order) or sys.exit(0))
    with pytest.raises(SystemExit):
        main()
    assert asked == [["metal", "fruit"]]


def test_help_has_a_short_name(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["routerretriever", "run", "-h"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    assert "RECIPE" in capsys.readouterr().out
