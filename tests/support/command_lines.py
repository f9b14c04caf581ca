"""Whether a shell would find the commands, options, targets, files, settings and routes that a line names."""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import typer
from routerretriever.client import schemas
from routerretriever.config.loading import load_recipe

from support.paths import ROOT, SAMPLE

_SHELL = {".", "cat", "cp", "do", "done", "export", "for", "grep", "mkdir", "printf", "seq", "sort", "uniq"}
_OTHERS = {"aws", "openssl", "prometheus", "sha256sum"}
"""Programs whose arguments are not ours to check."""
_ANY_SETTING = {"dotted.key=value", "KEY=VALUE"}
_FOLDERS = "jobs|serve_configs|examples|docs|platform|tests"


def check_line(line: str, whole: bool = True) -> None:
    """Check every simple command of a line; one within a sentence need not be ``whole``."""
    for words in _simple_commands(line.replace("$PWD", str(ROOT))):
        _check_files(words)
        _check_settings(words)
        _check_command(words, whole)


def _simple_commands(line: str) -> Iterator[list[str]]:
    reader = shlex.shlex(line, posix=True, punctuation_chars=True)
    reader.whitespace_split = True
    words: list[str] = []
    tokens = iter(reader)
    for token in tokens:
        if re.fullmatch(r"\d?[<>]+&?", token):
            next(tokens)  # the file that is read or written
        elif re.fullmatch(r"[;|&()]+", token):
            yield words
            words = []
        elif words or not re.fullmatch(r"\w+=.*", token):  # variables of the environment stand first
            words.append(token)
    yield words


def _check_command(words: list[str], whole: bool) -> None:
    match words:
        case [] | ["--set", *_]:
            return
        case ["routerretriever", *rest]:
            _parse(_ours(), "routerretriever", rest, whole)
        case ["ray" | "serve" | "mlflow" as name, *rest]:
            _parse(_of_library(name), name, rest, whole)
            if "--" in rest:
                _check_command(rest[rest.index("--") + 1 :], whole)
        case ["python", "-m", module, *rest]:
            _check_module(module, rest, whole)
        case ["python", file, *_]:
            assert (ROOT / file).is_file(), f"{file}: no such file"
        case ["make", target, *_]:
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
            assert target in targets, f"{target}: no such target"
        case ["curl", *rest]:
            _check_request(rest)
        case ["pip" | "kubectl", *rest]:
            _check_extras(rest)
        case [name, *_]:
            assert name in _SHELL | _OTHERS, f"{name}: a program that nothing here checks"


def _check_module(module: str, words: list[str], whole: bool) -> None:
    if not whole and module.endswith(".NAME"):
        return
    path = ROOT / f"{module.replace('.', '/')}.py"
    assert path.is_file(), f"{module}: no such module"
    if command := re.search(r'main_for\("(.*)"\)', path.read_text()):
        _parse(_ours(), "routerretriever", [command[1], *words], whole)
    elif module.startswith("jobs"):
        _parse(_of_module(module), module, words, whole)


def _parse(command: Any, name: str, words: list[str], whole: bool) -> None:
    """Parse arguments as click would when it is called; nothing is run."""
    words = list(words)
    while hasattr(command, "commands"):
        if not words or words[0].startswith("-"):
            break
        name = words.pop(0)
        assert name in command.commands, f"{name}: no such command"
        command = command.commands[name]
    options = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
    own = words[: words.index("--")] if "--" in words else words
    used = {word.partition("=")[0] for word in own if word.startswith("-")}
    assert used <= {*options, "--help"}, f"{name}: no such option: {used - options}"
    if whole and not hasattr(command, "commands"):
        command.make_context(name, ["1" if word == "N" else word for word in words])  # N: a number


def _check_files(words: list[str]) -> None:
    for word in words:
        if re.fullmatch(rf"((?:{_FOLDERS})/|cluster\.)[\w./-]+", word):
            assert (ROOT / word).exists(), f"{word}: no such file"


def _check_settings(words: list[str]) -> None:
    settings = [setting for option, setting in pairwise(words) if option == "--set"]
    recipes = [ROOT / word for word in words if word.startswith("jobs/recipes/")]
    if settings and not _ANY_SETTING.issuperset(settings):
        load_recipe(recipes[0] if recipes else SAMPLE, settings)


def _check_extras(words: list[str]) -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        if found := re.fullmatch(r"(?:routerretriever|\.)\[(.*)\]", word):
            assert found[1] in known, f"{word}: no such extra"


def _check_request(words: list[str]) -> None:
    """The service has the route, and its schema takes parameters and body."""
    url = next((word for word in words if re.match(r"(http://)?localhost:8000/", word)), None)
    if url is None:
        return
    path, _, query = url.partition(":8000")[2].partition("?")
    given = dict(pairwise(words))
    check_route(path, method := given.get("-X", "POST" if "-d" in words else "GET"))
    operation = _routes()[_template(path)][method.lower()]
    names = {each["name"] for each in operation.get("parameters", [])}
    assert set(re.findall(r"(\w+)=", query)) <= names, f"{url}: there are {names}"
    if "-d" in words:
        body = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        getattr(schemas, body.rpartition("/")[2]).model_validate_json(given["-d"])


def check_route(path: str, method: str | None = None) -> None:
    """The service answers at this address, by this method if one is named."""
    assert (template := _template(path)), f"{path}: no such route"
    assert method is None or method.lower() in _routes()[template], f"{method} {path}: no such method"


def _template(path: str) -> str | None:
    fits = (each for each in _routes() if re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(each)), path))
    return next(fits, None)


@cache
def _routes() -> dict[str, Any]:
    made: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "reference" / "generate.py"))["openapi"]()[
        "paths"
    ]
    return made


@cache
def _ours() -> Any:
    from routerretriever.cli.main import app

    return typer.main.get_command(app)


@cache
def _of_library(name: str) -> Any:
    modules = {"ray": "ray.scripts.scripts", "serve": "ray.serve.scripts", "mlflow": "mlflow.cli"}
    module = importlib.import_module(modules[name])
    return module.cli


@cache
def _of_module(name: str) -> Any:
    module = importlib.import_module(name)
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer()
        app.command()(module.main)
    return typer.main.get_command(app)
