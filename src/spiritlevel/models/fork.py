"""The fork: one prompt and its continuations, and how forks are laid out for one forward pass.

A fork becomes one row `[prompt | y1 | y2 | ...]`. Position ids restart after the prompt for every
continuation and a tree attention mask hides the continuations from each other, so that each sees exactly
what it would see alone, while the prompt is computed once. The layout needs no KV cache and therefore
works under gradient checkpointing and FSDP. `benchmarks/fork_layouts.py` compares it with the shared
KV cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

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

    tokens, positions: [rows, length]; sees: [rows, length, length], row i may attend to column j.
    For each of the N scored tokens: `row` and `column` of the hidden state that predicts it, its id in
    `targets`, and `owner`, the number of its continuation counted through the whole batch.
    """

    tokens: Int[Tensor, "rows length"]
    positions: Int[Tensor, "rows length"]
    sees: Bool[Tensor, "rows length length"]
    row: Int[Tensor, " scored"]
    column: Int[Tensor, " scored"]
    targets: Int[Tensor, " scored"]
    owner: Int[Tensor, " scored"]
    continuations: int

    def to(self, device: torch.device) -> Layout:
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Layout(**tensors, continuations=self.continuations)


def lay_out(forks: Sequence[Fork], pad_token: int) -> Layout:
    """Lay forks out as rows, padded at the end to the longest. The padding is seen by nobody but itself."""
    length = -(-max(fork.length for fork in forks) // ROW_MULTIPLE) * ROW_MULTIPLE
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
        shared = len(fork.prompt)
        tokens[index, :shared] = torch.tensor(fork.prompt)
        positions[index, :shared] = torch.arange(shared)
        branch[index, :shared] = 0
        start = shared
        for k, continuation in enumerate(fork.continuations, start=1):
            end = start + len(continuation) - 1
            tokens[index, start:end] = torch.tensor(continuation[:-1], dtype=torch.long)
            positions[index, start:end] = torch.arange(shared, shared + end - start)
            branch[index, start:end] = k
            row += [index] * len(continuation)
            column += [shared - 1, *range(start, end)]
            targets += continuation
            owner += [number] * len(continuation)
            start, number = end, number + 1
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same_branch = branch[:, :, None] == branch[:, None, :]
    in_prompt = (branch == 0)[:, None, :]
    sees = causal & (same_branch | in_prompt)
    return Layout(
        tokens, positions, sees, torch.tensor(row), torch.tensor(column), torch.tensor(targets),
        torch.tensor(owner), number,
    )  # fmt: skip


def plan_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices grouped into micro-batches of similar length, longest first, each at most `token_budget`
    tokens including padding (a row longer than the budget goes alone)."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    for index in order:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= token_budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
