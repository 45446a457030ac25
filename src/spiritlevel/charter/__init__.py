"""The charter: what an assistant is for and how it must behave."""

from spiritlevel.charter.diff import Change, diff, diff_probes
from spiritlevel.charter.load import json_schema, load_charter
from spiritlevel.charter.probes import Probe, read_probes
from spiritlevel.charter.render import (
    charter_messages,
    constitution,
    few_shot_messages,
    judge_question,
    system_prompt,
)
from spiritlevel.charter.schema import Charter, Exchange, Gate, Rule

__all__ = [
    "Change",
    "Charter",
    "Exchange",
    "Gate",
    "Probe",
    "Rule",
    "charter_messages",
    "constitution",
    "diff",
    "diff_probes",
    "few_shot_messages",
    "json_schema",
    "judge_question",
    "load_charter",
    "read_probes",
    "system_prompt",
]
