"""Four layouts of the same preference pairs: plain rows, shared KV cache, and a tree mask with one pair or several in
a row, the latter with fused and with plain attention.

One DPO forward and backward pass over eight pairs of SmolLM2 with LoRA, bfloat16 where the CPU computes in it. The
plain layout repeats the prompt for each reply; the cache layout runs the prompts once and the replies against the
repeated cache; the last layout is the one Spirit Level uses, which computes what all prompts have in common at their
start once a row, or once for all rows. All must give the same loss.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from spiritlevel.models import PACKAGED, Fork, fork, lay_out, open_local, score_batch, scoring
from spiritlevel.store import installed_versions, machine
from spiritlevel.train import LoraSettings, add_lora

HERE = Path(__file__).parent


def make_forks(start: int, prompt: int, reply: int, pairs: int) -> list[Fork]:
    """Random tokens with log-normal lengths around the given ones (σ 0.4), after `start` tokens in common."""
    random = np.random.default_rng(0)
    common = tuple(random.integers(100, 40_000, start).tolist())

    def tokens(mean: int) -> tuple[int, ...]:
        length = max(2, round(mean * random.lognormal(0, 0.4)))
        return tuple(random.integers(100, 40_000, length).tolist())

    return [Fork(common + tokens(prompt), (tokens(reply), tokens(reply))) for _ in range(pairs)]


def tree(model: Any, forks: Sequence[Fork]) -> Tensor:
    return score_batch(model, forks, pad_token=0).sums()


def tree_fused(model: Any, forks: Sequence[Fork]) -> Tensor:
    """As `tree`, with PyTorch's fused attention whatever the length."""
    with patch.object(scoring, "PLAIN_ATTENTION_UP_TO", 0):
        return tree(model, forks)


def tree_alone(model: Any, forks: Sequence[Fork]) -> Tensor:
    """Every pair in a row of its own, with all of its prompt."""
    with patch.object(fork, "_pack", lambda lengths, _: list(range(len(lengths)))):
        return scoring.score_layout(model, lay_out(forks, 0, saves=None)).sums()


def plain(model: Any, forks: Sequence[Fork]) -> Tensor:
    return tree_alone(model, [Fork(pair.prompt, (reply,)) for pair in forks for reply in pair.continuations])


def shared_cache(model: Any, forks: Sequence[Fork]) -> Tensor:
    causal = model.get_base_model()
    trunk, head = causal.get_decoder(), causal.get_output_embeddings()
    width = max(len(fork.prompt) for fork in forks)
    prompts = torch.tensor([(0,) * (width - len(fork.prompt)) + fork.prompt for fork in forks])
    seen = torch.tensor([(0,) * (width - len(fork.prompt)) + (1,) * len(fork.prompt) for fork in forks])
    first = trunk(
        input_ids=prompts, attention_mask=seen, position_ids=(seen.cumsum(1) - 1).clamp(min=0), use_cache=True
    )
    cache = first.past_key_values
    cache.batch_repeat_interleave(2)
    replies = [reply for fork in forks for reply in fork.continuations]
    longest = max(len(reply) for reply in replies) - 1
    inputs = torch.tensor([reply[:-1] + (0,) * (longest - len(reply) + 1) for reply in replies])
    real = torch.tensor([(1,) * (len(reply) - 1) + (0,) * (longest - len(reply) + 1) for reply in replies])
    mask = torch.cat([seen.repeat_interleave(2, 0), real], 1)
    second = trunk(
        input_ids=inputs, attention_mask=mask, position_ids=(mask.cumsum(1) - 1)[:, width:], past_key_values=cache,
        use_cache=True,
    )  # fmt: skip
    hidden = torch.cat([first.last_hidden_state[:, -1:].repeat_interleave(2, 0), second.last_hidden_state], 1)
    row = torch.tensor([index for index, reply in enumerate(replies) for _ in reply])
    column = torch.tensor([place for reply in replies for place in range(len(reply))])
    targets = torch.tensor([token for reply in replies for token in reply])
    logprobs = scoring.token_logprobs(hidden[row, column], head.weight, None, targets)
    return logprobs.new_zeros(len(replies)).index_add(0, row, logprobs)


def seconds(layout: Callable[[Any, Sequence[Fork]], Tensor], model: Any, forks: Sequence[Fork]) -> tuple[float, float]:
    started = time.perf_counter()
    sums = layout(model, forks)
    loss = -torch.nn.functional.logsigmoid(0.01 * (sums[0::2] - sums[1::2])).mean()
    loss.backward()
    took = time.perf_counter() - started
    model.zero_grad()
    return took, float(loss.detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "fork_layouts.json")
    options = parser.parse_args()
    model = add_lora(open_local(PACKAGED), LoraSettings(), seed=0).model
    layouts = {
        "plain": plain, "shared cache": shared_cache, "a row each": tree_alone, "shared rows, fused": tree_fused,
        "shared rows": tree,
    }  # fmt: skip
    figures: dict[str, Any] = {}
    shapes = {"short prompt": (30, 15, 30), "long prompt": (30, 190, 60), "system prompt": (200, 30, 40)}
    for shape, (start, prompt, reply) in shapes.items():
        forks = make_forks(start, prompt, reply, 8)
        times: dict[str, list[float]] = {name: [] for name in layouts}
        losses = {}
        for _ in range(options.repeats + 1):
            for name, layout in layouts.items():
                took, losses[name] = seconds(layout, model, forks)
                times[name].append(took)
        medians = {name: sorted(values[1:])[options.repeats // 2] for name, values in times.items()}
        figures[shape] = {name: {"seconds": medians[name], "loss": losses[name]} for name in layouts}
        print(shape, {name: f"{value:.2f} s" for name, value in medians.items()})
        if max(losses.values()) - min(losses.values()) > 0.02:
            sys.exit(f"NOT CORRECT: the layouts disagree: {losses}")
    report = {
        "benchmark": "fork_layouts", "machine": machine(), "versions": installed_versions(), "figures": figures,
    }  # fmt: skip
    options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
