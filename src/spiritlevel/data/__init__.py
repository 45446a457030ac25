"""Preference records and where they come from."""

from spiritlevel.data.contrast import ContrastConfig, ContrastReport, contrast_pairs, contrast_workload
from spiritlevel.data.feedback import Feedback, as_feedback
from spiritlevel.data.preference import Preference, check_writable, read_preferences, write_preferences
from spiritlevel.data.ranking import Ranking

__all__ = [
    "ContrastConfig",
    "ContrastReport",
    "Feedback",
    "Preference",
    "Ranking",
    "as_feedback",
    "check_writable",
    "contrast_pairs",
    "contrast_workload",
    "read_preferences",
    "write_preferences",
]
