"""The digest is the charter's meaning: layout does not move it, and every edit of the content does."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from spiritlevel.charter import Charter, diff, load_charter

Document = Callable[[], dict[str, Any]]
# Where a word may not simply grow by a letter.
OTHER = {
    "high": "low",
    "critical": "low",
    "refuse": "redact",
    "escalate": "flag",
    "output": "input",
    "forbid": "require",
}
OTHER |= {"rule": "leakage", "leakage": "drift", "decline": "echo", "1.0.0": "1.0.1"}


def shuffled(node: Any, order: random.Random) -> Any:
    """The same document with the keys of every mapping in another order."""
    if isinstance(node, dict):
        keys = order.sample(list(node), len(node))
        return {key: shuffled(node[key], order) for key in keys}
    return [shuffled(child, order) for child in node] if isinstance(node, list) else node


styles = st.fixed_dictionaries(
    {"default_flow_style": st.booleans(), "indent": st.integers(2, 8), "width": st.integers(10, 200)}
)


@settings(max_examples=40)
@given(st.randoms(use_true_random=False), styles, st.text("# :-[a\t", max_size=20))
def test_the_digest_is_blind_to_layout(
    charter_file: Path,
    bakery: str,
    document: Document,
    order: random.Random,
    style: dict[str, Any],
    comment: str,
) -> None:
    charter_file.write_text(bakery)
    original = load_charter(charter_file)
    text = yaml.safe_dump(shuffled(document(), order), sort_keys=False, **style)
    charter_file.write_text(f"#{comment}\n{text}\n# {comment}\n")
    again = load_charter(charter_file)
    assert again.digest == original.digest
    assert diff(original, again) == []


def edits(node: Any, put: Callable[[Any], None], path: str = "") -> Iterator[tuple[str, Callable[[], None]]]:
    """Every small edit of a document: another value at a leaf, an entry less, an entry twice."""
    if isinstance(node, dict):
        for key, child in node.items():
            yield from edits(child, lambda value, key=key: node.__setitem__(key, value), f"{path}.{key}")
            yield f"{path}.{key} left out", lambda key=key: node.pop(key)
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from edits(child, lambda value, index=index: node.__setitem__(index, value), f"{path}[{index}]")
        yield f"{path} reversed", lambda: node.reverse()
        yield f"{path} emptied", lambda: node.clear()
        yield f"{path} with its last twice", lambda: node.append(node[-1])
    elif isinstance(node, str):
        yield f"{path} changed", lambda: put(OTHER.get(node, node + "x"))
    else:
        yield f"{path} changed", lambda: put(node / 2 if isinstance(node, float) else node + 1)


def test_the_digest_sees_every_edit_and_so_does_diff(document: Document) -> None:
    original = Charter.model_validate(document())
    names = [name for name, _ in edits(document(), lambda _: None)]
    seen = 0
    for number, name in enumerate(names):
        draft = document()
        list(edits(draft, lambda _: None))[number][1]()
        if draft == document():  # a list of one, reversed
            continue
        try:
            edited = Charter.model_validate(draft)
        except ValidationError:
            continue
        if name in (".rules[0].applies_to left out",):  # the default
            assert edited.digest == original.digest
            continue
        assert edited.digest != original.digest, name
        assert diff(original, edited), name
        seen += 1
    assert seen > 100


def test_a_default_written_out_means_the_same(document: Document) -> None:
    spelled = document()
    spelled["rules"][1] |= {"applies_to": ["output"], "say": [], "examples": {"good": [], "bad": []}}
    assert Charter.model_validate(spelled).digest == Charter.model_validate(document()).digest


@given(st.dictionaries(st.sampled_from(["name", "role", "owner"]), st.just("other"), min_size=1))
def test_equal_digests_mean_equal_documents(document: Document, changes: dict[str, str]) -> None:
    one, two = Charter.model_validate(document()), Charter.model_validate(document() | changes)
    assert (one.digest == two.digest) == (one.model_dump() == two.model_dump())
    assert re.fullmatch("[0-9a-f]{64}", two.digest)
