"""Which examples each step sees: a pure function of seed and epoch, so a resumed run needs no saved order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def epoch_batches(kinds: Sequence[str], batch_size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Every index once, in random order, in batches of `batch_size` (the last may be smaller).

    kinds: of each example. Each kind is spread evenly over the epoch (systematic sampling), so that every batch has
    about its share of each. Between chance batches the shares swing, and with them what the model does where both
    help and a refusal are near.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    place = np.empty(len(kinds))
    of_kind: dict[str, list[int]] = {}
    for index, kind in enumerate(kinds):
        of_kind.setdefault(kind, []).append(index)
    for members in of_kind.values():
        place[random.permutation(members)] = (np.arange(len(members)) + random.random()) / len(members)
    order = np.argsort(place, kind="stable").tolist()
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
