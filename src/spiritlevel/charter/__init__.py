"""The charter: what an assistant is for and how it must behave."""

from spiritlevel.charter.load import json_schema, load_charter
from spiritlevel.charter.probes import Probe, read_probes
from spiritlevel.charter.schema import Charter, Exchange, Rule

__all__ = ["Charter", "Exchange", "Probe", "Rule", "json_schema", "load_charter", "read_probes"]
