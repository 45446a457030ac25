"""A rule that holds no matter what, for tests of its checks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from spiritlevel.charter import Rule
from spiritlevel.charter.schema import CheckSpec
from spiritlevel.checks import Check, build_check


@pytest.fixture(scope="session")
def check() -> Callable[..., Check]:
    """check("forbid", patterns=[...], when=[...], unless=[...], assume_topic=False)"""

    def build(kind: str, *, assume_topic: bool = False, **fields: list[str]) -> Check:
        spec = CheckSpec.model_validate({"kind": kind, **fields})
        rule = Rule(
            id="rule",
            title="Rule",
            text="Keep it.",
            severity="low",
            owner="anna",
            on_violation="flag",
            checks=(spec,),
        )
        return build_check(rule, spec, assume_topic=assume_topic)

    return build
