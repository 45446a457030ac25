"""The fork: one prompt and its continuations, and how forks are laid out for one forward pass.

A fork becomes one row `[prompt | y1 | y2 | ...]`. Position ids restart after the prompt for every
continuation and a tree attention mask hides the continuations from each other, so that each sees exactly
what it would see alone, while the prompt is computed once. What all prompts of a batch have in common at their
start (a system prompt, few-shot examples) is laid out before the rows and computed once for all of them.
A row needs no KV cache and therefore works under gradient checkpointing; a common start needs one, and is left in
the rows there. `benchmarks/fork_layouts.py` compares rows with a KV cache for each continuation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

# A common start is worth a forward pass of its own when it saves at least this many tokens in the rows.
SHARED_SAVES = 128
# Rows are padded to a multiple of this: fewer different shapes, for each of which oneDNN compiles and keeps a kernel.
ROW_MULTIPLE = 16


@dataclass(frozen=True)
class Fork:
    """Token ids of one prompt and of each continuation. All must be non-empty."""

    prompt: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.prompt or not self.continuations or not all(self.continuations):
            raise ValueError("a fork needs a prompt and at least one continuation, none of them empty")

    @property
    def length(self) -> int:
        """Tokens in its row. A continuation's last token predicts nothing, so it takes no place."""
        return len(self.prompt) + sum(len(continuation) - 1 for continuation in self.continuations)

    @property
    def scored(self) -> int:
        """Tokens that get a log-probability."""
        return sum(map(len, self.continuations))


@dataclass(frozen=True)
class Layout:
    """A padded batch of rows, and where each scored token is predicted.

    start: [shared], the tokens that come before every row, possibly none; tokens, positions: [rows, length]; sees:
    [rows, length, shared + length], token i of a row may attend to j of the start and the row. For each of the N scored
    tokens: `row` and `column` of the hidden state that predicts it, its id in `targets`, and `owner`, the number of
    its continuation counted through the whole batch.
    """

    start: Int[Tensor, " shared"]
    tokens: Int[Tensor, "rows length"]
    positions: Int[Tensor, "rows length"]
    sees: Bool[Tensor, "rows length shared+length"]
    row: Int[Tensor, " scored"]
    column: Int[Tensor, " scored"]
    targets: Int[Tensor, " scored"]
    owner: Int[Tensor, " scored"]
    continuations: int

    def to(self, device: torch.device) -> Layout:
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Layout(**tensors, continuations=self.continuations)


def lay_out(forks: Sequence[Fork], pad_token: int, *, saves: int | None = SHARED_SAVES) -> Layout:
    """Lay forks out as rows, padded at the end to the longest. The padding is seen by nobody but itself.

    saves: how many tokens a common start must save to be laid out apart; None: it never is.
    """
    # The last token of a prompt stays in its row: it predicts the reply.
    common = shared_start([fork.prompt[:-1] for fork in forks])
    if saves is None or common * (len(forks) - 1) < saves:
        common = 0
    length = _padded(max(fork.length for fork in forks) - common)
    tokens = torch.full((len(forks), length), pad_token)
    positions = torch.zeros((len(forks), length), dtype=torch.long)
    # Branch 0 is the prompt, k the k-th continuation, -1 padding.
    branch = torch.full((len(forks), length), -1)
    row: list[int] = []
    column: list[int] = []
    targets: list[int] = []
    owner: list[int] = []
    number = 0
    for index, fork in enumerate(forks):
        prompt = fork.prompt[common:]
        start = len(prompt)
        tokens[index, :start] = torch.tensor(prompt)
        positions[index, :start] = torch.arange(common, len(fork.prompt))
        branch[index, :start] = 0
        for k, continuation in enumerate(fork.continuations, start=1):
            end = start + len(continuation) - 1
            tokens[index, start:end] = torch.tensor(continuation[:-1], dtype=torch.long)
            positions[index, start:end] = torch.arange(len(fork.prompt), len(fork.prompt) + end - start)
            branch[index, start:end] = k
            row += [index] * len(continuation)
            column += [len(prompt) - 1, *range(start, end)]
            targets += continuation
            owner += [number] * len(continuation)
            start, number = end, number + 1
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same_branch = branch[:, :, None] == branch[:, None, :]
    in_prompt = (branch == 0)[:, None, :]
    in_row = causal & (same_branch | in_prompt)
    return Layout(
        start=torch.tensor(forks[0].prompt[:common], dtype=torch.long),
        tokens=tokens,
        positions=positions,
        sees=torch.cat([in_row.new_ones(len(forks), length, common), in_row], dim=2),
        row=torch.tensor(row),
        column=torch.tensor(column),
        targets=torch.tensor(targets),
        owner=torch.tensor(owner),
        continuations=number,
    )


def _padded(length: int) -> int:
    return -(-length // ROW_MULTIPLE) * ROW_MULTIPLE


def shared_start(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences have in common at their start."""
    first, last = min(map(tuple, sequences)), max(map(tuple, sequences))  # all others lie between these two
    differs = (place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return next(differs, min(len(first), len(last)))


def plan_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices grouped into micro-batches of similar length, longest first, each at most `token_budget`
    tokens including padding (a row longer than the budget goes alone)."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    for index in order:
        if batches and _padded(lengths[batches[-1][0]]) * (len(batches[-1]) + 1) <= token_budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
