"""The pages for people: the playground, and the API's documentation without anything from elsewhere.

All links in them are relative, so that they work under any path prefix.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from jinja2 import Environment

_DOCS = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ schema.info.title }} API</title>
<style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 0 auto; padding: 1rem }
summary { cursor: pointer; padding: .5rem 0 }
.scroll { overflow-x: auto }
table { border-collapse: collapse }
td, th { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0 }
code { overflow-wrap: anywhere }
</style>
</head>
<body>
<h1>{{ schema.info.title }} API {{ schema.info.version }}</h1>
<p><a href="openapi.json">openapi.json</a> · <a href=".">playground</a></p>
{% for path, methods in schema.paths.items() %}
{% for method, operation in methods.items() %}
<details>
<summary><code>{{ method | upper }} {{ path }}</code> {{ operation.description }}</summary>
{% for field in parameters(operation) %}
{% if loop.first %}<div class="scroll"><table><tr><th>field</th><th>type</th><th>default</th><th></th></tr>
{% endif %}
<tr><td><code>{{ field.name }}</code></td><td>{{ field.type }}</td>
<td>{{ field.default }}</td><td>{{ field.description }}</td></tr>
{% if loop.last %}</table></div>{% endif %}
{% endfor %}
<p>Answers: {{ operation.responses | join(", ") }}</p>
</details>
{% endfor %}
{% endfor %}
</body>
</html>
"""
)


def add_pages(api: FastAPI) -> None:
    """Serve the playground at the root and the documentation at ``docs``."""

    @api.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def playground() -> str:
        return files("routerretriever.serving.http").joinpath("playground.html").read_text(encoding="utf-8")

    @api.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> str:
        schema = api.openapi()
        return _DOCS.render(schema=schema, parameters=lambda operation: _fields(schema, operation))


def _fields(schema: dict[str, Any], operation: dict[str, Any]) -> list[dict[str, Any]]:
    """What an operation takes: its parameters, then the fields of its body."""
    fields = [
        {"name": parameter["name"], **_described(parameter["schema"], parameter["required"])}
        for parameter in operation.get("parameters", ())
    ]
    if "requestBody" in operation:
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        own = schema["components"]["schemas"][body["$ref"].rsplit("/", 1)[1]]
        required = own.get("required", ())
        fields += [
            {"name": name, **_described(field, name in required)} for name, field in own["properties"].items()
        ]
    return fields


def _described(field: dict[str, Any], required: bool) -> dict[str, str]:
    default = "required" if required else str(field.get("default", ""))
    return {"type": _type(field), "default": default, "description": field.get("description", "")}


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return str(field["$ref"].rsplit("/", 1)[1])
    if "anyOf" in field:
        return " or ".join(_type(one) for one in field["anyOf"])
    if "enum" in field:
        return " or ".join(map(str, field["enum"]))
    if field.get("type") == "array":
        return f"list of {_type(field['items'])}"
    return str(field.get("type", "any"))
