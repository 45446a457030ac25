"""A chat as every chat API has it: a list of messages with a role and content."""

from __future__ import annotations

from typing import Literal, TypedDict

Role = Literal["system", "user", "assistant", "tool"]


class Message(TypedDict):
    role: Role
    content: str


Chat = list[Message]


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def system(content: str) -> Message:
    return {"role": "system", "content": content}


def last_user_message(chat: Chat) -> str:
    """What the person said last; empty if nobody said anything."""
    return next((message["content"] for message in reversed(chat) if message["role"] == "user"), "")
