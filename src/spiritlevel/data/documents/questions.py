"""Questions and answers that a model finds in a chunk, kept only where the chunk bears the answer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from spiritlevel.chat import Chat, system, user
from spiritlevel.data.demonstration import Demonstration
from spiritlevel.data.documents.chunk import Chunk
from spiritlevel.data.overlap import words_of
from spiritlevel.models import ChatModel, Reply, answer_all
from spiritlevel.store import ContentStore

_TASK = """\
You turn a passage of a team's documents into questions and answers for new colleagues.
Write {pairs} questions that the passage answers. Answer each in the passage's own words, and add nothing to them.
Every question must make sense to somebody who has not seen the passage: name what it is about.
Write nothing but lines of this form:
Q: the question
A: the answer"""

_LINE = re.compile(r"(?P<side>[QA])(?: ?\d+)?[:.)]\s*(?P<words>.*)")
_POINTS = re.compile(r"\b(?:this|the|above) (?:passage|text|excerpt|paragraph|section|document)\b", re.IGNORECASE)
# Words that stand in any answer and bear nothing.
_OFTEN = """
a an and are as at be been but by can could did do does for from had has have he her his how i if in into is it its may
might must my of on or our shall she should so some such than that the their them then there these they this those to
was we were what when where which who why will with would yes you your
"""
_FUNCTION_WORDS = frozenset(_OFTEN.split())
_NEGATIONS = frozenset(("no", "not", "never", "dont", "cannot", "cant"))
_BORNE = 0.8


@dataclass(frozen=True)
class Found:
    """A question and its answer, as the model wrote them."""

    question: str
    answer: str


def ask_for_questions(
    model: ChatModel,
    chunks: Sequence[Chunk],
    *,
    store: ContentStore,
    pairs: int,
    max_new_tokens: int,
    on_progress: Callable[[int], None] | None = None,
) -> list[tuple[list[Demonstration], Counter[str]]]:
    """For each chunk: demonstrations, and why others of the model's were dropped.

    Replies are kept in `store`: a call that was killed goes on where it stopped.
    """
    chats = [_request(chunk, pairs) for chunk in chunks]
    replies = answer_all(model, chats, store=store, max_new_tokens=max_new_tokens, on_progress=on_progress)
    return [_demonstrations(chunk, reply, model) for chunk, reply in zip(chunks, replies, strict=True)]


def parse_pairs(reply: Reply) -> tuple[list[Found], Counter[str]]:
    """The pairs of a reply in the form that was asked for, and why others are none."""
    dropped: Counter[str] = Counter()
    sides: list[tuple[str, list[str]]] = []
    for line in reply.text.splitlines():
        if match := _LINE.match(line.strip()):
            sides.append((match["side"], [match["words"]]))
        elif sides:
            sides[-1][1].append(line)
    texts = [(side, "\n".join(lines).strip()) for side, lines in sides]
    pairs = []
    for (side, question), (following, answer) in pairwise([*texts, ("", "")]):
        if side == "Q" and following == "A" and question and answer:
            pairs.append(Found(question, answer))
        elif side == "Q":
            dropped["asked: a question without an answer"] += 1
    if pairs and not reply.finished and texts[-1][0] == "A":
        pairs.pop()
        dropped["asked: an answer cut at the token limit"] += 1
    if not sides:
        dropped["asked: a reply without questions"] += 1
    return pairs, dropped


def is_borne(answer: str, passage: str) -> bool:
    """Whether a passage bears an answer: at least 80 % of its content words stand there, and all of its numbers.

    It may deny something only if the passage does. A word counts in any of its plain forms. That the passage's words
    were put together wrongly is not seen.
    """
    words, stands = words_of(answer), set(words_of(passage))
    if any(word not in stands for word in words if word.isdecimal()):
        return False
    if _NEGATIONS & set(words) and not _NEGATIONS & stands:
        return False
    borne = _stems(passage)
    content = [_stem(word) for word in words if word not in _FUNCTION_WORDS | _NEGATIONS]
    return bool(content) and sum(word in borne for word in content) >= _BORNE * len(content)


def _stems(text: str) -> set[str]:
    return {_stem(word) for word in words_of(text) if word not in _FUNCTION_WORDS}


def _stem(word: str) -> str:
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending).removesuffix("e")
    return word.removesuffix("e") if len(word) > 3 else word


def _request(chunk: Chunk, pairs: int) -> Chat:
    about = " > ".join([chunk.document.title, *chunk.headings])
    return [system(_TASK.format(pairs=pairs)), user(f"The passage, from {about}:\n\n{chunk.text}")]


def _demonstrations(chunk: Chunk, reply: Reply, model: ChatModel) -> tuple[list[Demonstration], Counter[str]]:
    pairs, dropped = parse_pairs(reply)
    kept = []
    for found in pairs:
        if reason := _fault(found, chunk):
            dropped[f"asked: {reason}"] += 1
        else:
            kept.append(_demonstration(found, chunk, model))
    return kept, dropped


def _fault(found: Found, chunk: Chunk) -> str:
    """Why a pair is not to be learnt; empty if nothing is wrong with it."""
    passage = " ".join([chunk.document.title, *chunk.headings, chunk.text])
    if _POINTS.search(found.question) or _POINTS.search(found.answer):
        return "it speaks of the passage, which nobody will see"
    if not _stems(found.question) & _stems(passage):
        return "its question is about something else"
    return "" if is_borne(found.answer, passage) else "the chunk does not bear the answer"


def _demonstration(found: Found, chunk: Chunk, model: ChatModel) -> Demonstration:
    place = chunk.provenance()
    return Demonstration.of(
        found.question,
        found.answer,
        source="sampled",
        author=model.name,
        why=f"asked by {model.name}: {place['heading'] or chunk.document.title}",
        provenance=place | {"kind": "asked", "model": model.digest},
    )
