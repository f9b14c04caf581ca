"""Every code block of the README and the documentation is run, parsed or checked; links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import json
import re
import runpy
import shlex

import pytest
from routerretriever.cli.main import app
from routerretriever.client import schemas
from routerretriever.config.loading import parse_recipe
from routerretriever.config.recipe import Recipe
from ruamel.yaml import YAML
from support.pages import PAGES, anchors, blocks, inline_commands, links, shell_lines
from support.paths import ROOT
from support.tiny_service import tiny_service
from typer.main import get_command

BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = get_command(app)
BODIES = {
    "/v1/search": schemas.SearchRequest,
    "/v1/embeddings": schemas.EmbeddingsRequest,
    "/v1/route": schemas.RouteRequest,
}
LANGUAGES = {"", "text", "sh", "bash", "console", "python", "yaml", "json", "jsonl"}


@pytest.fixture(scope="module")
def service():
    """What answers at the addresses of the pages."""
    with tiny_service() as url:
        yield url


def of(*languages):
    found = [block for block in BLOCKS if block.language in languages]
    return pytest.mark.parametrize("block", found, ids=str)


def test_every_block_is_in_a_language_that_is_checked():
    assert {block.language for block in BLOCKS} <= LANGUAGES


@of("python")
def test_python_compiles_and_imports_names_that_there_are(block):
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("routerretriever"):
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module} has no {name.name}"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.mark == "run"], ids=str)
def test_marked_python_runs(block, service):
    text = re.sub(r"http://localhost:\d+", service, block.text)
    exec(compile(text, str(block), "exec"), {"__name__": "documentation"})


@of("sh", "bash", "console", "")
def test_shell_names_commands_and_options_that_there_are(block):
    for line in shell_lines(block):
        check_shell(line)


@pytest.mark.parametrize("command", sorted({command for page in PAGES for command in inline_commands(page)}))
def test_commands_in_sentences_are_there(command):
    check_names(shlex.split(command, comments=True)[1:])


@of("yaml")
def test_yaml_parses_and_recipes_are_valid(block):
    values = YAML(typ="safe", pure=True).load(block.text)
    assert values is not None
    if isinstance(values, dict) and set(values) <= set(Recipe.model_fields):
        domains = {"page": {"path": "collections/page"}} | values.get("domains", {})
        parse_recipe({"name": "page"} | values | {"domains": domains}, str(block))


@of("json", "jsonl")
def test_json_parses(block):
    lines = block.text.strip().split("\n") if block.language == "jsonl" else [block.text]
    for line in lines:
        json.loads(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{link}: no such heading"


def test_the_readme_is_read_in_a_minute():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"([\w/-]+\.md)", (ROOT / "mkdocs.yml").read_text()))
    there = {page.relative_to(ROOT / "docs").as_posix() for page in PAGES if ROOT / "docs" in page.parents}
    assert sorted(there - listed) == [], "add to nav in mkdocs.yml"
    assert sorted(listed - there) == [], "no such page"


def test_the_generated_pages_are_up_to_date():
    folder = ROOT / "docs" / "reference"
    pages = runpy.run_path(str(folder / "generate.py"))["pages"]()
    stale = [name for name, text in pages.items() if (folder / name).read_text() != text]
    assert stale == [], "run: python docs/reference/generate.py"


def test_ci_runs_what_the_projects_own_script_runs():
    workflow = YAML(typ="safe", pure=True).load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step.get("run") for job in workflow["jobs"].values() for step in job["steps"]]
    assert ".ci/run" in steps
    assert "make docs" in steps


def check_shell(line):
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words.pop(0)  # variables of the environment
    if words[:1] == ["make"]:
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), line
    if words[:1] == ["routerretriever"]:
        check_command(words[1:])
    if "-m" in words and (module := words[words.index("-m") + 1]).startswith("jobs"):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), line
    if words[:1] == ["curl"] and "-d" in words:
        body = json.loads(words[words.index("-d") + 1])
        path = next(word for word in words if ":8000/" in word).partition(":8000")[2]
        if path in BODIES:
            BODIES[path].model_validate(body)


def check_command(words):
    command, name = COMMANDS, "routerretriever"
    while hasattr(command, "commands"):
        assert words, f"{name}: which command?"
        if words[0].startswith("-"):
            return
        name = words.pop(0)
        assert name in command.commands, f"{name}: no such command"
        command = command.commands[name]
    for stop in ("|", "&", "&&", ">", ";"):
        if stop in words:
            words = words[: words.index(stop)]
    # Placeholders: `--version N` is a number.
    command.make_context(name, ["1" if word == "N" else word for word in words])


def check_names(words):
    """As ``check_command``, but a sentence may leave out what else is needed."""
    command = COMMANDS
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        name = words.pop(0)
        assert name in command.commands, f"{name}: no such command"
        command = command.commands[name]
    options = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
    used = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert used <= {*options, "--help"}, f"{used - options}: no such option"
