"""A reward as a function: short sentences that end, as a person who is busy would want them."""

from __future__ import annotations

import re

from spiritlevel.chat import Chat

WORDS = 12


def plain(chat: Chat, reply: str) -> float:
    """Between 0 and 1: how near the mean sentence is to twelve words at most, halved if the last one is broken off."""
    sentences = [sentence.split() for sentence in re.split(r"[.!?]+", reply) if sentence.strip()]
    if not sentences:
        return 0.0
    mean = sum(map(len, sentences)) / len(sentences)
    shortness = min(1.0, WORDS / mean)
    return shortness if reply.rstrip().endswith((".", "!", "?")) else 0.5 * shortness
