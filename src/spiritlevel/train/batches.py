"""Which examples each step sees: a pure function of seed and epoch, so a resumed run needs no saved order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Examples are shuffled, then sorted by length within groups of this many steps: little padding, enough chance.
STEPS_PER_GROUP = 16


def epoch_batches(lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Every index once, in batches of `batch_size` (the last may be smaller) of similar length, in random order."""
    random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    order = random.permutation(len(lengths)).tolist()
    group = batch_size * STEPS_PER_GROUP
    batches = []
    for start in range(0, len(order), group):
        members = sorted(order[start : start + group], key=lambda index: lengths[index])
        batches += [members[first : first + batch_size] for first in range(0, len(members), batch_size)]
    return [batches[place] for place in random.permutation(len(batches))]
