"""Replies to many chats, kept: what was generated once is read from the store, also after a kill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from spiritlevel.chat import Chat
from spiritlevel.models.local import LocalModel
from spiritlevel.models.remote import RemoteModel
from spiritlevel.models.reply import Reply
from spiritlevel.store import ContentStore, compute_missing, digest_json


def answer_all(
    model: LocalModel | RemoteModel,
    chats: Sequence[Chat],
    *,
    store: ContentStore,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seeds: Sequence[int] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[Reply]:
    """One reply a chat, in order, generating only what `store` lacks.

    The key of a reply is the digest of the model, the chat and how it was sampled.
    """
    seeds = list(seeds) if seeds is not None else [0] * len(chats)
    settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    keys = [
        digest_json([model.digest, chat, settings, seed if temperature else None])
        for chat, seed in zip(chats, seeds, strict=True)
    ]

    def compute(indices: Sequence[int], done: Callable[[int, Any], None]) -> None:
        model.generate(
            [chats[index] for index in indices],
            seeds=[seeds[index] for index in indices],
            on_finish=lambda place, reply: done(indices[place], asdict(reply)),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
        )

    rows = compute_missing(store, keys, model.plan(chats), compute, on_progress)
    return [Reply(**row) for row in rows]
