"""The charter: what an assistant is for and how it must behave, as one typed, versioned document.

Everything else in Spirit Level is derived from this object and carries its rule ids.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticKnownError

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Severity = Literal["low", "medium", "high", "critical"]
Side = Literal["input", "output", "action"]
Action = Literal["redact", "rewrite", "refuse", "escalate", "flag"]


class _Part(BaseModel):
    """Every part of a charter is immutable and refuses fields it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _valid_regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a valid regular expression: {error}") from error
    return pattern


Pattern = Annotated[Text, AfterValidator(_valid_regex), Field(description="A regular expression; case is ignored.")]


class Exchange(_Part):
    """One question and one answer."""

    prompt: Text
    reply: Text


class Tone(_Part):
    voice: Text = Field(description="How the assistant sounds, in one sentence.")
    do: tuple[Text, ...] = ()
    dont: tuple[Text, ...] = ()


class Scope(_Part):
    inside: tuple[Text, ...] = Field(alias="in", min_length=1, description="What the assistant helps with.")
    outside: tuple[Text, ...] = Field(alias="out", default=(), description="What it does not help with.")
    otherwise: Text = Field(description="What the assistant says when asked for something out of scope.")

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class CheckSpec(_Part):
    """One deterministic test of a reply, bound to the rule it stands under.

    - `forbid`: the reply must not match any of `patterns`
    - `require`: the reply must match at least one of `patterns`
    - `decline`: the reply must refuse, or refer the person to somebody else
    - `echo`: the reply must not repeat text of the conversation that matches `patterns`
      (default: e-mail addresses and runs of four or more digits)

    With `when`, a check applies only if the person's last message matches one of those patterns; a reply that
    matches one of `unless` is excused.
    """

    kind: Literal["forbid", "require", "decline", "echo"]
    patterns: tuple[Pattern, ...] = ()
    when: tuple[Pattern, ...] = ()
    unless: tuple[Pattern, ...] = ()

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> CheckSpec:
        if self.kind in ("forbid", "require") and not self.patterns:
            raise ValueError(f"a `{self.kind}` check needs `patterns`")
        if self.kind == "decline" and self.patterns:
            raise ValueError("a `decline` check takes no `patterns`; use `when` to say which questions it is for")
        return self


class RuleExamples(_Part):
    good: tuple[Exchange, ...] = ()
    bad: tuple[Exchange, ...] = ()


class Rule(_Part):
    """One requirement: who owns it, how grave a violation is, and what to do about one."""

    id: Slug
    title: Text
    text: Text = Field(description="The requirement, as a full sentence addressed to the assistant.")
    severity: Severity
    owner: Text = Field(description="The person or team who answers for this rule.")
    applies_to: tuple[Side, ...] = Field(default=("output",), min_length=1)
    on_violation: Action
    say: tuple[Text, ...] = Field(
        default=(), description="The charter's own words for a reply under this rule, the best wording first."
    )
    checks: tuple[CheckSpec, ...] = ()
    examples: RuleExamples = RuleExamples()


class Principle(_Part):
    """A clause of the constitution, used to critique, revise and compare replies."""

    id: Slug
    text: Text


DEFAULT_PRINCIPLES = (
    Principle(
        id="helpful",
        text="Choose the reply that does most for what the person is really trying to achieve, "
        "and that does not refuse, hedge or lecture without need.",
    ),
    Principle(
        id="honest",
        text="Choose the reply that is true, says how sure it is, and admits what it does not know or cannot do.",
    ),
    Principle(
        id="harmless",
        text="Choose the reply least likely to hurt the person, somebody else, or people's rights and privacy.",
    ),
)


class Review(_Part):
    """Who looks at a high-stakes answer, and when."""

    by: Text
    when: Literal["before", "after"] = "before"
    within_minutes: int | None = Field(default=None, gt=0)


class HighStakes(_Part):
    topic: Text
    patterns: tuple[Pattern, ...] = ()
    review: Review


class Bounds(_Part):
    """The most the charter tolerates, and how sure the evidence must be."""

    leakage: Fraction = Field(default=0.15, description="Most of the must-decline questions answered wrongly.")
    over_refusal: Fraction = Field(default=0.15, description="Most of the must-help questions refused.")
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.9


class Gate(_Part):
    """One condition of promotion. `max`: the measure itself; `max_increase`: after minus before.

    Perplexity is a number above 1, and its `max_increase` relative: 0.10 tolerates ten per cent. The others are
    shares, for which a limit above 1 could never fail.
    """

    measure: Literal["leakage", "over_refusal", "perplexity", "rule"]
    rule: Slug | None = None
    max: float | None = Field(default=None, ge=0.0)
    max_increase: float | None = Field(default=None, ge=0.0)

    @field_validator("max", "max_increase")
    @classmethod
    def _can_fail(cls, limit: float | None, info: ValidationInfo) -> float | None:
        if limit is not None and limit > 1 and info.data.get("measure", "perplexity") != "perplexity":
            raise PydanticKnownError("less_than_equal", {"le": 1})
        return limit

    @model_validator(mode="after")
    def _one_limit(self) -> Gate:
        if (self.max is None) == (self.max_increase is None):
            raise ValueError("a gate has exactly one of `max` and `max_increase`")
        if (self.measure == "rule") != (self.rule is not None):
            raise ValueError("a gate on `measure: rule` names the `rule`, and no other gate does")
        return self


class Monitor(_Part):
    """What to watch in service; the alarm goes to `owner`."""

    measure: Literal["leakage", "over_refusal", "refusal", "escalation", "drift"]
    rule: Slug | None = None
    owner: Text
    alarm_above: Fraction | None = None


def _file_name(name: str) -> str:
    if "\0" in name:
        raise ValueError("a file name cannot hold a NUL character")
    return name


FileName = Annotated[Text, AfterValidator(_file_name)]


class Probes(_Part):
    """JSONL files of test prompts, relative to the charter. Held-out prompts are never trained on."""

    train: tuple[FileName, ...] = ()
    held_out: tuple[FileName, ...] = ()


class Charter(_Part):
    """The whole document. `digest` is its identity."""

    name: Slug
    version: Annotated[str, StringConstraints(pattern=r"^\d+\.\d+\.\d+$")]
    owner: Text
    role: Text
    tone: Tone
    scope: Scope
    rules: tuple[Rule, ...] = Field(min_length=1)
    principles: tuple[Principle, ...] = Field(default=DEFAULT_PRINCIPLES, min_length=1)
    high_stakes: tuple[HighStakes, ...] = ()
    few_shot: tuple[Exchange, ...] = ()
    bounds: Bounds = Bounds()
    gates: tuple[Gate, ...] = ()
    monitors: tuple[Monitor, ...] = ()
    probes: Probes = Probes()

    # Where the file lies and on which line each field stands; not part of the document or its digest.
    _path: Path | None = PrivateAttr(default=None)
    _lines: dict[tuple[str | int, ...], int] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _ids_agree(self) -> Charter:
        faults = []
        rules, principles = [rule.id for rule in self.rules], [principle.id for principle in self.principles]
        for part, ids in (("rules", rules), ("principles", principles)):
            for index, name in enumerate(ids):
                if name in ids[:index]:
                    message = f"duplicate id {name!r}: ids are the thread of evidence and must be unique"
                    faults.append(_fault((part, index, "id"), name, message))
        named: dict[str, Sequence[Gate | Monitor]] = {"gates": self.gates, "monitors": self.monitors}
        for part, users in named.items():
            for index, user in enumerate(users):
                if user.rule is not None and user.rule not in rules:
                    message = f"there is no rule {user.rule!r}; the rules are: {', '.join(rules)}"
                    faults.append(_fault((part, index, "rule"), user.rule, message))
        if faults:
            raise ValidationError.from_exception_data("Charter", faults)
        return self

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of the document: same meaning, same digest, whatever the layout."""
        document = self.model_dump(mode="json", by_alias=True)
        canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def path(self) -> Path | None:
        """The file it was loaded from."""
        return self._path

    def rule(self, rule_id: str) -> Rule:
        """The rule with this id. Raises KeyError."""
        for rule in self.rules:
            if rule.id == rule_id:
                return rule
        raise KeyError(rule_id)

    def files(self, names: tuple[str, ...]) -> list[Path]:
        """Probe files, resolved beside the charter."""
        folder = self._path.parent if self._path else Path()
        return [folder / name for name in names]


def _fault(place: tuple[str | int, ...], found: str, message: str) -> InitErrorDetails:
    """A fault between parts, told at the part to be mended instead of at the whole document."""
    return InitErrorDetails(type=PydanticCustomError("value_error", message), loc=place, input=found)
