"""Write the reference pages that come from the code: commands, recipe, HTTP API, metrics, errors.

Run ``python docs/reference/generate.py``; ``make docs`` does. A test holds the pages against the code.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

FOLDER = Path(__file__).parent
PACKAGE = FOLDER.parents[1] / "platform" / "routerretriever"
_HEAD = "<!-- Made by docs/reference/generate.py; change the code, not this page. -->\n"


def pages() -> dict[str, str]:
    """Every page by its file name."""
    made = {
        "commands.md": commands_page(),
        "recipe.md": recipe_page(),
        "http-api.md": http_page(),
        "metrics.md": metrics_page(),
        "errors.md": errors_page(),
    }
    return {name: _HEAD + "\n" + text.rstrip() + "\n" for name, text in made.items()}


def _cell(text: str) -> str:
    parts = " ".join(text.split()).replace("``", "`").replace("|", "\\|").split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]  # outside code
    return "`".join(parts)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


# Commands ---------------------------------------------------------------------------------------------------


def commands_page() -> str:
    """Every command with its arguments and options, from the command line's own definitions."""
    from routerretriever.cli.main import app
    from typer.main import get_command

    parts = [
        "# Commands\n",
        "`routerretriever --help` and `routerretriever COMMAND --help` show the same. A "
        "recipe is a YAML file: "
        "[its settings](recipe.md).\n",
    ]
    for name, command in _leaves(get_command(app), "routerretriever"):
        parts.append(f"## {name}\n\n{inspect.cleandoc(command.help or '')}\n")
        rows = [_parameter(each) for each in command.params if not getattr(each, "hidden", False)]
        if rows:
            parts.append(_table(["", "what it is", "default"], rows))
    return "\n".join(parts)


def _leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield name, command
        return
    for each, below in sorted(command.commands.items()):
        yield from _leaves(below, f"{name} {each}")


def _parameter(parameter: Any) -> list[str]:
    if parameter.param_type_name == "argument":
        names = parameter.metavar or parameter.name.upper()
    else:
        names = ", ".join([*parameter.opts, *parameter.secondary_opts])
        if not parameter.is_flag:
            names += f" {parameter.metavar or parameter.name.upper()}"
    default = parameter.default
    shown = "" if default in (None, False, ()) or parameter.required else f"`{default}`"
    if default is True:
        shown = f"`{parameter.opts[0]}`"
    elif isinstance(default, Path):
        shown = f"`{default.as_posix()}`"
    return [f"`{names}`", parameter.help or "", "needed" if parameter.required else shown]


# Recipe -----------------------------------------------------------------------------------------------------


def recipe_page() -> str:
    """Every setting with its type, default and description, from the recipe's JSON schema."""
    from routerretriever.config.loading import recipe_schema

    schema = json.loads(recipe_schema())
    parts = [
        "# Recipe\n",
        "All settings, as in the recipe's JSON schema (`jobs/recipes/recipe.schema.json`), by "
        "which an editor "
        "completes and checks recipes. Only `name` and `domains` are needed. `--set "
        "dotted.key=value` replaces "
        "any of them.\n",
    ]
    parts += _settings(schema, schema["$defs"], "")
    return "\n".join(parts)


def _settings(schema: dict[str, Any], known: dict[str, Any], prefix: str) -> Iterator[str]:
    title = prefix.rstrip(".") or "Top level"
    yield f"## {title}\n" if title == "Top level" else f"## `{title}`\n"
    if title != "Top level" and schema.get("description"):
        yield inspect.cleandoc(schema["description"].replace("``", "`")) + "\n"
    fields = schema.get("properties", {})
    if fields:
        needed = schema.get("required", [])
        yield _table(
            ["setting", "type", "default", "what it does"],
            [
                [
                    f"`{name}`",
                    _type(each),
                    "needed" if name in needed else _default(each),
                    each.get("description", ""),
                ]
                for name, each in fields.items()
            ],
        )
    for name, each in fields.items():
        for reference, suffix in _groups(each):
            group = known[reference]
            kind = group.get("properties", {}).get("kind", {}).get("const")
            label = f" (kind: {kind})" if kind else ""
            yield from _settings(group, known, f"{prefix}{name}{suffix}{label}.")


def _groups(field: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Groups of settings that a field holds, and what is written after its name."""
    if "$ref" in field:
        yield field["$ref"].rsplit("/", 1)[1], ""
    for each in [*field.get("anyOf", []), *field.get("oneOf", [])]:
        yield from _groups(each)
    inner = [*field.get("patternProperties", {}).values(), field.get("additionalProperties")]
    for each in inner:
        if isinstance(each, dict):
            yield from ((reference, f".NAME{suffix}") for reference, suffix in _groups(each))


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field or "oneOf" in field:
        return "settings"
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_type(each) for each in field["anyOf"]))
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{each}`" for each in field["enum"])
    kind = {"null": "null", "array": "list", "object": "mapping"}.get(
        field.get("type", ""), field.get("type", "")
    )
    if kind == "list" and "items" in field:
        return f"list of {_type(field['items'])}"
    return f"{kind}{_bounds(field)}"


def _bounds(field: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    given = {sign: field[key] for key, sign in signs.items() if key in field}
    bounds = [f"{sign} {bound:g}" if isinstance(bound, float) else f"{sign} {bound}"
              for sign, bound in given.items()]  # fmt: skip
    return f" {', '.join(bounds)}" if bounds else ""


def _default(field: dict[str, Any]) -> str:
    if "$ref" in field or isinstance(field.get("default"), dict):
        return ""
    return f"`{json.dumps(field['default'], ensure_ascii=False)}`" if "default" in field else ""


# HTTP API ---------------------------------------------------------------------------------------------------


def http_page() -> str:
    """Every route with the fields of its request and its answer, from the OpenAPI schema."""
    schema = openapi()
    known = schema["components"]["schemas"]
    parts = [
        "# HTTP API\n",
        "The service itself shows the same under `/docs`, and as OpenAPI under `/openapi.json`. Clients of "
        "OpenAI's embeddings API work with the base URL `http://localhost:8000/v1`. Where the "
        "service has tokens, "
        "send `Authorization: Bearer TOKEN`. What is wrong comes back as "
        '`{"error": {"message", "type", "param", "code"}}`: [errors](errors.md). `/v1/feedback` is there if '
        "the recipe sets `serving.feedback`.\n",
    ]
    used: dict[str, None] = {}
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            parts.append(f"## `{method.upper()} {path}`\n\n{route['description']}\n")
            body = route.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            answer = route["responses"]["200"]["content"].get("application/json", {}).get("schema", {})
            for what, found in (("request", body), ("answer", answer)):
                if found:
                    used.update(dict.fromkeys(_references(found)))
                    parts.append(f"- {what}: {_linked(found)}")
            for parameter in route.get("parameters", []):
                parts.append(f"- {parameter['in']}: `{parameter['name']}`")
            parts.append("")
    parts.append("## Requests and answers\n")
    queue = list(used)
    while queue:
        name = queue.pop(0)
        group = known[name]
        parts.append(f"### {name}\n\n{inspect.cleandoc(group.get('description', '')).replace('``', '`')}\n")
        rows = []
        for field, each in group.get("properties", {}).items():
            needed = field in group.get("required", [])
            default = "needed" if needed else _default(each)
            description = " ".join(each.get("description", "").replace("``", "`").split())
            rows.append([f"`{field}`", _linked(each), default, description])
            for reference in _references(each):
                if reference not in used:
                    used[reference] = None
                    queue.append(reference)
        parts.append(_table(["field", "type", "default", "what it is"], rows))
    return "\n".join(parts)


def openapi() -> dict[str, Any]:
    """The service's OpenAPI schema, made without a service."""
    import httpx
    from routerretriever.config.serving import ServingSettings
    from routerretriever.datasets.feedback import FeedbackLog
    from routerretriever.serving.http.api import build_api
    from routerretriever.serving.http.auth import Authenticator
    from routerretriever.serving.ports import MetricsPort
    from routerretriever.serving.service import Service

    def no_service() -> Service:
        raise AssertionError("the schema needs no service")

    class NoMetrics:
        def __getattr__(self, _: str) -> Any:
            return self

        def __call__(self, *_: Any, **__: Any) -> None:
            return None

    async def ask() -> dict[str, Any]:
        metrics = cast(MetricsPort, NoMetrics())
        settings = ServingSettings.model_validate({"feedback": {}})
        log = FeedbackLog(cast(Any, None))  # nothing is written: no request is sent
        api = build_api(no_service, settings, Authenticator({}, True), metrics, log)
        transport = httpx.ASGITransport(app=api)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
            return cast(dict[str, Any], (await http.get("/openapi.json")).json())

    return asyncio.run(ask())


def _references(field: dict[str, Any]) -> Iterator[str]:
    if "$ref" in field:
        yield field["$ref"].rsplit("/", 1)[1]
    inner = [
        *field.get("anyOf", []),
        *field.get("oneOf", []),
        field.get("items"),
        field.get("additionalProperties"),
    ]
    for each in inner:
        if isinstance(each, dict):
            yield from _references(each)


def _linked(field: dict[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_linked(each) for each in field["anyOf"]))
    if field.get("type") == "array" and "items" in field:
        return f"list of {_linked(field['items'])}"
    return _type(field)


# Metrics and errors -----------------------------------------------------------------------------------------


def metrics_page() -> str:
    """What is counted: the service's metrics and a run's."""
    from routerretriever.runtime.metrics import DESCRIPTIONS

    rows = []
    for path in sorted((PACKAGE / "serving").rglob("*.py")):
        rows += [_metric(call) for call in _metric_calls(path)]
    return "\n".join(
        [
            "# Metrics\n",
            "Ray's Prometheus endpoint has them under these names with `ray_` in front; counters "
            "end in `_total`, "
            "histograms in `_bucket`, `_sum` and `_count`. How to scrape them and when to worry: "
            "[monitor](../how-to/monitor.md).\n",
            "## Of the service\n",
            _table(["metric", "kind", "labels", "what it is"], sorted(rows)),
            "## Of a run\n",
            "MLflow keeps the sums as `counts/...`. Beside them Ray has `routerretriever_step_seconds`, the "
            "time of each step by `recipe`, `step` and `run`; MLflow keeps it as `seconds/...`.\n",
            _table(["metric", "what it is"], [[f"`{name}`", text] for name, text in DESCRIPTIONS.items()]),
        ]
    )


def _metric_calls(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("Counter", "Gauge", "Histogram")
            and node.args
            and isinstance(node.args[0], ast.Constant)
            and str(node.args[0].value).startswith("routerretriever_")
        ):
            yield node


def _metric(call: ast.Call) -> list[str]:
    name, text = (ast.literal_eval(each) for each in call.args[:2])
    labels = [
        ast.literal_eval(each) for each in (*call.args[2:], *(word.value for word in call.keywords))
        if isinstance(each, ast.Tuple)
    ]  # fmt: skip
    shown = ", ".join(f"`{label}`" for label in (labels[0] if labels else ()))
    return [f"`{name}`", cast(ast.Name, call.func).id.lower(), shown, text]


def errors_page() -> str:
    """The kinds of error, and the HTTP status that each stands for."""
    from routerretriever import errors
    from routerretriever.serving.http.errors import RESPONSES, STATUS, status_of

    found = [
        each
        for _, each in inspect.getmembers(errors, inspect.isclass)
        if issubclass(each, errors.RouterRetrieverError) and each is not errors.RouterRetrieverError
    ]
    found.sort(key=lambda each: (each not in STATUS, each.__name__))
    rows = [
        [
            f"`{each.__name__}`",
            ", ".join(
                f"`{base.__name__}`" for base in each.__bases__ if base is not errors.RouterRetrieverError
            ),
            str(status_of(each.__new__(each))),
            (each.__doc__ or "").split("\n\n")[0],
        ]
        for each in found
    ]
    statuses = [[str(status), one["description"]] for status, one in RESPONSES.items()]
    return "\n".join(
        [
            "# Errors\n",
            "Everything that a person can act on is a `routerretriever.RouterRetrieverError`. On "
            "the command line "
            "it is one line and exit code 1; a mistyped command exits with 2, a mistake of ours "
            "with a traceback "
            "and 70. Over HTTP the kind decides the status.\n",
            _table(["error", "kind of", "HTTP", "what it means"], rows),
            "## HTTP statuses\n",
            _table(["status", "when"], statuses),
            "The Python client raises `ServiceError` with `status`, and sends a request again "
            "after 429, 502 and "
            "503 for as long as its `patience`.\n",
        ]
    )


if __name__ == "__main__":
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(f"wrote {FOLDER / name}", file=sys.stderr)
