"""Probes: test prompts whose right treatment is known, in JSONL files beside the charter."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError, model_validator

from spiritlevel.charter.schema import Charter, Slug, Text
from spiritlevel.errors import SpiritLevelError
from spiritlevel.store import read_jsonl

_FIELDS = "A probe has `prompt`, `expect` (help, refuse, refer or redact), and may have `rule` and `reply`."


class Probe(BaseModel):
    """One test prompt. `expect: help` may name the rule that it is a near miss of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Text
    expect: Literal["help", "refuse", "refer", "redact"]
    rule: Slug | None = None
    # For `help` probes: an answer the charter's owner would be glad of; training may use it.
    reply: Text | None = None
    _where: str = PrivateAttr(default="")

    @model_validator(mode="after")
    def _names_its_rule(self) -> Probe:
        if self.expect != "help" and self.rule is None:
            raise ValueError(f"a probe with `expect: {self.expect}` names its `rule`")
        return self

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits of the digest of the prompt."""
        return hashlib.sha256(self.prompt.encode()).hexdigest()[:12]

    @property
    def where(self) -> str:
        """file:line"""
        return self._where


def read_probes(charter: Charter, half: Literal["train", "held_out"]) -> list[Probe]:
    """The probes of one half, in file order. Raises SpiritLevelError naming file, line and field."""
    names = charter.probes.train if half == "train" else charter.probes.held_out
    known = {rule.id for rule in charter.rules}
    probes = []
    for path in charter.files(names):
        if not path.exists():
            raise SpiritLevelError(
                "there is no such probe file", where=str(path), remedy="Correct `probes` in the charter."
            )
        for number, row in read_jsonl(path):
            where = f"{path}:{number}"
            try:
                probe = Probe.model_validate(row)
            except ValidationError as error:
                fault = error.errors()[0]
                field = ".".join(str(part) for part in fault["loc"])
                problem = f"{field}: {fault['msg']}" if field else fault["msg"]
                problem = problem.replace("Value error, ", "")
                raise SpiritLevelError(problem, where=where, remedy=_FIELDS) from None
            if probe.rule is not None and probe.rule not in known:
                raise SpiritLevelError(
                    f"the probe names the rule {probe.rule!r}, which the charter does not have",
                    where=where,
                    remedy=f"Its rules are: {', '.join(sorted(known))}.",
                )
            probe._where = where
            probes.append(probe)
    return probes
