"""``/docs``: the OpenAPI document as one HTML page, without scripts or external resources."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from html import escape
from typing import Any

Schema = dict[str, Any]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #e2e6ec; --paper: #fff;
  --panel: #f6f8fa; --accent: #0b62d6; --get: #0a7d4f; --post: #0b62d6; --delete: #c02f2f;
  --patch: #9a5b00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b4; --line: #2b323c;
  --paper: #12161c; --panel: #1a2029; --accent: #6aa8ff; --get: #4cc38a; --post: #6aa8ff;
  --delete: #ff8080; --patch: #e0a84a; } }
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.55 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); display: grid; grid-template-columns: 290px minmax(0, 1fr); }
nav { position: sticky; top: 0; height: 100vh; overflow-y: auto; padding: 24px 16px 40px 24px;
  border-right: 1px solid var(--line); background: var(--panel); font-size: 13px; }
nav h1 { font-size: 18px; margin: 0 0 2px; } nav .version { color: var(--soft); margin: 0 0 18px; }
nav h2 { font-size: 11px; letter-spacing: .08em; text-transform: uppercase; color: var(--soft);
  margin: 18px 0 4px; }
nav a { display: flex; gap: 8px; align-items: baseline; padding: 3px 0; color: inherit;
  text-decoration: none; overflow-wrap: anywhere; }
nav a:hover { color: var(--accent); }
main { padding: 32px 40px 80px; max-width: 1000px; }
main > h2 { margin: 48px 0 8px; font-size: 22px; }
article { border: 1px solid var(--line); border-radius: 10px; margin: 16px 0; padding: 18px 20px;
  scroll-margin-top: 16px; }
article:target { border-color: var(--accent); }
article h3 { margin: 0; font: 600 15px/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
article h4 { margin: 18px 0 6px; font-size: 12px; letter-spacing: .06em; text-transform: uppercase;
  color: var(--soft); }
p { margin: 6px 0; } code, pre { font: 13px/1.5 ui-monospace, monospace; }
code { background: var(--panel); border-radius: 4px; padding: 1px 5px; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 12px;
  overflow-x: auto; margin: 6px 0; }
.verb { font: 700 11px/1.6 ui-monospace, monospace; min-width: 48px; display: inline-block;
  text-transform: uppercase; } .get { color: var(--get); } .post { color: var(--post); }
.delete { color: var(--delete); } .patch, .put { color: var(--patch); }
.note { color: var(--soft); font-size: 13px; }
table { width: 100%; border-collapse: collapse; font-size: 13.5px; }
td { border-top: 1px solid var(--line); padding: 6px 10px 6px 0; vertical-align: top; }
tr:first-child td { border-top: 0; } td:first-child { width: 30%; overflow-wrap: anywhere; }
.must { color: var(--delete); font-size: 12px; }
summary { cursor: pointer; color: var(--accent); font-size: 13px; margin-top: 8px; }
@media (max-width: 800px) { body { display: block; } nav { position: static; height: auto; }
  main { padding: 20px; } }
"""


def page(document: Schema) -> str:
    """Return a complete HTML page for an OpenAPI document."""
    by_tag: defaultdict[str, list[tuple[str, str, Schema]]] = defaultdict(list)
    for path, item in document["paths"].items():
        for verb, operation in item.items():
            by_tag[operation["tags"][0]].append((verb, path, operation))
    schemas = document["components"]["schemas"]
    info = document["info"]
    links, articles = [], []
    for tag, operations in by_tag.items():
        links.append(f"<h2>{escape(tag)}</h2>")
        articles.append(f"<h2>{escape(tag)}</h2>")
        for verb, path, operation in operations:
            target = escape(operation["operationId"])
            links.append(f'<a href="#{target}">{_verb(verb)}<span>{escape(path)}</span></a>')
            articles.append(_article(verb, path, operation, schemas))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style></head><body>"
        f'<nav><h1>{escape(info["title"])}</h1><p class="version">API {escape(info["version"])} · '
        f'<a style="display:inline" href="/openapi.json">openapi.json</a></p>{"".join(links)}</nav>'
        f"<main>{_prose(info['description'])}{''.join(articles)}</main></body></html>"
    )


def _article(verb: str, path: str, operation: Schema, schemas: Schema) -> str:
    parts = [
        f'<article id="{escape(operation["operationId"])}">'
        f"<h3>{_verb(verb)} {escape(path)}</h3><p>{escape(operation['summary'])}</p>"
    ]
    if "description" in operation:
        parts.append(f'<div class="note">{_prose(operation["description"])}</div>')
    if "security" not in operation:
        parts.append('<p class="note">Needs no token.</p>')
    if operation.get("parameters"):
        parts.append("<h4>Parameters</h4>" + _parameters(operation["parameters"], schemas))
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        parts.append("<h4>Body</h4>" + _fields(schema, schemas))
        if example := _resolve(schema, schemas).get("example"):
            shown = escape(json.dumps(example, indent=2, ensure_ascii=False))
            parts.append(f"<details><summary>Example</summary><pre>{shown}</pre></details>")
    parts.append("<h4>Answers</h4><table>")
    for status, response in operation["responses"].items():
        parts.append(f"<tr><td><code>{status}</code></td><td>{_inline(response['description'])}")
        if status < "300":
            for kind, media in response.get("content", {}).items():
                parts.append(f' <span class="note">{escape(kind)}</span>')
                parts.append(_fields(media["schema"], schemas))
        parts.append("</td></tr>")
    parts.append("</table></article>")
    return "".join(parts)


def _parameters(parameters: list[Schema], schemas: Schema) -> str:
    rows = [
        _row(
            parameter["name"],
            f"{_kind(parameter['schema'], schemas)} in {parameter['in']}",
            parameter["required"],
            parameter.get("description", ""),
        )
        for parameter in parameters
    ]
    return f"<table>{''.join(rows)}</table>"


def _fields(schema: Schema, schemas: Schema) -> str:
    """Return a table of fields, or one table for each alternative of the schema."""
    resolved = _resolve(schema, schemas)
    kinds: list[Schema] = resolved.get("oneOf") or resolved.get("anyOf") or [resolved]
    tables = [f"<table>{rows}</table>" for kind in kinds if (rows := "".join(_rows(kind, schemas)))]
    return '<p class="note">or</p>'.join(tables)


def _rows(schema: Schema, schemas: Schema, prefix: str = "") -> list[str]:
    """Return a row per field, each followed by its nested ones: ``sip.host``, ``tracks[].name``."""
    resolved = _resolve(schema, schemas)
    required = resolved.get("required", ())
    rows: list[str] = []
    for name, field in resolved.get("properties", {}).items():
        note = field.get("description", "")
        if field.get("default") not in (None, "", [], {}):
            note += f" Default: `{json.dumps(field['default'])}`."
        rows.append(_row(prefix + name, _kind(field, schemas), name in required, note))
        inner, mark = _inner(field)
        if prefix.count(".") < 2 and "properties" in _resolve(inner, schemas):
            rows += _rows(inner, schemas, f"{prefix}{name}{mark}.")
    return rows


def _inner(field: Schema) -> tuple[Schema, str]:
    """Return a field's only schema besides null; for a list its items' schema and ``[]``."""
    options = [option for option in field.get("anyOf", [field]) if option.get("type") != "null"]
    only = options[0] if len(options) == 1 else {}
    return (only.get("items", {}), "[]") if only.get("type") == "array" else (only, "")


def _row(name: str, kind: str, required: bool, note: str) -> str:
    must = ' <span class="must">required</span>' if required else ""
    return (
        f"<tr><td><code>{escape(name)}</code>{must}</td>"
        f'<td><span class="note">{escape(kind)}</span> {_inline(note.strip())}</td></tr>'
    )


def _kind(schema: Schema, schemas: Schema, depth: int = 0) -> str:
    """Describe a schema: ``string, 1..256 characters``, ``list of object``."""
    if "$ref" in schema:
        target = _resolve(schema, schemas)
        return "object" if "properties" in target else _kind(target, schemas, depth + 1)
    if "anyOf" in schema:
        return " or ".join(_kind(option, schemas, depth) for option in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema["enum"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if schema.get("type") == "array" and depth < 3:
        return f"list of {_kind(schema.get('items', {}), schemas, depth + 1)}"
    kind = str(schema.get("format", schema.get("type", "any")))
    low = schema.get("minimum", schema.get("minLength"))
    high = schema.get("maximum", schema.get("maxLength"))
    if low is not None or high is not None:
        unit = " characters" if "maxLength" in schema or "minLength" in schema else ""
        kind += f", {low if low is not None else 0}..{high if high is not None else ''}{unit}"
    return kind


def _resolve(schema: Schema, schemas: Schema) -> Schema:
    while "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    return schema


def _verb(verb: str) -> str:
    return f'<span class="verb {escape(verb)}">{escape(verb)}</span>'


def _prose(text: str) -> str:
    return "".join(f"<p>{_inline(part)}</p>" for part in re.split(r"\n\s*\n", text.strip()))


def _inline(text: str) -> str:
    return re.sub(r"`+([^`]+)`+", r"<code>\1</code>", escape(text))
