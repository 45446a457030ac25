"""The fork: one prompt and its continuations, and how forks are laid out for one forward pass.

A fork becomes `[prompt | y1 | y2 | ...]`. Position ids restart after the prompt for every continuation and a tree
attention mask hides the continuations from each other, so that each sees exactly what it would see alone, while the
prompt is computed once. Short forks stand together in one row, hidden from each other in the same way, after what all
prompts of the batch have in common at their start (a chat template's head, a system prompt, few-shot examples): little
padding, and the common start once a row. A long start is computed once for all rows, by way of a KV cache; that does
not work under gradient checkpointing, where it stays in the rows. `benchmarks/fork_layouts.py` compares the layouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

# A common start is worth a forward pass of its own when it saves at least this many tokens in the rows.
SHARED_SAVES = 128
# Forks share a row up to this many tokens: a longer one has less padding, but attention grows with its square.
ROW_TOKENS = 256
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
        """Tokens it takes in a row. A continuation's last token predicts nothing, so it takes no place."""
        return len(self.prompt) + sum(len(continuation) - 1 for continuation in self.continuations)

    @property
    def reach(self) -> int:
        """Tokens of the prompt and its longest continuation: how much of the model's context it takes."""
        return len(self.prompt) + max(map(len, self.continuations))

    @property
    def scored(self) -> int:
        """Tokens that get a log-probability."""
        return sum(map(len, self.continuations))


@dataclass(frozen=True)
class Layout:
    """Padded rows of forks, and where each scored token is predicted.

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
    """Lay forks out in rows, padded at the end to the longest. The padding is seen by nobody but itself.

    saves: how many tokens the common start must save to be laid out apart, before all rows; None: it never is.
    """
    # The last token of a prompt belongs to its fork: it predicts the reply.
    common = forks[0].prompt[: shared_start([fork.prompt[:-1] for fork in forks])]
    lengths = [fork.length - len(common) for fork in forks]
    row_of = _pack(lengths, ROW_TOKENS)
    apart = saves is not None and len(common) * max(row_of) >= saves
    if not apart:
        row_of = _pack(lengths, max(ROW_TOKENS - len(common), len(common)))
    rows = [_Row() for _ in range(max(row_of) + 1)]
    for line in rows if not apart else ():
        line.write(common, at=0, fork=_SEEN_BY_ALL)
    row: list[int] = []
    column: list[int] = []
    targets: list[int] = []
    owner: list[int] = []
    number = 0
    for index, (fork, place) in enumerate(zip(forks, row_of, strict=True)):
        line = rows[place]
        line.write(fork.prompt[len(common) :], at=len(common), fork=index)
        prompt_end = len(line.tokens) - 1
        for branch, continuation in enumerate(fork.continuations, start=1):
            start = len(line.tokens)
            line.write(continuation[:-1], at=len(fork.prompt), fork=index, branch=branch)
            row += [place] * len(continuation)
            column += [prompt_end, *range(start, len(line.tokens))]
            targets += continuation
            owner += [number] * len(continuation)
            number += 1
    length = _padded(max(len(line.tokens) for line in rows))
    for line in rows:
        line.write((pad_token,) * (length - len(line.tokens)), at=0, fork=_PADDING)
    whose = torch.tensor([line.forks for line in rows])
    branches = torch.tensor([line.branches for line in rows])
    past = torch.ones(length, length, dtype=torch.bool).tril()
    same_fork = whose[:, :, None] == whose[:, None, :]
    same_branch = branches[:, :, None] == branches[:, None, :]
    in_common, in_prompt = (whose == _SEEN_BY_ALL)[:, None, :], (branches == 0)[:, None, :]
    in_row = past & (in_common | same_fork & (in_prompt | same_branch))
    shared = common if apart else ()
    return Layout(
        start=torch.tensor(shared, dtype=torch.long),
        tokens=torch.tensor([line.tokens for line in rows]),
        positions=torch.tensor([line.positions for line in rows]),
        sees=torch.cat([in_row.new_ones(len(rows), length, len(shared)), in_row], dim=2),
        row=torch.tensor(row),
        column=torch.tensor(column),
        targets=torch.tensor(targets),
        owner=torch.tensor(owner),
        continuations=number,
    )


# Whose a token is that belongs to no fork.
_SEEN_BY_ALL, _PADDING = -1, -2


@dataclass
class _Row:
    """One row as it is written: for each token its position, its fork and its branch, 0 for the prompt."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    forks: list[int] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)

    def write(self, tokens: Sequence[int], *, at: int, fork: int, branch: int = 0) -> None:
        self.tokens += tokens
        self.positions += range(at, at + len(tokens))
        self.forks += [fork] * len(tokens)
        self.branches += [branch] * len(tokens)


def _pack(lengths: Sequence[int], capacity: int) -> list[int]:
    """The row of each length: as few rows as hold `capacity` (or the longest alone), filled evenly, longest first."""
    capacity = max(capacity, *lengths)
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for count in range(-(-sum(lengths) // capacity), len(lengths) + 1):
        loads = [0] * count
        row_of = [0] * len(lengths)
        for index in order:
            row_of[index] = loads.index(min(loads))
            loads[row_of[index]] += lengths[index]
        if max(loads) <= capacity:
            return row_of
    raise AssertionError("a row each always fits")


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
