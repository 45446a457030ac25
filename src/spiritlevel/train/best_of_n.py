"""Best of n: the cheapest way to a higher reward, and the yardstick of the others. Nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb, log

import numpy as np

from spiritlevel.chat import Chat
from spiritlevel.data import Demonstration, Preference
from spiritlevel.errors import check_setting
from spiritlevel.models import Fork, InProcess, LocalModel, Sampling
from spiritlevel.train.rewards import Answered, RewardSource


def best_of_n_kl(n: int) -> float:
    """An upper bound of KL(best of n ‖ π) in nats, log n − (n − 1)/n (Stiennon et al. 2020, arXiv:2009.01325; that it
    is a bound: Beirami et al. 2024, arXiv:2401.01879)."""
    check_setting("n", n, n >= 1, "at least 1")
    return log(n) - (n - 1) / n


def best_of_n_value(rewards: Sequence[float], values: Sequence[float], n: int) -> float:
    """An unbiased estimate of the mean value of the best of n by reward, from N ≥ n samples of one prompt.

    Over all subsets of n at once: the sample of rank i (from 1, ascending) is the best of C(i−1, n−1) of the C(N, n)
    (Nakano et al. 2021, arXiv:2112.09332, appendix). Samples of equal reward share what their ranks get, as if ties
    were broken at random. With values = rewards it is the mean best reward.
    """
    count = len(rewards)
    check_setting("n", n, 1 <= n <= count, f"from 1 to the number of samples, {count}")
    ranked = sorted(range(count), key=lambda index: rewards[index])
    weights = [comb(rank, n - 1) / comb(count, n) for rank in range(count)]
    shares: dict[float, list[int]] = {}
    for rank, index in enumerate(ranked):
        shares.setdefault(rewards[index], []).append(rank)
    return sum(
        sum(weights[rank] for rank in ranks) * sum(values[ranked[rank]] for rank in ranks) / len(ranks)
        for ranks in shares.values()
    )


def draw_rewarded(
    model: LocalModel,
    chats: Sequence[Chat],
    reward: RewardSource,
    sampling: Sampling,
    *,
    samples: int,
    seed: int,
    on_progress: Callable[[int], None] | None = None,
) -> list[list[tuple[Answered, float]]]:
    """For each chat `samples` replies with their rewards, the best first (of equal ones, the one drawn first)."""
    prompts = [model.prompt_tokens(chat) for chat in chats]
    seeds = np.random.SeedSequence(seed).generate_state(len(chats) * samples, np.uint64).reshape(len(chats), -1)
    rollouts = InProcess(model).generate(prompts, sampling, seeds=seeds.tolist(), on_progress=on_progress)
    answered = [
        Answered(chat, model.reply_text(rollout.tokens), Fork(prompt, (rollout.tokens,)), rollout.finished)
        for chat, prompt, drawn in zip(chats, prompts, rollouts, strict=True)
        for rollout in drawn
    ]
    rewarded = list(zip(answered, reward(answered), strict=True))
    of_each = [rewarded[first : first + samples] for first in range(0, len(rewarded), samples)]
    return [sorted(of_one, key=lambda pair: -pair[1]) for of_one in of_each]


def best_records(
    drawn: Sequence[Sequence[tuple[Answered, float]]],
    *,
    pairs: bool = False,
    at_least: float | None = None,
    author: str,
    reward: str,
) -> list[Demonstration] | list[Preference]:
    """What `draw_rewarded` found as records to train on: the best reply of each prompt, or (best > worst).

    A prompt whose best reply is empty or does not reach `at_least` gives none, nor, for a pair, one whose replies are
    the same text or have the same reward. provenance: the rewards and their source.
    """
    told = {"author": author, "source": "sampled"}
    demonstrations: list[Demonstration] = []
    preferences: list[Preference] = []
    for replies in drawn:
        (best, high), (worst, low) = replies[0], replies[-1]
        if not best.reply or (at_least is not None and high < at_least):
            continue
        provenance = {"reward": reward, "of": len(replies), "best": high, "worst": low}
        if not pairs:
            demonstrations.append(
                Demonstration.of(best.chat, best.reply, finished=best.finished, provenance=provenance, **told)
            )
        elif worst.reply and worst.reply != best.reply and high > low:
            row = {"prompt": best.chat, "chosen": best.reply, "rejected": worst.reply, "provenance": provenance}
            ends = {"chosen_finished": best.finished, "rejected_finished": worst.finished}
            preferences.append(Preference.model_validate(row | ends | told))
    return preferences if pairs else demonstrations
