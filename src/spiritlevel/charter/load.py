"""Reading a charter file: every error names the file, the line and the field."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from spiritlevel.charter.schema import Charter
from spiritlevel.errors import SpiritLevelError

Place = tuple[str | int, ...]

_MANDATORY_HINT = "`spiritlevel charter schema` prints the JSON Schema for your editor's completion."


def load_charter(path: str | Path) -> Charter:
    """Read and validate a charter.

    Raises SpiritLevelError listing *every* fault as `file:line: field: problem`.
    """
    path = Path(path)
    try:
        if path.is_dir():
            path = path / "charter.yaml"
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpiritLevelError(
            "there is no such charter",
            where=str(path),
            remedy="`spiritlevel charter new DIR --template accounting` writes one to start from.",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpiritLevelError(
            f"cannot be read: {error}", where=str(path), remedy="A charter is a YAML file in UTF-8."
        ) from None
    document, lines = _parse(text, path)
    try:
        charter = Charter.model_validate(document)
    except ValidationError as error:
        faults = [_describe(fault, lines, path) for fault in _root_faults(error)]
        raise SpiritLevelError("\n".join(faults), remedy=_MANDATORY_HINT) from None
    charter._path, charter._lines = path, lines
    return charter


def line_of(charter: Charter, place: Place) -> int:
    """The line of the charter's file on which the field at `place` stands (1 when it can't be found)."""
    return _nearest(charter._lines, place)


def json_schema() -> str:
    """The charter's JSON Schema, for completion in an editor."""
    return json.dumps(Charter.model_json_schema(by_alias=True), indent=2)


def _parse(text: str, path: Path) -> tuple[Any, dict[Place, int]]:
    """The document, and the line of every field in it. Duplicate keys are an error, as YAML says."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            raise SpiritLevelError("the file is empty", where=str(path), remedy=_MANDATORY_HINT)
        return _build(root, path)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line if mark else text.count("\n", 0, getattr(error, "position", 0))
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SpiritLevelError(
            f"not valid YAML: {problem}",
            where=f"{path}:{line + 1}",
            remedy="Check the indentation and the quotes there.",
        ) from None
    except RecursionError:
        raise SpiritLevelError(
            "nested too deeply", where=str(path), remedy="Write out the alias that contains itself."
        ) from None


def _build(root: yaml.Node, path: Path) -> tuple[Any, dict[Place, int]]:
    constructor = yaml.SafeLoader("")
    lines: dict[Place, int] = {}

    def build(node: yaml.Node, place: Place) -> Any:
        lines.setdefault(place, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            mapping: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key = str(constructor.construct_object(key_node))
                line = key_node.start_mark.line + 1
                if key in mapping:
                    raise SpiritLevelError(
                        f"the field {_field((*place, key))} is given twice",
                        where=f"{path}:{line}",
                        remedy="Keep one of them: YAML would silently drop the first.",
                    )
                lines[(*place, key)] = line
                mapping[key] = build(value_node, (*place, key))
            return mapping
        if isinstance(node, yaml.SequenceNode):
            return [build(child, (*place, index)) for index, child in enumerate(node.value)]
        try:
            return constructor.construct_object(node)
        except ValueError:  # looks like a date or a number and is none: text
            return node.value

    return build(root, ()), lines


def _field(place: Place) -> str:
    """('rules', 3, 'owner') -> rules[3].owner"""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text or "(the document)"


def _nearest(lines: dict[Place, int], place: Place) -> int:
    while place and place not in lines:
        place = place[:-1]
    return lines.get(place, 1)


def _root_faults(error: ValidationError) -> list[Any]:
    """Without "too short" for a list that is only short of its faulty entries."""
    faults = error.errors()
    parents = {fault["loc"][:depth] for fault in faults for depth in range(len(fault["loc"]))}
    return [fault for fault in faults if fault["type"] != "too_short" or fault["loc"] not in parents]


def _describe(fault: Any, lines: dict[Place, int], path: Path) -> str:
    place: Place = tuple(fault["loc"])
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        message = f"unknown field{_suggestion(place)}"
    elif fault["type"] == "missing":
        message = "this field is required and missing"
    elif fault["type"] not in ("value_error",) and isinstance(fault["input"], str | int | float | bool):
        message = f"{message}, found {fault['input']!r}"
    if fault["type"] in ("less_than", "less_than_equal"):  # only shares have an upper limit
        message += ": 0.15 means 15 %"
    return f"{path}:{_nearest(lines, place)}: {_field(place)}: {message}"


def _suggestion(place: Place) -> str:
    """` (did you mean ...?)` for a misspelt field name."""
    fields = _fields_at(place[:-1])
    close = difflib.get_close_matches(str(place[-1]), fields, n=1)
    if close:
        return f" (did you mean `{close[0]}`?)"
    return f" (known here: {', '.join(fields)})" if fields else ""


def _fields_at(place: Place) -> list[str]:
    """The names of the fields that may stand at `place`."""
    schema = Charter.model_json_schema(by_alias=True)
    node: dict[str, Any] = schema
    for part in place:
        node = _resolve(schema, node)
        node = node.get("items", {}) if isinstance(part, int) else node.get("properties", {}).get(part, {})
    return list(_resolve(schema, node).get("properties", {}))


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return node
