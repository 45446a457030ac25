"""Training records and where they come from."""

from spiritlevel.data.contrast import ContrastConfig, ContrastReport, contrast_pairs, contrast_workload
from spiritlevel.data.demonstration import Demonstration, read_demonstrations, write_demonstrations
from spiritlevel.data.feedback import Feedback, as_feedback
from spiritlevel.data.preference import Preference, read_preferences, write_preferences
from spiritlevel.data.ranking import Ranking
from spiritlevel.data.read import kinds_of, read_prompts, read_records
from spiritlevel.data.record import Record, check_writable, write_records

__all__ = [
    "ContrastConfig",
    "ContrastReport",
    "Demonstration",
    "Feedback",
    "Preference",
    "Ranking",
    "Record",
    "as_feedback",
    "check_writable",
    "contrast_pairs",
    "contrast_workload",
    "kinds_of",
    "read_demonstrations",
    "read_preferences",
    "read_prompts",
    "read_records",
    "write_demonstrations",
    "write_preferences",
    "write_records",
]
