"""Feedback: one reply, judged good or bad, as from a thumb. TRL's unpaired columns, and where it came from."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from spiritlevel.chat import Chat
from spiritlevel.data.preference import Preference, Source, Turn


class Feedback(BaseModel):
    """label: whether the completion was judged desirable; the other fields as in `Preference`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompt: tuple[Turn, ...]
    completion: tuple[Turn, ...]
    label: bool
    rule: str | None = None
    source: Source = "other"
    author: str = ""
    why: str = ""
    provenance: dict[str, Any] = {}
    finished: bool = True

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompt_as_chat(cls, value: object) -> object:
        return [{"role": "user", "content": value}] if isinstance(value, str) else value

    @field_validator("completion", mode="before")
    @classmethod
    def _reply_as_chat(cls, value: object) -> object:
        return [{"role": "assistant", "content": value}] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _makes_sense(self) -> Feedback:
        if not self.prompt:
            raise ValueError("`prompt` is empty")
        if len(self.completion) != 1 or self.completion[0].role != "assistant":
            raise ValueError("`completion` must be one assistant message (or a string)")
        if not self.completion[0].content.strip():
            raise ValueError("`completion` is empty")
        return self

    @classmethod
    def of(cls, prompt: str, completion: str, label: bool, **fields: Any) -> Feedback:
        """From plain strings."""
        return cls.model_validate({"prompt": prompt, "completion": completion, "label": label, **fields})

    @property
    def chat(self) -> Chat:
        return [{"role": turn.role, "content": turn.content} for turn in self.prompt]

    @property
    def reply(self) -> str:
        return self.completion[0].content


def as_feedback(record: Feedback | Preference) -> list[Feedback]:
    """A preference as two judged replies: the chosen one good, the rejected one bad."""
    if isinstance(record, Feedback):
        return [record]
    shared = record.model_dump(include={"prompt", "rule", "source", "author", "why", "provenance"})
    sides = (
        (record.chosen, True, record.chosen_finished),
        (record.rejected, False, record.rejected_finished),
    )
    return [
        Feedback.model_validate(
            shared | {"completion": [turn.model_dump() for turn in reply], "label": label, "finished": finished}
        )
        for reply, label, finished in sides
    ]
