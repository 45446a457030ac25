"""From records to examples: forks, and what the reference says of them, once and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from accelerate import PartialState

from spiritlevel.chat import Chat
from spiritlevel.data import kinds_of
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import Fork, LocalModel, plan_batches, score_forks, verify_engine
from spiritlevel.store import ContentStore, compute_missing, digest_json
from spiritlevel.train.objective import Example, RecordObjective


def prepare_examples(
    model: LocalModel,
    objective: RecordObjective,
    records: Sequence[Any],
    *,
    store: ContentStore,
    token_budget: int = 4096,
    on_progress: Callable[[int], None] | None = None,
) -> list[Example]:
    """Forks of all records and, where the objective needs them, their reference log-probabilities.

    The reference is `model` as it is now: call this before it gets an adapter or is trained. Of several processes the
    first computes and the others read what it has kept.
    """
    with PartialState(cpu=model.device.type == "cpu").main_process_first():
        return _prepare(model, objective, records, store, token_budget, on_progress)


def _prepare(
    model: LocalModel,
    objective: RecordObjective,
    records: Sequence[Any],
    store: ContentStore,
    token_budget: int,
    on_progress: Callable[[int], None] | None,
) -> list[Example]:
    if strangers := [record for record in records if not isinstance(record, objective.reads)]:
        found = f"{len(strangers)} of {len(records)} records are {kinds_of([type(strangers[0])])}"
        raise SpiritLevelError(
            f"{objective.name} learns from {kinds_of(objective.reads)}, and {found}",
            remedy="Give records of its kind, or train these by another method.",
        )
    examples = objective.examples(records, model)
    model.check_context([example.fork.reach for example in examples], "examples")
    # The longest: what goes wrong with length, such as a sliding window, shows in no shorter one.
    verify_engine(model.model, max((e.fork for e in examples), key=lambda fork: fork.reach), pad_token=model.pad_token)
    asked = [example.question for example in examples if example.question is not None]
    keys = [digest_json(["reference", model.digest, fork.prompt, fork.continuations]) for fork in asked]

    def compute(indices: Sequence[int], done: Callable[[int, Any], None]) -> None:
        batch = [asked[index] for index in indices]
        sums = score_forks(model.model, batch, pad_token=model.pad_token, token_budget=token_budget)
        for index, values in zip(indices, sums, strict=True):
            done(index, values)

    batches = plan_batches([fork.length for fork in asked], token_budget)
    answers = iter(compute_missing(store, keys, batches, compute, on_progress))
    return [
        example if example.question is None else replace(example, reference=tuple(next(answers)))
        for example in examples
    ]


def verify_rollouts(model: LocalModel, chats: Sequence[Chat], *, max_new_tokens: int) -> None:
    """Verify the scoring engine on the longest prompt with replies as long as rollouts may become.

    Raises SpiritLevelError if it does not know the model's architecture, or if they exceed the model's context.
    """
    prompts = [model.prompt_tokens(chat) for chat in chats]
    model.check_room(prompts, max_new_tokens)
    yes, no = (model.reply_tokens(word) for word in ("Yes.", "No."))
    replies = (yes * max_new_tokens)[:max_new_tokens], no[:max_new_tokens]
    verify_engine(model.model, Fork(max(prompts, key=len), replies), pad_token=model.pad_token)
