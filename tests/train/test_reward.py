"""Reward models: what they read, what they learn, and what becomes of them on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from math import exp, inf, log1p, nan
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from spiritlevel.data import Preference, Ranking, read_records
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import Fork, RewardModel, open_local, open_reward_model, reward_fork
from spiritlevel.train import LoraSettings, Reward, TrainConfig, Window, add_lora, save_trained, train
from spiritlevel.train.objectives import bradley_terry_loss
from tiny import build_model, save_model

FORKS = [
    Fork((5, 6, 7), ((8, 9), (10,), (11, 12, 13))),
    Fork((5, 6), ((14, 15, 16, 17), (18, 19))),
    Fork((20, 21, 22, 23), ((24,), (25, 26))),
]


def reward_model(*, seed: int = 0, dtype: torch.dtype = torch.float64) -> RewardModel:
    return RewardModel.on(build_model(seed=seed, dtype=dtype), seed=seed)


def flat(lists: list[list[float]]) -> list[float]:
    return [value for values in lists for value in values]


def test_other_scores_of_the_same_replies_are_another_training(tmp_path: Path) -> None:
    def run(scores: tuple[float, ...], folder: str) -> RewardModel:
        model = add_lora(reward_model(), LoraSettings(4, 8), seed=1)
        record = Ranking(prompt=[{"role": "user", "content": "the"}], completions=("a", "on", "in"), scores=scores)
        examples = Reward().examples([record], model)
        train(model, Reward(), examples, TrainConfig(learning_rate=1e-2, epochs=2), tmp_path / folder)
        return model

    run((1.0, 2.0, 3.0), "used")
    found, expected = run((3.0, 2.0, 1.0), "used"), run((3.0, 2.0, 1.0), "fresh")
    assert all(map(torch.equal, found.model.parameters(), expected.model.parameters()))


# --- where the head reads ----------------------------------------------------------------------------


def test_a_reward_is_read_at_the_last_token_of_a_reply() -> None:
    model = reward_model()
    found = model.rewards([reward_fork(fork, model.pad_token) for fork in FORKS])
    for fork, rewards in zip(FORKS, found, strict=True):
        for reply, reward in zip(fork.continuations, rewards, strict=True):
            ids = torch.tensor([[*fork.prompt, *reply]])
            hidden = model.model.model(input_ids=ids).last_hidden_state[0, -1]
            assert reward == pytest.approx(float(hidden @ model.model.score.weight[0]), abs=1e-9)


def test_a_reward_depends_neither_on_batch_mates_nor_on_the_token_after_it() -> None:
    model = reward_model()
    alone = [model.rewards([reward_fork(fork, 0)])[0] for fork in FORKS]
    together = model.rewards([reward_fork(fork, 33) for fork in reversed(FORKS)], token_budget=10_000)
    assert flat(together[::-1]) == pytest.approx(flat(alone), abs=1e-12)


def test_plain_transformers_reads_the_same_reward_from_a_padded_batch(tmp_path: Path) -> None:
    """With a pad token that also ends replies it would read the score one token too early."""
    model = reward_model(dtype=torch.float32)
    save_trained(model, tmp_path / "model", form="merged")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    chat = [{"role": "user", "content": "hello"}]
    forks = [model.fork(chat, [reply]) for reply in ("the", "in the user and on")]
    rows = [[*fork.prompt, *fork.continuations[0][:-1]] for fork in forks]
    assert {row[-1] for row in rows} == {model.end_token}
    assert tokenizer.pad_token_id not in model.stop_tokens
    length = max(map(len, rows))
    padded = torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    scores = plain(input_ids=padded, attention_mask=mask).logits[:, 0].tolist()
    assert scores == pytest.approx(flat(model.rewards(forks)), abs=1e-5)


def test_a_fresh_head_is_drawn_as_the_paper_draws_it() -> None:
    def heads() -> Tensor:
        return torch.cat([RewardModel.on(build_model(), seed=seed).model.score.weight for seed in range(40)])

    width = heads().shape[1]
    assert float(heads().std()) == pytest.approx((width + 1) ** -0.5, rel=0.1)
    assert torch.equal(heads(), heads())


# --- the loss ----------------------------------------------------------------------------------------

score = st.floats(-30, 30)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(score, score, st.floats(0, 5), st.floats(0, 1))
def test_the_loss_is_the_cross_entropy_of_the_probability(better: float, worse: float, margin: float, p: float) -> None:
    gain = better - worse - margin
    expected = p * (log1p(exp(-abs(gain))) + max(-gain, 0)) + (1 - p) * (log1p(exp(-abs(gain))) + max(gain, 0))
    found = bradley_terry_loss(column(better), column(worse), margin=margin, probability=p)
    assert float(found) == pytest.approx(expected, abs=1e-9)


@given(score, score, score)
def test_the_loss_sees_differences_alone_and_its_sign_turns_with_the_pair(a: float, b: float, shift: float) -> None:
    loss = float(bradley_terry_loss(column(a), column(b)))
    assert float(bradley_terry_loss(column(a + shift), column(b + shift))) == pytest.approx(loss, abs=1e-9)
    assert float(bradley_terry_loss(column(b), column(a))) - loss == pytest.approx(a - b, abs=1e-9)
    assert float(bradley_terry_loss(column(b), column(a), probability=0.0)) == pytest.approx(loss, abs=1e-9)


def test_of_k_ranked_replies_all_pairs_count_and_their_mean_is_the_loss() -> None:
    model = reward_model()
    ranking = Ranking.model_validate(
        {"prompt": "hello", "completions": ["a", "b the", "c", "d in"], "scores": [3, 1, 3, 2]}
    )
    [example] = Reward().examples([ranking], model)
    rewards = model.score([example.fork])
    scores = dict(zip(ranking.scores, rewards, strict=False))
    assert len(scores) == 3  # two replies have the same score: they are not told apart
    loss, metrics = Reward().loss(rewards, [example], Window.over([example]))
    terms = [
        -torch.nn.functional.logsigmoid(rewards[i] - rewards[j])
        for i in range(4)
        for j in range(4)
        if ranking.scores[i] > ranking.scores[j]
    ]
    assert len(terms) == len(list(combinations(range(4), 2))) - 1
    assert float(loss) == pytest.approx(float(torch.stack(terms).mean()), abs=1e-12)
    assert 0 <= float(metrics["accuracy"]) <= 1


def test_a_pair_is_a_ranking_of_two() -> None:
    model = reward_model()
    pair = Preference.of("hello", "the one", "in the user")
    ranking = Ranking.model_validate({"prompt": "hello", "completions": ["in the user", "the one"], "scores": [0, 1]})
    losses = []
    for record in (pair, ranking):
        [example] = Reward(centre_weight=0.1).examples([record], model)
        losses.append(float(Reward(centre_weight=0.1).loss(model.score([example.fork]), [example], Window(1, 1))[0]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)


# --- training ----------------------------------------------------------------------------------------

WORDS = ["the", "hello", "user", "as", "in", "on", "er", "us"]
PLANTED = [
    Preference.of(f"{a} {b}", f"{b} good {c}", f"{c} bad {a}") for a in WORDS[:4] for b in WORDS[2:6] for c in WORDS[4:]
]
CONFIG = TrainConfig(learning_rate=1e-2, epochs=1, batch_size=8)


def test_a_planted_preference_is_learnt_and_holds_for_other_prompts(tmp_path: Path) -> None:
    base = build_model(dtype=torch.float32)
    examples = Reward().examples(PLANTED[::2], base)
    student = add_lora(RewardModel.on(base, seed=0), LoraSettings(4, 8), seed=0)
    history = train(student, Reward(), examples, CONFIG, tmp_path)
    assert history[-1]["accuracy"] > history[0]["accuracy"] or history[-1]["loss"] < 0.1
    held_out = [example.fork for example in Reward().examples(PLANTED[1::2], student)]
    assert all(good > bad for good, bad in student.rewards(held_out))


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_a_saved_reward_model_gives_the_same_rewards(form: str, tmp_path: Path) -> None:
    base = open_local(str(save_model(tmp_path / "base", dtype=torch.float32)), dtype="float32")
    examples = Reward().examples(PLANTED[:8], base)
    student = add_lora(RewardModel.on(base, seed=0), LoraSettings(4, 8), seed=0)
    train(student, Reward(), examples, replace(CONFIG, batch_size=4), tmp_path / "train")
    forks = [example.fork for example in examples]
    student.normalise(flat(student.rewards(forks)))
    expected = flat(student.rewards(forks))
    assert sum(expected) == pytest.approx(0, abs=1e-4)
    assert torch.tensor(expected).std().item() == pytest.approx(1, abs=1e-4)
    save_trained(student, tmp_path / "model", form=form)  # type: ignore[arg-type]
    found = open_reward_model(tmp_path / "model", dtype="float32")
    assert flat(found.rewards(forks)) == pytest.approx(expected, abs=1e-4)


def test_a_model_that_rates_everything_alike_is_not_normalised() -> None:
    with pytest.raises(SpiritLevelError, match="same reward"):
        reward_model().normalise([0.5, 0.5, 0.5])


# --- what is none, or can't be one --------------------------------------------------------------------


def test_a_language_model_is_no_reward_model(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "tiny")
    with pytest.raises(SpiritLevelError, match=r"tiny: the weights lack score\.weight\n.*another kind of model"):
        open_reward_model(folder)


def test_a_tokenizer_whose_special_tokens_all_end_replies_has_none_to_pad_with() -> None:
    base = build_model()
    base.model.generation_config.eos_token_id = sorted(base.tokenizer.added_tokens_decoder)
    with pytest.raises(SpiritLevelError, match=r"tiny: .*no token to pad with(.|\n)*`pad_token` in tokenizer_config"):
        RewardModel.on(base, seed=0)


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_a_score_that_is_no_finite_number_is_told_by_its_place(bad: float, tmp_path: Path) -> None:
    rows = [
        {"prompt": "hello", "completions": ["a", "b", "c"], "scores": scores} for scores in ([3, 1, 2], [3, bad, 2])
    ]
    file = tmp_path / "rankings.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SpiritLevelError, match=r"rankings\.jsonl:2: scores\.1: .*finite number"):
        read_records(file)
