"""Feedback: one reply, judged good or bad, as from a thumb. TRL's unpaired columns."""

from __future__ import annotations

from typing import Any, ClassVar

from spiritlevel.data.preference import Preference
from spiritlevel.data.record import Record, ReplyTurns


class Feedback(Record):
    """label: whether the completion was judged desirable; source, author: of that judgement."""

    columns: ClassVar[str] = "Feedback has `prompt` and `completion`, strings or messages, and `label`, true or false"

    completion: ReplyTurns
    label: bool
    finished: bool = True

    @classmethod
    def of(cls, prompt: str, completion: str, label: bool, **fields: Any) -> Feedback:
        """From plain strings."""
        return cls.model_validate({"prompt": prompt, "completion": completion, "label": label, **fields})

    @property
    def reply(self) -> str:
        return self.completion[0].content


def as_feedback(record: Feedback | Preference) -> list[Feedback]:
    """A preference as two judged replies: the chosen one good, the rejected one bad."""
    if isinstance(record, Feedback):
        return [record]
    shared = record.model_dump(include=set(Record.model_fields))
    sides = (
        (record.chosen_text, True, record.chosen_finished),
        (record.rejected_text, False, record.rejected_finished),
    )
    return [
        Feedback.model_validate(shared | {"completion": reply, "label": label, "finished": finished})
        for reply, label, finished in sides
    ]
