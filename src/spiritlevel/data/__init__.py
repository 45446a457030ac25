"""Training records and where they come from."""

from spiritlevel.data.contrast import ContrastConfig, ContrastReport, contrast_pairs, contrast_workload
from spiritlevel.data.demonstration import Demonstration, read_demonstrations, read_records, write_demonstrations
from spiritlevel.data.preference import Preference, read_preferences, write_preferences
from spiritlevel.data.record import Record, check_writable, write_records

__all__ = [
    "ContrastConfig",
    "ContrastReport",
    "Demonstration",
    "Preference",
    "Record",
    "check_writable",
    "contrast_pairs",
    "contrast_workload",
    "read_demonstrations",
    "read_preferences",
    "read_records",
    "write_demonstrations",
    "write_preferences",
    "write_records",
]
