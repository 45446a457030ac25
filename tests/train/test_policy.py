"""Learning from rollouts: each detail of PPO that is known to go wrong has a test, GRPO and RLOO their laws.

The list is that of "The N+ Implementation Details of RLHF with PPO" (Huang et al. 2024, arXiv:2403.17031) and of the
bugs that were found since.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spiritlevel.chat import user
from spiritlevel.data import Preference
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import (
    Fork,
    ForkScores,
    InProcess,
    LocalModel,
    RewardModel,
    Rollout,
    Sampling,
    decode,
    open_local,
)
from spiritlevel.train import (
    GRPO,
    PPO,
    RLOO,
    ActorCritic,
    Answered,
    LoraSettings,
    OnlineConfig,
    Reward,
    SharedReward,
    TrainConfig,
    Window,
    add_lora,
    function_reward,
    load_function,
    memory,
    model_reward,
    policy_alone,
    save_trained,
    train,
    train_online,
    using_adapter,
)
from spiritlevel.train.actor_critic import VALUE, ActorCriticScores
from spiritlevel.train.advantages import (
    generalised_advantages,
    group_advantages,
    leave_one_out_advantages,
    token_rewards,
    whiten,
)
from spiritlevel.train.objectives.policy import Batch, Experience, log_ratio_kl
from spiritlevel.train.objectives.ppo import clipped_value_loss
from spiritlevel.train.online import gather
from spiritlevel.train.step import Stepper
from tiny import build_model, save_model

CHATS = [[user("hello")], [user("the user in")], [user("on a and on")], [user("the")]]
ONLINE = OnlineConfig(iterations=2, prompts=4, samples=3, max_new_tokens=6)
CONFIG = TrainConfig(learning_rate=5e-3, epochs=2, batch_size=2, token_budget=120, save_seconds=0)
SETTINGS = LoraSettings(4, 8)
FORK = Fork((1, 2, 3), ((4, 5), (6,)))


def policy(*, seed: int = 0, dtype: torch.dtype = torch.float64) -> LocalModel:
    return add_lora(build_model(seed=seed, dtype=dtype), SETTINGS, seed=7)


def actor_critic(*, seed: int = 0, dtype: torch.dtype = torch.float64) -> ActorCritic:
    return ActorCritic.on(policy(seed=seed, dtype=dtype), SETTINGS, seed=8)


def vowels(chat: Any, reply: str) -> float:
    return float(sum(reply.count(letter) for letter in "aeiou"))


REWARD = function_reward(vowels, name="vowels")


def experience(
    model: LocalModel, objective: Any, online: OnlineConfig = ONLINE, reward: Any = REWARD
) -> tuple[list[Experience], dict[str, float], list[list[Rollout]]]:
    prompts = [model.prompt_tokens(chat) for chat in CHATS]
    seeds = [[10 * row + column for column in range(online.samples)] for row in range(len(CHATS))]
    rollouts = InProcess(model).generate(prompts, online.sampling, seeds=seeds)
    found, told = gather(model, objective, CHATS, prompts, rollouts, reward, online, [])
    return found, told, rollouts


def share(chat: Any, reply: str) -> float:
    """Of characters that are plain letters."""
    return sum(letter.isascii() and letter.isalpha() for letter in reply) / max(1, len(reply))


def rows(*values: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Padded rows with nonsense in the padding, and their mask."""
    width = max(map(len, values))
    padded = torch.tensor([[*row, *[77.0] * (width - len(row))] for row in values], dtype=torch.float64)
    return padded, torch.tensor([[place < len(row) for place in range(width)] for row in values])


number = st.floats(-10, 10)
ragged = st.lists(st.lists(number, min_size=1, max_size=6), min_size=1, max_size=5)


# --- the nineteen details ----------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_01_the_temperature_divides_logits_when_drawing_and_when_scoring(temperature: float) -> None:
    model = actor_critic()
    online = replace(ONLINE, temperature=temperature)
    found, _, _ = experience(model, PPO(), online)
    model.temperature = temperature
    scores = model.score([one.fork for one in found])
    _, metrics = PPO().loss(scores, found, Window.over(found))
    assert float(metrics["ratio"]) == pytest.approx(1, abs=1e-5)
    assert float((scores.logprobs.detach() - torch.cat([one.logprobs for one in found])).abs().max()) < 1e-5


def test_02_nothing_is_dropped_out(tmp_path: Path) -> None:
    model = policy()
    for layer in model.model.get_base_model().model.layers:
        layer.self_attn.attention_dropout = 0.5
    modes = []
    score = LocalModel.score

    class Watched(LocalModel):
        def score(self, forks: Sequence[Fork]) -> ForkScores:
            modes.append(self.model.training)
            return score(self, forks)

    watched = Watched(model.model, model.tokenizer, name="watched")
    history = train_online(watched, RLOO(), CHATS, REWARD, replace(ONLINE, iterations=1), CONFIG, tmp_path)
    assert modes and not any(modes)
    assert history[0]["ratio"] == pytest.approx(1, abs=1e-5)


def test_03_a_padded_query_is_drawn_and_scored_as_if_alone() -> None:
    model = policy()
    prompts = [model.prompt_tokens(chat) for chat in CHATS]
    assert len({len(prompt) for prompt in prompts}) > 2
    together = InProcess(model).generate(prompts, ONLINE.sampling, seeds=[[n] for n in range(4)])
    for number_, prompt in enumerate(prompts):
        [[alone]] = InProcess(model).generate([prompt], ONLINE.sampling, seeds=[[number_]])
        [found] = together[number_]
        assert found.tokens == alone.tokens
        assert found.logprobs == pytest.approx(alone.logprobs, abs=1e-6)


def test_04_replies_are_drawn_from_the_whole_distribution() -> None:
    assert ONLINE.sampling == Sampling(6, 1.0, 1.0)
    model = policy()
    prompt = model.prompt_tokens(CHATS[0])
    drawn = InProcess(model, rows=500).generate([prompt], Sampling(1, 1.0), seeds=[list(range(3000))])[0]
    with torch.no_grad():
        probabilities = model.model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)
    counts = torch.bincount(torch.tensor([one.tokens[0] for one in drawn]), minlength=len(probabilities))
    likely = probabilities * 3000 > 5
    expected = probabilities[likely] * 3000
    chi = float(((counts[likely] - expected) ** 2 / expected).sum())
    assert chi < float(likely.sum()) + 5 * (2 * float(likely.sum())) ** 0.5
    assert counts[~likely].sum() > 0, "rare tokens are drawn too"


def test_05_the_reference_sees_what_the_policy_sees() -> None:
    model = policy()
    found, told, _ = experience(model, RLOO())
    assert told["kl"] == pytest.approx(0, abs=1e-5), "a fresh adapter changes nothing"
    for one in found:
        with using_adapter(model.model, None):
            [alone] = model.token_logprobs([one.fork])
        assert one.reference_logprobs.tolist() == pytest.approx(alone, abs=1e-9)


def test_06_the_score_stands_at_the_last_real_token() -> None:
    kl, mask = rows([1.0, 2.0, 3.0], [4.0])
    found = token_rewards(torch.tensor([10.0, 20.0], dtype=torch.float64), kl, mask, kl_coefficient=0.5)
    assert found.tolist() == [[-0.5, -1.0, -1.5 + 10], [-2.0 + 20, 0, 0]]


def test_07_a_reply_ends_at_its_first_stop_token_and_one_without_gets_its_penalty() -> None:
    model = policy()
    online = replace(ONLINE, max_new_tokens=40, unfinished_reward=-1.0)
    asked: list[Answered] = []

    def watch(answered: Sequence[Answered]) -> list[float]:
        asked.extend(answered)
        return [5.0] * len(answered)

    _, told, rollouts = experience(model, RLOO(), online, watch)
    flat = [rollout for drawn in rollouts for rollout in drawn]
    assert 0 < told["finished"] < 1
    for rollout in flat:
        stops = [token in model.stop_tokens for token in rollout.tokens]
        assert not any(stops[:-1])
        assert stops[-1] == rollout.finished
        assert rollout.finished or len(rollout.tokens) == 40
    assert told["reward"] == pytest.approx(5 * told["finished"] - (1 - told["finished"]))
    assert all("<|im_end|>" not in one.reply for one in asked)


def test_08_padding_is_never_read_even_where_it_is_the_end_token() -> None:
    model = policy()
    found, _, _ = experience(model, RLOO())
    forks = [one.fork for one in found]
    scored = []
    for pad in (model.end_token, 5, 77):
        model.__dict__["pad_token"] = pad
        scored.append(model.token_logprobs(forks, token_budget=10_000))
    assert scored[0] == scored[1] == scored[2]


@given(ragged, st.booleans())
def test_09_whitening_keeps_the_mean_of_rewards_and_takes_that_of_advantages(
    values: list[list[float]], keep: bool
) -> None:
    padded, mask = rows(*values)
    found = whiten(padded, mask, keep_mean=keep)[mask]
    if len(found) < 2 or float(padded[mask].std()) < 1e-3:
        return
    assert float(found.mean()) == pytest.approx(float(padded[mask].mean()) if keep else 0, abs=1e-6)
    assert float(found.var(correction=0)) == pytest.approx(1, abs=1e-2)


@given(ragged, st.floats(0.5, 1), st.floats(0, 1))
def test_10_advantages_on_padded_rows_are_those_of_rows_alone_and_of_the_definition(
    values: list[list[float]], discount: float, decay: float
) -> None:
    padded, mask = rows(*values)
    rewards = torch.where(mask, padded.flip(0).flip(1) % 3, 77.0)
    found, returns = generalised_advantages(rewards, padded, mask, discount=discount, decay=decay)
    for row, value in enumerate(values):
        length = len(value)
        reward = rewards[row, :length].tolist()
        following = [*value[1:], 0.0]
        deltas = [reward[t] + discount * following[t] - value[t] for t in range(length)]
        for t in range(length):
            expected = sum((discount * decay) ** (s - t) * deltas[s] for s in range(t, length))
            assert float(found[row, t]) == pytest.approx(expected, abs=1e-9)
            assert float(returns[row, t]) == pytest.approx(expected + value[t], abs=1e-9)
        assert not found[row, length:].any() and not returns[row, length:].any()


def test_11_returns_are_of_advantages_before_they_are_whitened() -> None:
    scores = torch.tensor([3.0, -1.0], dtype=torch.float64)
    values, mask = rows([0.1, 0.2, 0.3], [0.4])
    zero = torch.zeros_like(values)
    batch = Batch(scores, torch.tensor([0, 1]), mask, zero, zero, torch.where(mask, values, 0.0))
    found = PPO(discount=1.0, decay=1.0, kl_coefficient=0.0).advantages(batch, [])
    assert found.returns[mask].tolist() == pytest.approx([3.0, 3.0, 3.0, -1.0])
    assert float(found.advantages[mask].mean()) == pytest.approx(0, abs=1e-9)


def test_12_values_are_clipped_around_the_old_values() -> None:
    one = torch.ones(1, dtype=torch.float64)
    # The new value is far above the old one and nearer to the return: the clipped term is larger, and pulls nothing.
    assert float(clipped_value_loss(one * 5, one * 1, one * 6, clip=0.2)) == pytest.approx(0.5 * (1.2 - 6) ** 2)
    # It moved away from the return: the unclipped term is the larger, and pulls back.
    assert float(clipped_value_loss(one * -5, one * 1, one * 6, clip=0.2)) == pytest.approx(0.5 * 11**2)
    assert float(clipped_value_loss(one * 1.1, one * 1, one * 6, clip=0.2)) == pytest.approx(0.5 * 4.9**2)


def test_13_the_value_head_begins_at_zero_and_the_critic_leaves_the_policy_alone() -> None:
    plain, critic = policy(), actor_critic()
    forks = [Fork((1, 2, 3), ((4, 5), (6,))), Fork((7,), ((8, 9),))]
    assert torch.equal(plain.score(forks).logprobs, critic.score(forks).logprobs)
    assert not critic.score(forks).values.any()


def test_14_adams_epsilon_is_that_of_the_papers_code(tmp_path: Path) -> None:
    stepper = Stepper(actor_critic(), PPO(), CONFIG, 1)
    assert {group["eps"] for group in stepper.optimizer.adam.param_groups} == {1e-5}
    assert {group["eps"] for group in Stepper(policy(), RLOO(), CONFIG, 1).optimizer.adam.param_groups} == {1e-8}


def test_15_the_learning_rate_falls_to_zero_over_all_iterations(tmp_path: Path) -> None:
    config = replace(CONFIG, warmup=0.0)
    history = train_online(policy(), RLOO(), CHATS, REWARD, ONLINE, config, tmp_path)
    steps = len(history)
    assert steps == ONLINE.iterations * CONFIG.epochs * 2
    expected = [5e-3 * (1 - n / steps) for n in range(steps)]
    assert [row["learning_rate"] for row in history] == pytest.approx(expected)


def test_16_every_epoch_has_an_order_of_its_own_and_every_batch_is_one_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[tuple[int, ...]]] = []
    step = Stepper.step

    def watch(self: Stepper, number_: int, batch: Sequence[Any]) -> dict[str, float]:
        seen.append([one.fork.prompt for one in batch])
        return step(self, number_, batch)

    monkeypatch.setattr(Stepper, "step", watch)
    online, config = replace(ONLINE, iterations=3), replace(CONFIG, epochs=3, batch_size=1)
    history = train_online(policy(), RLOO(), CHATS, REWARD, online, config, tmp_path)
    assert len(seen) == len(history) == 3 * 3 * 4
    epochs = [[prompt for [prompt] in seen[first : first + 4]] for first in range(0, 36, 4)]
    assert all(len(set(epoch)) == 4 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3


def test_17_a_reward_model_is_normalised_before_a_policy_learns_from_it() -> None:
    """`RewardModel.normalise` is tested in test_reward.py; a policy's step is the same for any shift of the scores."""
    scores = torch.tensor([3.0, -1.0, 0.5, 2.0], dtype=torch.float64)
    group = torch.tensor([0, 0, 1, 1])
    for advantages in (leave_one_out_advantages, lambda s, g: group_advantages(s, g, scale=True)):
        assert torch.allclose(advantages(scores + 100, group), advantages(scores, group), atol=1e-9)


def test_18_the_divergence_is_the_sum_over_a_replys_tokens_and_then_the_mean() -> None:
    model = policy()
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if "lora_B" in name:
                parameter += 0.2
    found, told, rollouts = experience(model, RLOO())
    sums = [float((one.logprobs - one.reference_logprobs).sum()) for one in found]
    assert told["kl"] == pytest.approx(sum(sums) / sum(map(len, rollouts)), abs=1e-9)
    assert abs(told["kl"]) > 1e-3


@pytest.mark.parametrize(
    "objective", [PPO(), RLOO(), GRPO(), GRPO(mean="reply"), GRPO(mean="constant"), GRPO(ratio="reply", kl_weight=0.1)]
)
def test_19_losses_and_metrics_of_micro_batches_add_up_whatever_their_lengths(objective: Any) -> None:
    model: Any = actor_critic() if isinstance(objective, PPO) else policy()
    found, _, _ = experience(model, objective)
    window = Window.over(found)
    whole, metrics = objective.loss(model.score([one.fork for one in found]), found, window)
    parts = [objective.loss(model.score([one.fork for one in part]), part, window) for part in (found[:1], found[1:])]
    assert float(sum(loss for loss, _ in parts)) == pytest.approx(float(whole), abs=1e-9)
    for name in metrics:
        assert float(sum(told[name] for _, told in parts)) == pytest.approx(float(metrics[name]), abs=1e-9), name


# --- PPO's penalty -----------------------------------------------------------------------------------


def test_the_penalty_is_steered_to_its_target_by_at_most_a_fifth() -> None:
    steered = PPO(kl_coefficient=0.1, kl_target=6.0, kl_gain=0.5)
    assert steered.coefficient([]) == 0.1
    for kl, error in ((12.0, 0.2), (6.6, 0.1), (6.0, 0.0), (0.0, -0.2)):
        history = [{"kl_coefficient": 0.1, "kl": kl}]
        assert steered.coefficient(history) == pytest.approx(0.1 * (1 + 0.5 * error))
        assert PPO(kl_coefficient=0.1).coefficient(history) == 0.1


@given(st.floats(-5, 5))
def test_the_estimate_of_the_divergence_is_never_negative(log_ratio: float) -> None:
    assert float(log_ratio_kl(torch.tensor(log_ratio, dtype=torch.float64))) >= -1e-12


# --- groups ------------------------------------------------------------------------------------------


@given(st.lists(st.lists(number, min_size=2, max_size=5), min_size=1, max_size=4), st.booleans())
def test_the_advantages_of_a_group_add_up_to_nothing(groups: list[list[float]], scale: bool) -> None:
    rewards = torch.tensor([value for group in groups for value in group], dtype=torch.float64)
    group = torch.tensor([index for index, values in enumerate(groups) for _ in values])
    for found in (group_advantages(rewards, group, scale=scale), leave_one_out_advantages(rewards, group)):
        sums = torch.zeros(len(groups), dtype=torch.float64).index_add(0, group, found)
        assert float(sums.abs().max()) < 1e-6 * (1 + float(found.abs().max()))
    others = [value - (sum(values) - value) / (len(values) - 1) for values in groups for value in values]
    assert leave_one_out_advantages(rewards, group).tolist() == pytest.approx(others, abs=1e-9)


@pytest.mark.parametrize("objective", [GRPO(), GRPO(scale=False, mean="constant"), RLOO(kl_coefficient=0.0)])
def test_equal_rewards_teach_nothing(objective: Any) -> None:
    model = policy()
    found, told, _ = experience(model, objective, reward=lambda answered: [2.0] * len(answered))
    loss, _ = objective.loss(model.score([one.fork for one in found]), found, Window.over(found))
    loss.backward()
    slopes = [parameter.grad for parameter in model.model.parameters() if parameter.grad is not None]
    assert slopes and all(float(slope.abs().max()) < 1e-12 for slope in slopes)
    assert told["groups_without_signal"] == 1


@pytest.mark.parametrize("objective", [GRPO(mean="constant", scale=False), GRPO(), RLOO(kl_coefficient=0.0)])
def test_the_first_gradient_is_that_of_reinforce(objective: Any) -> None:
    model = policy()
    found, _, _ = experience(model, objective)
    window = Window.over(found)
    scores = model.score([one.fork for one in found])
    loss, _ = objective.loss(scores, found, window)
    [slope] = torch.autograd.grad(loss, scores.logprobs, retain_graph=True)
    advantages = torch.cat([one.advantages for one in found])
    count = {"token": window.tokens, "constant": window.continuations * 64}.get(getattr(objective, "mean", ""), 0)
    expected = -advantages / (count or window.continuations)
    assert torch.allclose(slope, expected, atol=1e-6)


def test_the_leave_one_out_gradient_is_unbiased() -> None:
    """On a policy over two tokens: its mean over all pairs of samples is the gradient of the expected reward."""
    logits = torch.tensor([0.3, -0.5], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([1.0, 4.0], dtype=torch.float64)
    probabilities = logits.softmax(0)
    [expected] = torch.autograd.grad((probabilities * rewards).sum(), logits, retain_graph=True)
    mean = torch.zeros(2, dtype=torch.float64)
    for pair in product(range(2), repeat=2):
        drawn = torch.tensor(pair)
        advantages = leave_one_out_advantages(rewards[drawn], torch.zeros(2, dtype=torch.long))
        loss = (advantages * logits.log_softmax(0)[drawn]).mean()
        [slope] = torch.autograd.grad(loss, logits)
        mean += float(probabilities[pair[0]] * probabilities[pair[1]]) * slope
    assert torch.allclose(mean, expected, atol=1e-12)


def test_the_variants_of_grpo_divide_as_their_papers_say() -> None:
    fork = Fork((1,), ((2, 3, 4), (5,)))
    scores = ForkScores(
        torch.log(torch.tensor([0.5, 0.5, 0.5, 0.25], dtype=torch.float64)), torch.tensor([0, 0, 0, 1]), 2
    )
    old = torch.log(torch.tensor([0.5, 0.25, 0.5, 0.25], dtype=torch.float64))
    advantages = torch.tensor([1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
    one = Experience(fork, logprobs=old, advantages=advantages, reference_logprobs=old, values=old, returns=old)
    window = Window.over([one])
    # Ratios 1, 2, 1 and 1; the second is clipped at 1.2.
    terms = [-1.0, -1.2, -1.0, 1.0]
    expected = {
        GRPO(mean="token"): sum(terms) / 4,
        GRPO(mean="reply"): (sum(terms[:3]) / 3 + terms[3]) / 2,
        GRPO(mean="constant", max_new_tokens=10): sum(terms) / (2 * 10),
        GRPO(clip_above=0.28): (-1.0 - 1.28 - 1.0 + 1.0) / 4,
        # One ratio a reply: the cube root of 2, clipped at 1.2.
        GRPO(ratio="reply", mean="reply"): (-1.2 + 1.0) / 2,
    }
    for objective, value in expected.items():
        assert float(objective.loss(scores, [one], window)[0]) == pytest.approx(value), objective


# --- the critic --------------------------------------------------------------------------------------


def test_the_critic_learns_beside_the_policy_and_not_instead() -> None:
    model = actor_critic()
    found, _, _ = experience(model, PPO())
    loss, _ = PPO().loss(model.score([one.fork for one in found]), found, Window.over(found))
    loss.backward()
    moved = {name for name, parameter in model.model.named_parameters() if parameter.grad is not None}
    trained = {name for name, parameter in model.model.named_parameters() if parameter.requires_grad}
    assert moved == trained
    assert any(f".{VALUE}." in name for name in moved) and any(".default." in name for name in moved)
    assert not any("lora" not in name and "value_head" not in name for name in moved)


def test_what_is_kept_is_the_policy_alone(tmp_path: Path) -> None:
    model = actor_critic()
    train_online(model, PPO(), CHATS, REWARD, replace(ONLINE, iterations=1), CONFIG, tmp_path)
    fork = Fork((1, 2, 3), ((4, 5), (6,)))
    expected = model.score([fork]).logprobs
    alone = policy_alone(model)
    assert torch.equal(alone.score([fork]).logprobs, expected)
    assert not any("value" in name for name, _ in alone.model.named_parameters())


def test_a_reward_adapter_beside_the_policy_scores_as_the_model_it_was(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "tiny", dtype=torch.float32)
    base = open_local(str(folder), dtype="float32")
    pairs = [Preference.of(f"hello {n}", "the one", "in the user") for n in range(4)]
    trained = add_lora(RewardModel.on(base, seed=0), SETTINGS, seed=0)
    train(trained, Reward(), Reward().examples(pairs, trained), CONFIG, tmp_path / "train")
    forks = [example.fork for example in Reward().examples(pairs, trained)]
    trained.normalise([reward for replies in trained.rewards(forks) for reward in replies])
    expected = trained.rewards(forks)
    save_trained(trained, tmp_path / "reward", form="adapter")

    base = open_local(str(folder), dtype="float32")
    assert base.folder is not None
    critic = ActorCritic.on(add_lora(base, SETTINGS, seed=7), SETTINGS, seed=8)
    before = critic.score([FORK])
    shared = SharedReward.beside(critic, base.folder, tmp_path / "reward")
    for found, wanted in zip(shared.rewards(forks), expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-5)
    after = critic.score([FORK])
    assert torch.equal(before.logprobs, after.logprobs) and torch.equal(before.values, after.values)
    learnt = {name for name, parameter in critic.model.named_parameters() if parameter.requires_grad}
    assert not any(".reward." in name for name in learnt)
    other = save_model(tmp_path / "other", seed=1, dtype=torch.float32)
    with pytest.raises(SpiritLevelError, match="trained on another base"):
        SharedReward.beside(critic, other, tmp_path / "reward")


# --- the whole loop ----------------------------------------------------------------------------------

METHODS: list[Any] = [PPO(), GRPO(kl_weight=0.05), RLOO()]


@pytest.mark.parametrize("objective", METHODS, ids=["ppo", "grpo", "rloo"])
def test_killed_anywhere_it_ends_with_the_same_weights(objective: Any, tmp_path: Path) -> None:
    def make() -> LocalModel:
        return actor_critic() if isinstance(objective, PPO) else policy()

    online = replace(ONLINE, iterations=3)
    straight = make()
    expected = train_online(straight, objective, CHATS, REWARD, online, CONFIG, tmp_path / "straight")
    for last in (1, 5, 6, 9):

        def kill(metrics: dict[str, float], last: int = last) -> None:
            if metrics["step"] == last:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train_online(make(), objective, CHATS, REWARD, online, CONFIG, tmp_path / "killed", on_step=kill)
    resumed = make()
    found = train_online(resumed, objective, CHATS, REWARD, online, CONFIG, tmp_path / "killed")
    timing = {"seconds", "tokens_per_second", "memory_gb"}
    for left, right in zip(found, expected, strict=True):
        assert {k: v for k, v in left.items() if k not in timing} == {k: v for k, v in right.items() if k not in timing}
    for left_, right_ in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(left_, right_)


@pytest.mark.parametrize("objective", METHODS, ids=["ppo", "grpo", "rloo"])
def test_a_planted_reward_is_found(objective: Any, tmp_path: Path) -> None:
    """The reward is the share of plain letters: the policy learns to write them."""
    model = actor_critic(dtype=torch.float32) if isinstance(objective, PPO) else policy(dtype=torch.float32)
    reward = function_reward(share, name="share")
    online = OnlineConfig(iterations=25, prompts=4, samples=8, max_new_tokens=6)
    config = TrainConfig(learning_rate=1e-2, epochs=2, batch_size=2, warmup=0.0)
    history = train_online(model, objective, CHATS, reward, online, config, tmp_path)
    first, last = ([row["reward"] for row in part] for part in (history[:8], history[-8:]))
    assert sum(last) / 8 > sum(first) / 8 + 0.2, (first, last)
    assert history[-1]["kl"] > 0


# --- bad rewards -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "much", None])
def test_a_reward_that_is_no_number_is_named(value: Any, tmp_path: Path) -> None:
    reward = function_reward(lambda chat, reply: value, name="mine.py:score")
    with pytest.raises(SpiritLevelError, match=r"mine\.py:score"):
        train_online(policy(), RLOO(), CHATS, reward, ONLINE, CONFIG, tmp_path)


def test_a_reward_function_that_raises_is_named(tmp_path: Path) -> None:
    def broken(chat: Any, reply: str) -> float:
        raise ZeroDivisionError("none")

    with pytest.raises(SpiritLevelError, match=r"mine\.py:score: the reward function raised ZeroDivisionError: none"):
        train_online(policy(), RLOO(), CHATS, function_reward(broken, name="mine.py:score"), ONLINE, CONFIG, tmp_path)


def test_the_log_probabilities_kept_while_drawing_are_the_models_own() -> None:
    model = policy()
    prompt = model.prompt_tokens(CHATS[0])
    [found] = decode(
        model.model, [prompt], Sampling(8, 1.0), stop_tokens=model.stop_tokens, pad_token=0, seeds=[3], keep_drawn=True
    )
    tokens, logprobs = zip(*found.drawn, strict=True)
    assert tokens[: len(found.tokens)] == found.tokens and len(tokens) == len(found.tokens) + found.finished
    [scored] = model.token_logprobs([Fork(prompt, (tokens,))])
    assert logprobs == pytest.approx(scored, abs=1e-5)
    assert all(exp(value) <= 1 for value in logprobs)


# --- what a run is made of ---------------------------------------------------------------------------


def test_a_run_with_another_reward_begins_anew(tmp_path: Path) -> None:
    def run(folder: str, function: Any) -> LocalModel:
        model = policy()
        train_online(model, RLOO(), CHATS, function_reward(function, name="mine"), ONLINE, CONFIG, tmp_path / folder)
        return model

    rewards = [load_function(f"{written(tmp_path, body)}:mine") for body in ("len(reply)", "-len(reply)")]
    run("used", rewards[0])
    found, expected = run("used", rewards[1]), run("fresh", rewards[1])
    assert all(map(torch.equal, found.model.parameters(), expected.model.parameters()))


def written(folder: Path, body: str) -> Path:
    path = folder / f"{len(list(folder.iterdir()))}.py"
    path.write_text(f"def mine(chat, reply):\n    return {body}\n")
    return path


def test_a_reward_function_takes_no_other_modules_name(tmp_path: Path) -> None:
    path = tmp_path / "random.py"
    path.write_text("def mine(chat, reply):\n    return 1\n")
    load_function(f"{path}:mine")
    assert sys.modules.get("random") is random


@pytest.mark.parametrize("objective", [RLOO(), GRPO()])
def test_one_sample_has_nothing_to_be_compared_with(objective: Any, tmp_path: Path) -> None:
    with pytest.raises(SpiritLevelError, match="compares the samples of a prompt"):
        train_online(policy(), objective, CHATS, REWARD, replace(ONLINE, samples=1), CONFIG, tmp_path)


def test_a_divergence_is_told_where_it_is_known() -> None:
    assert "kl" not in experience(policy(), GRPO())[1]
    assert experience(policy(), GRPO(kl_weight=0.1))[1]["kl"] == pytest.approx(0, abs=1e-6)


def test_a_penalty_of_nothing_can_not_be_steered() -> None:
    with pytest.raises(SpiritLevelError, match="kl_coefficient"):
        PPO(kl_coefficient=0.0, kl_target=3.0)


def test_checkpointed_layers_compute_again_and_the_weights_are_the_same(tmp_path: Path) -> None:
    forwards = {}
    models = {}
    for setting in ("on", "off"):
        models[setting] = model = policy()
        calls: list[bool] = []
        layer = model.model.get_base_model().model.layers[0].input_layernorm
        layer.register_forward_hook(lambda *_, calls=calls: calls.append(torch.is_grad_enabled()))
        config = replace(CONFIG, checkpointing=setting)
        train_online(model, RLOO(), CHATS, REWARD, ONLINE, config, tmp_path / setting)
        forwards[setting] = sum(calls)
        assert not any(module.training for module in model.model.modules())
    assert forwards["on"] == 2 * forwards["off"] > 0
    assert_close(*models.values())


def test_the_memory_of_a_step_is_estimated_once_and_for_the_longest_replies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Sequence[Fork]] = []
    estimate = memory.estimate_step
    monkeypatch.setattr(memory, "estimate_step", lambda model, forks: asked.append(forks) or estimate(model, forks))
    train_online(policy(), RLOO(), CHATS, REWARD, ONLINE, CONFIG, tmp_path)
    assert len(asked) == 1
    assert {len(reply) for fork in asked[0] for reply in fork.continuations} == {ONLINE.max_new_tokens}
    assert {len(fork.prompt) for fork in asked[0]} == {max(len(policy().prompt_tokens(chat)) for chat in CHATS)}


def assert_close(left: LocalModel, right: LocalModel) -> None:
    for a, b in zip(left.model.parameters(), right.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_the_samples_of_a_prompt_are_one_fork_to_a_reward_model() -> None:
    model, asked = policy(), []

    class Watched(RewardModel):
        def rewards(self, forks: Sequence[Fork], **settings: Any) -> list[list[float]]:
            asked.extend(forks)
            return super().rewards(forks, **settings)

    base = build_model()
    judge = RewardModel.on(base, seed=0)
    watched = Watched(judge.model, judge.tokenizer, name="judge")
    watched.digest = "a digest"
    reward = model_reward(watched, policy=model)
    prompts = [model.prompt_tokens(chat) for chat in CHATS]
    replies = [(4, 5), (6,), (7, 8, 9)]
    answered = [Answered(c, "", Fork(p, (y,))) for c, p in zip(CHATS, prompts, strict=True) for y in replies]
    found = reward(answered)
    assert [len(fork.continuations) for fork in asked] == [3] * 4
    alone = [reward([one])[0] for one in answered]
    assert found == pytest.approx(alone, abs=1e-6)


def test_the_callers_model_keeps_its_temperature(tmp_path: Path) -> None:
    model = policy()
    train_online(model, RLOO(), CHATS, REWARD, replace(ONLINE, temperature=0.5), CONFIG, tmp_path)
    assert model.temperature == 1.0


def test_scores_without_values_are_of_no_use_to_ppo() -> None:
    with pytest.raises(TypeError, match="ActorCritic"):
        experience(policy(), PPO())
    assert ActorCriticScores.__dataclass_fields__.keys() >= {"logprobs", "values"}
