"""Preference records and where they come from."""

from spiritlevel.data.contrast import ContrastConfig, ContrastReport, contrast_pairs, contrast_workload
from spiritlevel.data.preference import Preference, check_writable, read_preferences, write_preferences

__all__ = [
    "ContrastConfig",
    "ContrastReport",
    "Preference",
    "check_writable",
    "contrast_pairs",
    "contrast_workload",
    "read_preferences",
    "write_preferences",
]
