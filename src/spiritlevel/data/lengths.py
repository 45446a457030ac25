"""How long rows are, in tokens as TRL's trainers see them, or in words where no model is named.

Tokens lie as TRL 1.16's DPOTrainer lays out conversations: the prompt with its generation prompt, the whole
conversation, and the reply is what follows the tokens that both have in common. Of a prompt and reply in plain text a
conversation is made, as Spirit Level's own trainer does; TRL would train on them without the template, as all do on
text without a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from spiritlevel.chat import assistant
from spiritlevel.data.chat_template import end_of_turn
from spiritlevel.data.trl import TrlRow
from spiritlevel.data.words import count_words
from spiritlevel.models.fork import shared_start


@dataclass(frozen=True)
class Laid:
    """One reply as tokens. prompt: tokens before it; reply: its own; end: the place, in the whole sequence, of the
    token that ends the assistant's turn, None if there is none; whole_prompt: the prompt's tokens as they would be at
    run time all stand before the reply."""

    prompt: int
    reply: int
    end: int | None
    whole_prompt: bool

    @property
    def length(self) -> int:
        return self.prompt + self.reply

    def loses_end(self, max_length: int) -> bool:
        """Whether cutting the sequence after `max_length` tokens takes its end token away."""
        return self.end is not None and self.end >= max_length


@dataclass(frozen=True)
class Lengths:
    """Of one row, in tokens or words: its prompt and its replies; laid: the replies as they lie as tokens, empty
    without a tokenizer."""

    row: TrlRow
    prompt: int
    replies: Mapping[str, int]
    laid: Mapping[str, Laid]

    @property
    def whole(self) -> int:
        """The prompt with the longer reply."""
        return self.prompt + max(self.replies.values())


def measure_by(tokenizer: Any) -> Callable[[TrlRow], Lengths]:
    """The function that measures rows in the tokens of `tokenizer`, or in words if it is None.

    It raises ValueError with the template's words for a conversation that this does not render.
    """
    if tokenizer is None:
        return _in_words
    end_token = end_of_turn(tokenizer)
    return lambda row: _in_tokens(row, lay_out(row, tokenizer, end_token))


def _in_words(row: TrlRow) -> Lengths:
    prompt = sum(count_words(message["content"]) for message in row.prompt)
    return Lengths(row, prompt, {name: count_words(reply) for name, reply in row.replies.items()}, {})


def _in_tokens(row: TrlRow, laid: Mapping[str, Laid]) -> Lengths:
    prompt = next(iter(laid.values())).prompt
    return Lengths(row, prompt, {name: reply.reply for name, reply in laid.items()}, laid)


def lay_out(row: TrlRow, tokenizer: Any, end_token: int | None) -> dict[str, Laid]:
    """The replies of a row as TRL lays them out, by `chosen` and `rejected`.

    Raises ValueError with the template's words if it does not render such a conversation.
    """
    replies = row.replies
    if tokenizer.chat_template is None or not row.prompt:
        prompt = tokenizer("\n".join(message["content"] for message in row.prompt))["input_ids"]
        ends = [] if end_token is None else [end_token]
        tails = [tokenizer(reply, add_special_tokens=False)["input_ids"] + ends for reply in replies.values()]
        full = [prompt + tail for tail in tails]
    else:
        try:
            prompt = tokenizer.apply_chat_template(row.prompt, add_generation_prompt=True, return_dict=False)
            full = [
                tokenizer.apply_chat_template([*row.prompt, assistant(reply)], return_dict=False)
                for reply in replies.values()
            ]
        except TemplateError as error:
            raise ValueError(str(error)) from None
    shared = shared_start([prompt, *full])
    return {
        name: Laid(shared, len(tokens) - shared, _last(tokens, end_token, shared), shared == len(prompt))
        for name, tokens in zip(replies, full, strict=True)
    }


def _last(tokens: Sequence[int], token: int | None, start: int) -> int | None:
    """The last place of `token` from `start` on."""
    return next((place for place in range(len(tokens) - 1, start - 1, -1) if tokens[place] == token), None)
