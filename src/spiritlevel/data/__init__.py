"""Preference records and where they come from."""

from spiritlevel.data.contrast import ContrastConfig, ContrastReport, contrast_pairs, contrast_workload
from spiritlevel.data.preference import Preference, read_preferences, write_preferences

__all__ = [
    "ContrastConfig",
    "ContrastReport",
    "Preference",
    "contrast_pairs",
    "contrast_workload",
    "read_preferences",
    "write_preferences",
]
