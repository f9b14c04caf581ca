"""Rules that hold the project together and that no other test would notice."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import routerretriever
from ray.serve.schema import ServeDeploySchema
from routerretriever.cli.main import app, main
from routerretriever.config.loading import load_recipe, recipe_schema
from routerretriever.serving.http.auth import is_loopback
from ruamel.yaml import YAML
from typer.main import get_command

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "platform" / "routerretriever"


def test_platform_never_shadows_pythons_own_module():
    assert not (ROOT / "platform" / "__init__.py").exists()


def test_commands_stay_few():
    command = get_command(app)
    expected = (
        "add-expert analyse assess backup calibrate datasets doctor encode evaluate export export-expert "
        "import init learn learning-curve migrate noise-floor pilots register release remove-expert "
        "reproduce restore rollback run schema score serve train tune-router "
        "tune-training versions"
    )
    assert sorted(command.commands) == expected.split()
    assert sorted(command.commands["datasets"].commands) == [
        "check",
        "download",
        "export",
        "generate",
        "import",
        "split",
        "statistics",
    ]


def test_every_step_has_its_job():
    jobs = {path.stem for path in (ROOT / "jobs").glob("*.py")} - {"__init__"}
    not_steps = {
        "migrate",
        "add-expert",
        "backup",
        "datasets",
        "doctor",
        "export",
        "export-expert",
        "import",
        "init",
        "release",
        "remove-expert",
        "restore",
        "rollback",
        "schema",
        "serve",
        "versions",
    }
    commands = set(get_command(app).commands) - not_steps
    assert jobs == {command.replace("-", "_") for command in commands}


@pytest.mark.parametrize(
    "arguments",
    [
        ["analyse", "--clusters", "0"],
        ["evaluate", "--dry-run"],
        ["analyse", "--clusters", "-1"],
        ["analyse", "--clusters", "2,many"],
        ["analyse", "--order", "kitchen,kitchen"],
        ["learning-curve", "--sizes", "1.5", "--domain", "kitchen"],
        ["learning-curve", "--sizes", "1000", "--domain", "kitchen"],
        ["learning-curve", "--domain", "garden"],
        ["noise-floor", "--domain", "nowhere"],
        ["noise-floor", "--copies", "1", "--domain", "kitchen"],
        ["tune-router", "--unseen-share", "2"],
        ["tune-router", "--rows", "0"],
        ["tune-training", "--domain", "garden"],
        ["tune-training", "--seeds", "0"],
    ],
    ids=" ".join,
)
def test_a_wrong_option_is_named_before_anything_is_computed(arguments, tmp_path, capsys, monkeypatch):
    command, option, *rest = arguments
    recipe = ROOT / "jobs" / "recipes" / "sample.yaml"
    monkeypatch.setattr(
        sys, "argv", ["routerretriever", command, str(recipe), "--set", f"storage={tmp_path}", option, *rest]
    )
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code in (1, 2)
    assert option.removeprefix("--") in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_imports_nothing_heavy():
    code = (
        "import sys, routerretriever.cli.main; "
        "print([m for m in ('torch', 'ray', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_recipes_are_valid(path):
    assert load_recipe(path).name == path.stem


def test_the_shipped_schema_is_up_to_date_and_every_recipe_points_to_it():
    folder = ROOT / "jobs" / "recipes"
    command = "routerretriever schema --to jobs/recipes/recipe.schema.json"
    assert (folder / "recipe.schema.json").read_text() == recipe_schema(), f"run: {command}"
    for path in folder.glob("*.yaml"):
        first = path.read_text().splitlines()[0]
        assert first == "# yaml-language-server: $schema=recipe.schema.json", path


def test_files_that_code_names_are_there():
    folders = ("platform", "jobs", "serve_configs", "examples", "tests", "docs")
    named = re.compile(rf"\b(?:{'|'.join(folders)})/[\w/.-]+\.(?:py|md|yaml|json|svg)\b")
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for folder in folders
        if folder != "tests"  # which name what is not there on purpose
        for path in (ROOT / folder).rglob("*.py")
        for name in named.findall(path.read_text())
        if not (ROOT / name).exists()
    }
    assert not missing


def test_the_public_names_are_there():
    for name in routerretriever.__all__:
        assert getattr(routerretriever, name).__name__ == name


def test_contriever_recipe_has_the_papers_settings():
    recipe = load_recipe(ROOT / "jobs" / "recipes" / "beir-contriever.yaml")
    assert (recipe.encoder.name, recipe.encoder.pooling, recipe.encoder.similarity) == (
        "facebook/contriever", "mean", "dot",
    )  # fmt: skip
    assert (recipe.encoder.query_max_length, recipe.training.batch_size) == (512, 256)
    assert recipe.training.learning_rate == 1e-4
    assert (recipe.training.adapter.rank, recipe.training.adapter.alpha) == (8, 32)


@pytest.mark.parametrize("path", sorted((ROOT / "serve_configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_service_configurations_are_valid_to_ray_and_to_us(path):
    config = ServeDeploySchema.model_validate(YAML(typ="safe", pure=True).load(path.read_text()))
    (application,) = config.applications
    serving = load_recipe(ROOT / application.args["recipe"], application.args.get("set")).serving
    assert serving.host == config.http_options.host
    assert serving.tokens_file or is_loopback(serving.host)


def test_what_only_plans_and_supervises_imports_no_models():
    """A trainer has two processes beside its worker; models would cost each of them seconds and memory."""
    names = ("cli.main", "methods.ddr", "pipeline.plan", "training.job")
    modules = ", ".join(f"routerretriever.{name}" for name in names)
    code = f"import sys, {modules}; print(sorted({{'torch', 'transformers'}} & sys.modules.keys()))"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert told.stdout.strip() == "[]"


def test_tests_use_nothing_private():
    """Python's own and named tuples' methods have such names, and some packages offer nothing else."""
    of_python = {"_replace", "_asdict", "_exit", "_repr_svg_"}
    of_packages = {"_private", "_deployment_config", "_server", "_get_binary_path"}
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.attr}"
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and re.match(r"_(?!_)", node.attr)
        and node.attr not in of_python | of_packages
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    ]
    assert found == []
