"""The exported JSON Schema knows every field that the charters use, and requires no more."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest
import yaml

from spiritlevel.charter import Charter, json_schema

TEMPLATES = sorted(files("spiritlevel.charter").joinpath("templates").iterdir(), key=lambda folder: folder.name)


def strangers(schema: dict[str, Any], node: dict[str, Any], value: Any, place: str = "") -> list[str]:
    """What `value` has that the schema does not know, and what the schema requires and `value` lacks."""
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    if isinstance(value, dict):
        known = node["properties"]
        assert node["additionalProperties"] is False
        lost = [f"{place}.{key}" for key in {*value} - {*known} | {*node.get("required", ())} - {*value}]
        return lost + [
            s for key in {*value} & {*known} for s in strangers(schema, known[key], value[key], f"{place}.{key}")
        ]
    if isinstance(value, list):
        return [s for child in value for s in strangers(schema, node["items"], child, f"{place}[]")]
    return [] if value in node.get("enum", [value]) else [place]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_the_schema_knows_the_templates(template: Any) -> None:
    schema = json.loads(json_schema())
    document = yaml.safe_load(template.joinpath("charter.yaml").read_text(encoding="utf-8"))
    assert strangers(schema, schema, document) == []


def test_the_schema_has_every_field_and_refuses_others() -> None:
    schema = json.loads(json_schema())
    assert set(schema["properties"]) == set(Charter.model_fields)
    assert strangers(schema, schema, {"nmae": "x"}) != []
    assert {"in", "out", "otherwise"} == set(schema["$defs"]["Scope"]["properties"])
