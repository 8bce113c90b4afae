"""The JSON schema of a script's configuration files, made from its flags: for editors, and to check files."""

from __future__ import annotations

import argparse
from typing import Any

from mcanalysis.cli.flags import Parser, by_task, comma_list, count_or_all, integers, limits, numbers, pairs

_INTEGER, _NUMBER = r"[-+]?\d+", r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"
_COUNT = [{"type": "integer"}, {"type": "string", "pattern": f"^{_INTEGER}$"}]
_REAL = [{"type": "number"}, {"type": "string", "pattern": f"^{_NUMBER}$"}]  # YAML reads 1e-3 as text
_TEXT = [{"type": ["string", "number", "boolean"]}]
_SCALARS: dict[Any, list[dict[str, Any]]] = {int: _COUNT, float: _REAL, count_or_all: [*_COUNT, {"const": "all"}]}
_LISTS = {  # what reads a list: what its items are, and how one is written in a line
    comma_list: (_TEXT, r"[^,\s]"),
    integers: (_COUNT, rf"^{_INTEGER}(\s*,\s*{_INTEGER})*$"),
    numbers: (_REAL, rf"^{_NUMBER}(\s*,\s*{_NUMBER})*$"),
}


def config_schema(parser: Parser) -> dict[str, Any]:
    """What `--config` takes (JSON Schema 2020-12): each flag's name, type, help and default; other names are refused.

    Underscores in a name do for its dashes. That a value is sensible, or given once, the script itself says.
    """
    flags = [a for a in parser._actions if a.option_strings and a.dest not in ("help", "help_all", "config")]
    properties = {}
    for action in flags:
        about = {"description": (action.help or "").replace("%%", "%")}
        about |= {} if action.default is None else {"default": action.default}
        properties[action.dest.replace("_", "-")] = about | {"anyOf": [*_values(action), {"type": "null"}]}
    spelt = {f"^{name.replace('-', '[-_]')}$": {"$ref": f"#/properties/{name}"} for name in properties if "-" in name}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"configuration of {parser.prog}",
        "type": "object",
        "properties": properties,
        "patternProperties": spelt,
        "additionalProperties": False,
    }


def _values(action: argparse.Action) -> list[dict[str, Any]]:
    """What a flag's value may be in YAML: what `Parser` reads there."""
    kind: Any = action.type
    if action.nargs == 0:
        return [{"type": "boolean"}]
    if action.choices is not None:
        return [{"enum": list(action.choices)}]
    if isinstance(action, argparse._AppendAction):
        kind = comma_list
    if kind in _LISTS:
        items, line = _LISTS[kind]
        one_line = {"type": "string", "pattern": line}
        return [{"type": "array", "minItems": 1, "items": {"anyOf": items}}, items[0] | {"pattern": line}, one_line]
    if kind in (pairs, limits, by_task):
        block = {"type": "object", "minProperties": int(kind is by_task)}
        block |= {} if kind is pairs else {"additionalProperties": {"anyOf": _COUNT}}
        return [block, {"type": "string", "pattern": r"[^\s,=].*="}, *([] if kind is pairs else _COUNT)]
    return _SCALARS.get(kind, _TEXT)
