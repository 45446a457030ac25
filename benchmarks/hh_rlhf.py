"""Pairs of HH-RLHF (Bai et al. 2022, arXiv:2204.05862) as TRL's conversational columns."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

DEFAULT_DATA = Path(__file__).parents[2] / "shared" / "data" / "hh_rlhf" / "harmless-base.test.jsonl.gz"


def read_pairs(path: Path, count: int, characters: int) -> list[dict[str, Any]]:
    """The first `count` pairs whose prompt and replies together are at most `characters` long."""
    pairs = list(islice(read_all_pairs(path, characters), count))
    return pairs if len(pairs) == count else sys.exit(f"{path} has only {len(pairs)} usable pairs")


def read_all_pairs(path: Path, characters: int) -> Iterator[dict[str, Any]]:
    if not path.exists():
        sys.exit(f"{path} is absent: name a file in HH-RLHF's format with --data")
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            prompt, _, chosen = row["chosen"].rpartition("\n\nAssistant:")
            other, _, rejected = row["rejected"].rpartition("\n\nAssistant:")
            usable = prompt == other and chosen.strip() and rejected.strip() and chosen != rejected
            if usable and len(row["chosen"]) + len(rejected) <= characters:
                yield {"prompt": chat(prompt), "chosen": reply(chosen), "rejected": reply(rejected)}


def chat(text: str) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = []
    for turn in text.split("\n\n"):
        for speaker, role in (("Human: ", "user"), ("Assistant: ", "assistant")):
            if turn.startswith(speaker):
                messages.append({"role": role, "content": turn.removeprefix(speaker)})
                break
        else:
            if messages:
                messages[-1]["content"] += "\n\n" + turn
    return messages


def reply(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text.strip()}]
