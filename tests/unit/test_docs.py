"""Every code block of the README and the documentation is run, parsed or checked; links lead somewhere."""

from __future__ import annotations

import json
import pydoc
import re
import runpy
import subprocess
from collections import Counter

import pytest
from pydantic import ValidationError
from routerretriever.cli.main import app
from routerretriever.client import schemas
from routerretriever.config.loading import parse_recipe
from routerretriever.config.serving import ServingSettings
from routerretriever.errors import RouterRetrieverError
from routerretriever.serving.http.auth import read_tokens
from ruamel.yaml import YAML
from support.command_lines import check_line, check_route
from support.pages import PAGES, anchors, blocks, inline_code, inline_commands, links, shell_lines
from support.paths import ROOT
from support.python_calls import check_python
from support.tiny_service import tiny_service
from typer.testing import CliRunner

from jobs.benchmarks import measure as measuring

GUIDES = [page for page in PAGES if page.name != "CHANGELOG.md"]
"""Pages about what there is now."""
BLOCKS = [block for page in PAGES for block in blocks(page)]
MARKS = {
    "sh": "run",
    "python": r"run|excerpt of \S+",
    "sql": r"excerpt of \S+",
    "yaml": "tokens file|Serve file",
    "json": r"answer \w+",
    "jsonl": "",
    "text": "",
}
"""By language, what ``<!-- test: ... -->`` above a block can say, beside ``unchecked:`` with the reason.

``text`` is what a program prints, or what a file looks like."""
DOMAINS = {"page": {"path": "collections/page"}}
"""What a fragment of a recipe lacks."""


@pytest.fixture(scope="module")
def service():
    """What answers at the addresses of the pages."""
    with tiny_service() as url:
        yield url


def of(language, *marks):
    """Each block in the language whose mark begins with one of these words; by default, with none."""
    found = [block for block in BLOCKS if block.language == language]
    found = [block for block in found if block.mark.partition(" ")[0] in (marks or ("",))]
    return pytest.mark.parametrize("block", found, ids=str)


def by_page(pages):
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


def test_every_block_is_of_a_kind_that_is_checked():
    assert [str(block) for block in BLOCKS if block.language not in MARKS] == []
    unknown = [
        str(block)
        for block in BLOCKS
        if block.mark and not re.fullmatch(f"{MARKS[block.language]}|unchecked: .+", block.mark)
    ]
    assert unknown == []
    print(Counter(f"{block.language} {block.mark.partition(' ')[0]}".strip() for block in BLOCKS))


@of("python")
def test_python_names_what_there_is_and_calls_it_rightly(block):
    check_python(block.text)


@of("python", "run")
def test_marked_python_runs(block, service):
    text = re.sub(r"http://localhost:\d+", service, block.text)
    exec(compile(text, str(block), "exec"), {"__name__": "documentation"})


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.mark.startswith("excerpt")], ids=str)
def test_excerpts_are_in_the_code_that_they_name(block):
    """Line by line and in order: in a file of the package, or of ``examples/``."""
    file = block.mark.split()[-1]
    package = ROOT if file.startswith("examples/") else ROOT / "platform" / "routerretriever"
    code = (package / file).read_text()
    lines = [line.strip().removesuffix("...").strip() for line in block.text.split("\n")]
    rest = iter([line.strip() for line in code.split("\n")])
    assert [line for line in lines if line and line not in rest] == []


@of("sh", "", "run")
def test_shell_says_what_the_programs_understand(block):
    for line in shell_lines(block):
        check_line(line)


@of("sh", "run")
def test_collections_that_a_page_writes_can_be_used(block, tmp_path):
    subprocess.run(["bash", "-euc", block.text], cwd=tmp_path, check=True)
    folders = [str(folder) for folder in (tmp_path / "collections").iterdir()]
    assert folders
    checked = CliRunner().invoke(app, ["datasets", "check", *folders])
    assert checked.exit_code == 0, checked.output


@pytest.mark.parametrize(
    "line",
    [
        "routerretriever server jobs/recipes/sample.yaml",
        "routerretriever run jobs/recipes/sample.yaml --sett training.seed=1",
        "routerretriever run jobs/recipes/sample.yaml --set training.sede=1",
        "routerretriever run jobs/recipes/simple.yaml",
        "ray job submit --working-dir . -- python -m jobs.none jobs/recipes/sample.yaml",
        "python -m jobs.benchmarks.search --kind exact",
        "true && make samples",
        "curl -s localhost:8000/v1/serch | sort",
        "curl -X DELETE localhost:8000/v1/route",
        "curl 'localhost:8000/v1/collections/notes/documents?from=1'",
        """curl localhost:8000/v1/search -d '{"querry": "cold"}'""",
        "pip install 'routerretriever[s4]'",
        "mlflow server --allowed-names mlflow:5000",
        "an-unknown-program",
    ],
)
def test_a_line_that_says_something_else_is_found(line):
    with pytest.raises((AssertionError, RouterRetrieverError, ValidationError)):
        check_line(line)


@pytest.mark.parametrize(
    "text",
    [
        "from routerretriever import Klient",
        "from routerretriever import Client\nClient('http://localhost').serch('cold')",
        "from routerretriever import Client\nwith Client('http://localhost', key='x') as client:\n    pass",
        "import routerretriever as rr\nrr.evaluate('mine.yaml').frames()",
        "client.search('cold')",
        "import no_such_package",
    ],
)
def test_python_that_would_not_run_is_found(text):
    with pytest.raises(AssertionError):
        check_python(text)


@by_page(PAGES)
def test_commands_in_sentences_are_there(page):
    for command in inline_commands(page):
        check_line(command, whole=False)


@by_page(GUIDES)
def test_routes_in_sentences_are_there(page):
    for code in inline_code(page):
        if found := re.fullmatch(r"(?:([A-Z]+) )?(/v1/\S+|/healthz|/readyz)", code):
            check_route(found[2], found[1])


@by_page(GUIDES)
def test_settings_in_sentences_are_there(page):
    if page.stem.startswith("write-"):
        return  # encoder.tower is an attribute there
    known = settings_of_the_reference()
    sections = {name.split(".")[0] for name in known}
    named = {code.split(":")[0] for code in inline_code(page)}
    named = {name for name in named if re.fullmatch(r"[a-z_]+(\.([a-z_]+|NAME))+", name)}
    files = {name for name in named if name.endswith((".json", ".html"))}
    assert sorted(name for name in named - known - files if name.split(".")[0] in sections) == []


@by_page(GUIDES)
def test_files_in_sentences_are_there(page):
    places = (ROOT, ROOT / "platform" / "routerretriever")
    folders = "|".join({each.name for place in places for each in place.iterdir() if each.is_dir()})
    file = re.compile(rf"({folders})/[\w./-]+\.(py|yaml|json|md)")
    named = [code for code in inline_code(page) if file.fullmatch(code)]
    assert [name for name in named if not any((place / name).exists() for place in places)] == []


@of("yaml")
def test_yaml_is_a_part_of_a_recipe(block):
    values = YAML(typ="safe", pure=True).load(block.text)
    parse_recipe({"name": "page"} | values | {"domains": DOMAINS | values.get("domains", {})}, str(block))


@of("yaml", "tokens")
def test_tokens_files_are_read(block, tmp_path):
    (tmp_path / "tokens.yaml").write_text(block.text)
    assert read_tokens(ServingSettings(tokens_file=str(tmp_path / "tokens.yaml")))


@of("yaml", "Serve")
def test_serve_files_are_those_of_ray_serve(block):
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(YAML(typ="safe", pure=True).load(block.text))
    for application in config.applications:
        settings = [word for setting in application.args.get("set", []) for word in ("--set", setting)]
        check_line(" ".join(["routerretriever", "serve", application.args["recipe"], *settings]))


@of("json", "answer")
def test_answers_are_of_the_form_that_the_service_sends(block):
    getattr(schemas, block.mark.split()[-1]).model_validate_json(block.text)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language.startswith("json")], ids=str)
def test_json_parses(block):
    lines = block.text.strip().split("\n") if block.language == "jsonl" else [block.text]
    for line in lines:
        json.loads(line)


@by_page(PAGES)
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


BENCHMARKS = ROOT / "docs" / "benchmarks"
published = runpy.run_path(str(BENCHMARKS / "generate.py"))


def test_the_pages_show_the_figures_that_the_benchmarks_left():
    stale = [page.name for page, text in published["pages"]().items() if page.read_text() != text]
    assert stale == [], "run: python docs/benchmarks/generate.py"


def test_all_published_figures_are_on_a_page():
    asked = [
        name for page in BENCHMARKS.glob("*.md")
        for name in re.findall(r"<!-- figures: (\S+) -->", page.read_text())
    ]  # fmt: skip
    assert sorted(asked) == sorted(file.stem for file in (BENCHMARKS / "figures").glob("*.json"))


def test_a_benchmarks_file_becomes_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["/somewhere/search.py", "--sizes", "1000"])
    rows = [["exact | flat", "1,000"], ["ivf", "2.5"]]
    facts = {"recipe": {"storage": "/private"}, "ratios": {"ivf / exact": 0.504}}
    left = json.loads(measuring.report("search", "title", ["index", "ms"], rows, facts).read_text())
    lines = published["figures"](left).splitlines()
    assert lines[1:5] == ["| index | ms |", "| --- | ---: |", "| exact \\| flat | 1,000 |", "| ivf | 2.5 |"]
    assert lines[6] == "- ivf / exact: 0.50"
    assert lines[8].startswith("`python -m jobs.benchmarks.search --sizes 1000`, ")
    assert left["hardware"] in lines[8]
    assert "recipe" not in published["KEPT"]


def test_the_reference_of_python_names_what_there_is():
    page = (ROOT / "docs" / "reference" / "python.md").read_text()
    described = re.findall(r"^::: (\S+)$(?:\n    options:\n      members: \[(.*)\])?", page, re.M)
    assert described
    for name, members in described:
        there = pydoc.locate(name)
        assert there, f"{name}: not there"
        assert [each for each in re.findall(r"\w+", members) if each not in dir(there)] == []


def test_ci_runs_what_the_projects_own_script_runs():
    workflow = YAML(typ="safe", pure=True).load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step.get("run") for job in workflow["jobs"].values() for step in job["steps"]]
    assert ".ci/run" in steps
    assert "make docs" in steps


def settings_of_the_reference():
    """All settings of recipes, and their groups, by their dotted names."""
    sections = (ROOT / "docs" / "reference" / "recipe.md").read_text().split("\n## ")[1:]
    found = set()
    for section in sections:
        heading, rows = section.split("\n", 1)
        group = "" if heading == "Top level" else re.sub(r" \(kind: \w+\)", "", heading.strip("`")) + "."
        found |= {group.rstrip("."), *(group + name for name in re.findall(r"^\| `(\w+)` \|", rows, re.M))}
    return found
