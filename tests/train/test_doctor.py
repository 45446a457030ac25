"""The run doctor: sick runs are named, healthy ones are left alone, whatever the seed, the method and the log."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from math import log, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from command_line import command_line
from spiritlevel.chat import user
from spiritlevel.cli.training import tensorboard
from spiritlevel.data import Preference
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import open_local
from spiritlevel.store import ContentStore, write_json, write_jsonl
from spiritlevel.train import (
    DPO,
    ORPO,
    PPO,
    SFT,
    ActorCritic,
    ConservativeDPO,
    LoraSettings,
    Objective,
    OnlineConfig,
    SimPO,
    TrainConfig,
    add_lora,
    function_reward,
    prepare_examples,
    save_trained,
    train,
    train_online,
)
from spiritlevel.train.doctor import SIGNS, Run, examine, read_rows, read_run
from spiritlevel.train.doctor.curve import direction
from spiritlevel.train.doctor.names import OF_ROLLOUTS
from tiny import build_model, save_model

POINTS = 100
Columns = dict[str, Any]


def found(run: Run) -> list[str]:
    return [diagnosis.sign for diagnosis in examine(run).diagnoses]


# --- real trainings of tiny models -------------------------------------------------------------------


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model."""
    return save_model(tmp_path_factory.mktemp("raw"), dtype=torch.float32)


@pytest.fixture(scope="module")
def tuned(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after SFT on replies of the kind that pairs are made of, chosen and rejected alike."""
    folder = tmp_path_factory.mktemp("tuned")
    model = open_local(str(raw), dtype="float32")
    records = draw_alike(240, ends=("in", "as"), seed=5) + draw_alike(240, ends=("as", "in"), seed=6)
    config = TrainConfig(learning_rate=1e-2, epochs=1)
    train(model, SFT(), prepare_examples(model, SFT(), records, store=ContentStore(folder)), config, folder)
    save_trained(model, folder / "model", form="merged")
    return folder / "model"


def draw_pairs(count: int, *, seed: int, flipped: float) -> list[Preference]:
    """Replies of some words are preferred to those of others, but for a share that is labelled the wrong way round."""
    draw = random.Random(seed)

    def reply(words: list[str]) -> str:
        return " ".join(draw.choice(words) for _ in range(4))

    pairs = []
    for number in range(count):
        pair = reply(["hello", "the", "user", "on"]), reply(["as", "in", "a", "er"])
        pairs.append(Preference.of(f"hello {number}", *(pair[::-1] if draw.random() < flipped else pair)))
    return pairs


def draw_alike(count: int, *, ends: tuple[str, str], seed: int) -> list[Preference]:
    """Pairs that differ in their last word only."""
    draw = random.Random(seed)
    words = ["hello", "the", "user", "on"]
    starts = [" ".join(draw.choice(words) for _ in range(3)) for _ in range(count)]
    return [Preference.of("hello", *(f"{start} {end}" for end in ends)) for start in starts]


def trained(
    folder: Path, base: Path, objective: Objective, pairs: list[Preference], *, rate: float = 1e-3, seed: int = 0,
    reference: Path | None = None,
) -> Run:  # fmt: skip
    """Metrics of one epoch with LoRA, by the training loop itself."""
    model = open_local(str(base), dtype="float32")
    scorer = model if reference is None else open_local(str(reference), dtype="float32")
    examples = prepare_examples(scorer, objective, pairs, store=ContentStore(folder / "store"))
    config = TrainConfig(learning_rate=rate, epochs=1, seed=seed)
    train(add_lora(model, LoraSettings(8, 16), seed=seed), objective, examples, config, folder)
    return read_run(folder)


HEALTHY: dict[str, tuple[Objective, int]] = {
    "dpo": (DPO(beta=0.1), 0),
    "dpo of another seed": (DPO(beta=0.1, nll_weight=1.0), 1),
    "cdpo": (ConservativeDPO(beta=0.1), 2),
    "simpo": (SimPO(beta=2.0), 3),
    "orpo": (ORPO(beta=0.1), 4),
    "sft": (SFT(), 5),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_training_is_left_alone(name: str, raw: Path, tmp_path: Path) -> None:
    objective, seed = HEALTHY[name]
    pairs = draw_pairs(240, seed=seed, flipped=0.2)
    examination = examine(trained(tmp_path, raw, objective, pairs, seed=seed))
    assert examination.diagnoses == ()
    assert {"loss-diverged", "learning-rate-too-high", "gradient-vanished"} <= set(examination.clear)


@pytest.mark.parametrize("wrong", ["before SFT", "after SFT"])
def test_another_models_reference_is_a_wrong_one(wrong: str, raw: Path, tuned: Path, tmp_path: Path) -> None:
    policy, reference = (tuned, raw) if wrong == "before SFT" else (raw, tuned)
    pairs = draw_pairs(160, seed=0, flipped=0.2)
    [diagnosis] = examine(trained(tmp_path, policy, DPO(beta=0.1), pairs, reference=reference)).diagnoses
    assert (diagnosis.sign, diagnosis.severity) == ("wrong-reference", "critical")
    assert "at step 1, where it must be 0" in diagnosis.evidence[0]
    assert "its reference it is ln 2" in diagnosis.evidence[-1]


def test_pairs_that_are_alike_displace_likelihood_and_an_nll_term_mends_it(tuned: Path, tmp_path: Path) -> None:
    """As Razin et al. say; and what the diagnosis advises helps."""
    pairs = draw_alike(400, ends=("in", "as"), seed=7)
    plain = trained(tmp_path / "plain", tuned, DPO(beta=0.1), pairs, rate=3e-3)
    assert found(plain) == ["likelihood-displacement"]
    assert found(trained(tmp_path / "nll", tuned, DPO(beta=0.1, nll_weight=1.0), pairs, rate=3e-3)) == []


@pytest.mark.parametrize(
    ("sign", "objective", "rate", "flipped"),
    [
        ("learning-rate-too-high", DPO(beta=1.0), 3e-2, 0.4),
        ("gradient-vanished", SFT(), 1.0, 0.2),
        ("stuck-at-ln-2", DPO(beta=0.1), 1e-7, 0.2),
        ("saturated-margins", DPO(beta=1.0), 5e-3, 0.0),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_training_with_a_bad_setting_is_named(
    sign: str, objective: Objective, rate: float, flipped: float, raw: Path, tmp_path: Path
) -> None:
    pairs = draw_pairs(320, seed=0, flipped=flipped)
    assert found(trained(tmp_path, raw, objective, pairs, rate=rate)) == [sign]


# --- logs in TRL's own words, of what is not trained here --------------------------------------------


def noise(draw: np.random.Generator, size: float) -> np.ndarray[Any, Any]:
    return draw.normal(0, size, POINTS)


PASSED = np.linspace(0, 1, POINTS)
LEARNT = 1 - np.exp(-3 * PASSED)  # how a quantity goes that is learnt quickly at first
WARM = np.minimum(1, 10 * PASSED + 0.1) * (1.001 - PASSED)


def dpo_log(seed: int) -> Columns:
    """DPOTrainer of TRL 1.16."""
    draw = np.random.default_rng(seed)
    chosen, rejected = 0.3 * LEARNT + PASSED * noise(draw, 0.1), -0.7 * LEARNT + PASSED * noise(draw, 0.1)
    return {
        "loss": log(2) - 0.2 * LEARNT + PASSED * noise(draw, 0.05),
        "grad_norm": np.exp(noise(draw, 0.3)) * 8,
        "learning_rate": 1e-6 * WARM,
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": np.clip(0.5 + 0.2 * LEARNT + noise(draw, 0.1), 0, 1),
        "logps/chosen": -120 + 10 * chosen + noise(draw, 10),
        "logps/rejected": -140 + 10 * rejected + noise(draw, 10),
        "entropy": 1.2 - 0.2 * LEARNT + noise(draw, 0.05),
        "epoch": np.ceil(PASSED * 100) / 50,
    }


def reward_log(seed: int) -> Columns:
    """RewardTrainer of TRL 1.16, with evaluations."""
    draw = np.random.default_rng(seed)
    margin = 1.2 * LEARNT + noise(draw, 0.2)
    return {
        "loss": log(2) - 0.2 * LEARNT + noise(draw, 0.04),
        "grad_norm": np.exp(noise(draw, 0.3)) * 3,
        "learning_rate": 1e-5 * WARM,
        "accuracy": np.clip(0.5 + 0.22 * LEARNT + noise(draw, 0.08), 0, 1),
        "margin": margin,
        "mean_reward": noise(draw, 0.3),
        "eval_loss": _every(20, 0.6 - 0.05 * LEARNT + noise(draw, 0.005)),
        "eval_accuracy": _every(20, 0.64 + 0.04 * LEARNT + noise(draw, 0.01)),
    }


def ppo_log(seed: int) -> Columns:
    """PPOTrainer of TRL 1.12."""
    draw = np.random.default_rng(seed)
    return {
        "objective/kl": 7 * LEARNT + noise(draw, 0.5),
        "objective/entropy": 40 - 10 * LEARNT + noise(draw, 2),
        "objective/scores": 2 * LEARNT + noise(draw, 0.2),
        "objective/non_score_reward": -0.35 * LEARNT,
        "policy/approxkl_avg": np.abs(noise(draw, 0.01)),
        "policy/clipfrac_avg": 0.08 + np.abs(noise(draw, 0.02)),
        "policy/entropy_avg": 0.9 - 0.3 * LEARNT + noise(draw, 0.03),
        "loss/policy_avg": noise(draw, 0.01),
        "loss/value_avg": 0.3 - 0.2 * LEARNT + noise(draw, 0.01),
        "val/ratio": 1 + noise(draw, 0.004),
        "val/num_eos_tokens": 40 + 10 * LEARNT,
        "lr": 3e-6 * (1.01 - PASSED),
        "episode": 64 * np.arange(1, POINTS + 1),
    }


def grpo_log(seed: int) -> Columns:
    """GRPOTrainer of TRL 1.16 with a KL term."""
    draw = np.random.default_rng(seed)
    return {
        "loss": noise(draw, 0.02),
        "grad_norm": np.exp(noise(draw, 0.4)) * 0.3,
        "learning_rate": 1e-6 * WARM,
        "reward": 0.3 + 0.4 * LEARNT + noise(draw, 0.05),
        "reward_std": 0.4 - 0.1 * LEARNT + noise(draw, 0.03),
        "frac_reward_zero_std": np.clip(0.2 + 0.1 * LEARNT + noise(draw, 0.05), 0, 1),
        "kl": 0.02 * LEARNT + np.abs(noise(draw, 0.002)),
        "entropy": 0.6 - 0.2 * LEARNT + noise(draw, 0.03),
        "clip_ratio/region_mean": np.zeros(POINTS),
        "completions/mean_length": 200 + 60 * LEARNT + noise(draw, 10),
        "completions/clipped_ratio": np.clip(0.1 + noise(draw, 0.03), 0, 1),
        "sampling/importance_sampling_ratio/mean": 1 + noise(draw, 0.002),
    }


def sft_log(seed: int) -> Columns:
    """SFTTrainer of TRL 1.16, two epochs, with evaluations."""
    draw = np.random.default_rng(seed)
    loss = 1.4 - 0.3 * LEARNT + noise(draw, 0.08)
    return {
        "loss": loss,
        "grad_norm": np.exp(noise(draw, 0.3)),
        "learning_rate": 2e-5 * WARM,
        "entropy": 1.4 - 1.2 * LEARNT + noise(draw, 0.05),
        "mean_token_accuracy": 0.6 + 0.05 * LEARNT + noise(draw, 0.01),
        "epoch": np.ceil(PASSED * 100) / 50,
        "eval_loss": _every(20, 1.3 - 0.15 * LEARNT + noise(draw, 0.01)),
    }


def ours_log(seed: int) -> Columns:
    """PPO in our words."""
    draw = np.random.default_rng(seed)
    return {
        "loss": noise(draw, 0.05),
        "grad_norm": np.exp(noise(draw, 0.3)) * 4,
        "learning_rate": 1e-5 * WARM,
        "reward": 1.5 * LEARNT + noise(draw, 0.2),
        "reward_std": 1 + noise(draw, 0.1),
        "kl": 5 * LEARNT + noise(draw, 0.3),
        "kl_coefficient": np.full(POINTS, 0.05),
        "entropy": 1.0 - 0.3 * LEARNT + noise(draw, 0.03),
        "clip_fraction": 0.1 + np.abs(noise(draw, 0.03)),
        "ratio": 1 + noise(draw, 0.003),
        "value_loss": 0.4 - 0.2 * LEARNT + noise(draw, 0.02),
        "value_explained_variance": -0.2 + 0.8 * LEARNT + noise(draw, 0.08),
        "finished": np.clip(0.9 + noise(draw, 0.03), 0, 1),
        "length": 50 + 10 * LEARNT + noise(draw, 3),
        "advantage_std": 1 + noise(draw, 0.01),
    }


def _every(count: int, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Only each so-manieth; nan, which `rows` leaves out, elsewhere."""
    return np.where(np.arange(1, POINTS + 1) % count == 0, values, np.nan)


def rows(columns: Columns, *, scale: int = 10) -> list[dict[str, float]]:
    """A log of every `scale`-th step."""
    return [
        {"step": scale * (index + 1)}
        | {
            name: float(values[index])
            for name, values in columns.items()
            if not (name.startswith("eval_") and np.isnan(values[index]))
        }
        for index in range(POINTS)
    ]


LOGS: dict[str, Callable[[int], Columns]] = {
    "dpo": dpo_log, "reward": reward_log, "ppo": ppo_log, "grpo": grpo_log, "sft": sft_log, "ours": ours_log,
}  # fmt: skip


def logged(columns: Columns, *, scale: int = 10) -> Run:
    return read_rows(rows(columns, scale=scale))


DRAW = np.random.default_rng(7)
SHOCK = np.maximum(0, PASSED - 0.5)  # what begins half-way

# Each sign: a healthy log, and what makes it sick.
SICK: dict[str, tuple[str, Columns]] = {
    "not-finite": ("sft", {"loss": np.where(PASSED > 0.7, nan, 2 - LEARNT)}),
    "loss-diverged": (
        "sft",
        {"loss": 1.4 - 0.3 * LEARNT + 10 * SHOCK + noise(DRAW, 0.05), "eval_loss": np.full(POINTS, nan)},
    ),
    "learning-rate-too-high": ("sft", {"loss": 2 - LEARNT + SHOCK + noise(DRAW, 0.05)}),
    "gradient-vanished": (
        "sft",
        {"grad_norm": 5 * np.exp(-30 * PASSED) + 0.01, "loss": 3 - LEARNT + noise(DRAW, 0.05)},
    ),
    "loss-flat": ("sft", {"loss": 1.4 + noise(DRAW, 0.03)}),
    "learning-rate-spent": ("sft", {"learning_rate": np.maximum(0, 1 - 2 * PASSED)}),
    "no-gradient": ("grpo", {"grad_norm": np.zeros(POINTS)}),
    "gradient-always-clipped": ("grpo", {"grad_norm": 30 + noise(DRAW, 1), "reward": 1 - LEARNT + noise(DRAW, 0.3)}),
    "no-warm-up": (
        "sft",
        {
            "learning_rate": 1.01 - PASSED,
            "loss": np.where((PASSED > 0) & (PASSED < 0.12), 5, 2 - LEARNT) + noise(DRAW, 0.05),
        },
    ),
    "validation-loss-rises": ("sft", {"eval_loss": _every(10, 1.2 + (PASSED - 0.4) ** 2)}),
    "memorised-epochs": ("sft", {"loss": np.where(PASSED < 0.5, 1.4, 0.8) + noise(DRAW, 0.05)}),
    "wrong-reference": ("dpo", {"rewards/chosen": 1.5 + 0.3 * LEARNT, "rewards/rejected": 1.3 - LEARNT}),
    "stuck-at-ln-2": ("dpo", {"loss": log(2) + noise(DRAW, 1e-3), "rewards/margins": noise(DRAW, 1e-3)}),
    "likelihood-displacement": ("dpo", {"rewards/chosen": -2 * LEARNT, "rewards/rejected": -3 * LEARNT}),
    "saturated-margins": (
        "dpo",
        {"rewards/margins": 12 * LEARNT, "rewards/accuracies": np.minimum(1, 0.5 + 2 * LEARNT)},
    ),
    "preference-inverted": ("dpo", {"rewards/margins": -LEARNT, "rewards/accuracies": 0.5 - 0.4 * LEARNT}),
    "accuracy-at-chance": (
        "dpo",
        {
            "loss": 0.75 + noise(DRAW, 0.05),
            "rewards/margins": noise(DRAW, 0.3),
            "rewards/accuracies": 0.5 + noise(DRAW, 0.06),
        },
    ),
    "overfit-preferences": ("reward", {"accuracy": 0.5 + 0.49 * LEARNT, "eval_accuracy": np.full(POINTS, 0.64)}),
    "kl-blow-up": ("ppo", {"objective/kl": np.exp(6 * PASSED)}),
    "negative-kl": ("ppo", {"objective/kl": -9 * LEARNT}),
    "off-policy-ratio": ("ppo", {"val/ratio": 0.896 + noise(DRAW, 0.01)}),
    "everything-clipped": ("ppo", {"policy/clipfrac_avg": 0.1 + 0.5 * LEARNT}),
    "policy-stands-still": ("ppo", {"objective/kl": noise(DRAW, 0.01), "objective/scores": noise(DRAW, 0.2)}),
    "reward-falls": ("ppo", {"objective/scores": -2 * LEARNT + noise(DRAW, 0.2)}),
    "reward-constant": ("grpo", {"reward_std": np.zeros(POINTS)}),
    "groups-without-signal": ("grpo", {"frac_reward_zero_std": 0.2 + 0.6 * LEARNT}),
    "entropy-collapse": ("grpo", {"entropy": 0.6 * np.exp(-4 * PASSED)}),
    "length-hacking": (
        "grpo",
        {"completions/mean_length": 200 * (1 + PASSED), "completions/clipped_ratio": 0.1 + 0.6 * PASSED},
    ),
    "eos-never-learnt": ("ppo", {"val/num_eos_tokens": np.zeros(POINTS)}),
    "value-collapse": ("ours", {"value_explained_variance": 0.6 * np.sin(3.4 * PASSED) + noise(DRAW, 0.03)}),
    "value-loss-rises": ("ppo", {"loss/value_avg": 0.1 + 2 * PASSED}),
}
# What else such a run shows, and truly.
ALSO = {"no-warm-up": [], "gradient-always-clipped": ["reward-falls"], "no-gradient": []}


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_log_is_left_alone(name: str, seed: int) -> None:
    assert found(logged(LOGS[name](seed))) == []


def test_every_sign_has_a_sick_run() -> None:
    assert set(SICK) == set(SIGNS)


@pytest.mark.parametrize("sign", SICK)
@pytest.mark.parametrize("seed", range(3))
def test_a_sick_log_is_named_and_nothing_else_is(sign: str, seed: int) -> None:
    base, change = SICK[sign]
    assert sorted(found(logged(LOGS[base](seed) | change))) == sorted([sign, *ALSO.get(sign, [])])


def test_a_margin_that_has_a_target_is_not_saturated() -> None:
    change = SICK["saturated-margins"][1]
    assert found(logged(dpo_log(0) | change | {"ipo": 1 - LEARNT})) == []


def test_groups_are_not_asked_about_where_a_value_model_compares() -> None:
    """`ppo --samples 1` has groups of one, whose rewards are always equal."""
    assert found(logged(ours_log(0) | {"groups_without_signal": np.ones(POINTS)})) == []


def test_thumbs_are_not_read_as_text_alone() -> None:
    staircase = SICK["memorised-epochs"][1]
    kto = {name: values for name, values in sft_log(0).items() if name not in ("entropy", "eval_loss")}
    examination = examine(logged(kto | staircase | {"reward_desirable": LEARNT}))
    assert examination.diagnoses == () and "memorised-epochs" in examination.not_asked


def test_a_reward_model_that_knows_its_pairs_by_heart_is_told_from_validations_at_epoch_ends() -> None:
    """As `train reward --validation` logs them."""
    history = [
        {"step": step, "loss": 0.7 - 0.006 * step, "accuracy": 0.5 + 0.0049 * step, "margin": 0.03 * step}
        | ({"validation_loss": 0.6 + 0.002 * step, "validation_accuracy": 0.64} if step % 25 == 0 else {})
        for step in range(1, POINTS + 1)
    ]
    assert sorted(found(read_rows(history))) == ["overfit-preferences", "validation-loss-rises"]


# --- laws --------------------------------------------------------------------------------------------

logs = st.sampled_from(sorted(LOGS))
seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=60)
@given(name=logs, seed=seeds)
def test_without_order_there_is_nothing_to_see(name: str, seed: int) -> None:
    """A healthy log whose second half, where little is learnt any more, follows its first point in random order."""
    order = [0, *np.random.default_rng(seed).permutation(np.arange(POINTS // 2, POINTS).repeat(2))[1:]]
    columns = {metric: values[order] for metric, values in LOGS[name](seed).items()}
    assert set(found(logged(columns))) <= {"loss-flat"}, "flat it is"


def test_noise_has_a_trend_no_oftener_than_is_said() -> None:
    draw = np.random.default_rng(0)
    seen = sum(direction(draw.normal(size=count)) != 0 for count in (20, 60, 250) for _ in range(300))
    assert seen <= 5  # of 900, SURE is 0.001


@settings(max_examples=40)
@given(sign=st.sampled_from(sorted(SICK)), scale=st.sampled_from([1, 7, 500]))
def test_it_does_not_matter_how_steps_are_counted(sign: str, scale: int) -> None:
    base, change = SICK[sign]
    columns = LOGS[base](0) | change
    assert found(logged(columns, scale=scale)) == found(logged(columns))


@settings(max_examples=40)
@given(name=logs, count=st.integers(1, 19), seed=seeds)
def test_a_short_log_is_told_to_be_short(name: str, count: int, seed: int) -> None:
    examination = examine(read_rows(rows(LOGS[name](seed))[:count]))
    assert examination.diagnoses == ()
    assert "loss-diverged" not in examination.clear and "kl-blow-up" not in examination.clear


@given(sign=st.sampled_from(sorted(SICK)))
def test_every_sign_has_its_place(sign: str) -> None:
    """Found, not seen, too short or not logged: each sign is accounted for, once."""
    base, change = SICK[sign]
    told = examine(logged(LOGS[base](0) | change))
    names = [*(each.sign for each in told.diagnoses), *told.clear, *told.too_short, *told.not_asked, *told.not_logged]
    assert sorted(names) == sorted(SIGNS)


numbers = st.floats(width=32) | st.sampled_from([0.0, 1.0, -1.0])


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    columns=st.dictionaries(
        st.sampled_from(sorted({name for make in LOGS.values() for name in make(0)} | {"dpo", "simpo", "nll"})),
        st.lists(numbers, min_size=1, max_size=4),
        min_size=1,
    ),
    count=st.integers(1, 130),
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numbers near the end of what floats hold
def test_whatever_a_log_holds_it_is_read_to_the_end(columns: dict[str, list[float]], count: int) -> None:
    log = [{name: values[step % len(values)] for name, values in columns.items()} for step in range(count)]
    told = examine(read_rows(log))
    assert all(line for diagnosis in told.diagnoses for line in diagnosis.evidence)
    if not any(np.isfinite(value) for values in columns.values() for value in values):
        assert {diagnosis.sign for diagnosis in told.diagnoses} <= {"not-finite"}


# --- reading -----------------------------------------------------------------------------------------


def test_trl_names_are_ours() -> None:
    run = logged(grpo_log(0))
    assert run["finished"].start == pytest.approx(0.9, abs=0.02)  # 1 - clipped_ratio
    assert run["kl"].end == pytest.approx(0.02 * 260, rel=0.2)  # a reply's, where TRL's is a token's
    assert run["groups_without_signal"].end == pytest.approx(0.3, abs=0.05)
    run = logged(ppo_log(0))
    assert {"kl", "reward", "clip_fraction", "entropy", "value_loss", "ratio", "finished", "learning_rate"} <= set(
        run.curves
    )
    run = logged(reward_log(0))
    assert len(run["validation_accuracy"]) == 5 and run.implicit_rewards is None
    assert logged(dpo_log(0)).implicit_rewards == "ratio"


def test_a_reference_free_log_of_trl_is_told_by_its_rewards() -> None:
    """CPOTrainer's and ORPOTrainer's rewards are beta log pi: far from 0 from the first step on, and rightly."""
    columns = dpo_log(0)
    for reply in ("chosen", "rejected"):
        columns[f"rewards/{reply}"] = 0.1 * columns[f"logps/{reply}"]
    run = logged(columns)
    assert run.implicit_rewards == "likelihood"
    assert examine(run).not_asked == ("wrong-reference", "memorised-epochs")


def state(folder: Path, columns: Columns) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "trainer_state.json"
    path.write_text(json.dumps({"best_metric": None, "log_history": rows(columns)}))
    return path


def test_in_a_folder_the_furthest_checkpoint_is_read(tmp_path: Path) -> None:
    state(tmp_path / "checkpoint-90", sft_log(0))
    last = state(tmp_path / "checkpoint-1000", dpo_log(0))
    assert read_run(tmp_path).source == str(last)
    own = state(tmp_path, dpo_log(1))
    assert read_run(tmp_path).source == str(own)


def test_the_same_run_is_the_same_from_every_kind_of_log(tmp_path: Path) -> None:
    columns = ours_log(3)
    history = rows(columns, scale=1)
    write_jsonl(tmp_path / "metrics.jsonl", history)
    write_json(tmp_path / "trainer_state.json", {"log_history": history})
    write_json(tmp_path / "list.json", history)
    board = tensorboard(tmp_path / "board")
    for row in history:
        board(row)
    read = [
        read_run(tmp_path / place)
        for place in ("metrics.jsonl", "trainer_state.json", "list.json", "board/tensorboard", "board")
    ]
    for run in read:
        assert run.curves.keys() == read[0].curves.keys()
        for name, curve in run.curves.items():
            assert curve.steps == read[0][name].steps
            assert curve.values == pytest.approx(read[0][name].values, rel=1e-6)  # TensorBoard's are float32


def test_of_a_step_that_was_logged_twice_the_later_log_holds() -> None:
    run = read_rows(
        [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 9.0}, {"step": 2, "loss": 2.0, "note": "again", "ok": True}]
    )
    assert (run["loss"].steps, run["loss"].values) == ((1.0, 2.0), (3.0, 2.0))
    assert set(run.curves) == {"loss"}


def test_what_is_of_an_iteration_is_one_point_however_many_steps_learn_from_it() -> None:
    draw = np.random.default_rng(1)
    history = [
        {"step": 4 * iteration + step, "iteration": iteration, "reward": reward, "clip_fraction": 0.0}
        for iteration, reward in enumerate(draw.normal(size=12))
        for step in range(1, 5)
    ]
    run = read_rows(history)
    assert (len(run["reward"]), len(run["clip_fraction"])) == (12, 48)
    assert run["reward"].steps == tuple(range(1, 49, 4))
    again = [row | {"reward": row["reward"] + 1} for row in history[40:]]
    assert read_rows([*history, *again])["reward"].values[10] == again[0]["reward"], "the later log holds"


def test_what_our_log_repeats_is_known(tmp_path: Path) -> None:
    model = ActorCritic.on(add_lora(build_model(), LoraSettings(4, 8), seed=1), LoraSettings(4, 8), seed=2)
    reward = function_reward(lambda chat, reply: float(len(reply)), name="length")
    online = OnlineConfig(iterations=3, prompts=2, samples=2, max_new_tokens=4)
    config = TrainConfig(learning_rate=1e-2, epochs=3, batch_size=1)
    chats = [[user("hello")], [user("the user in")]]
    history = train_online(model, PPO(kl_target=1.0), chats, reward, online, config, tmp_path)
    known = OF_ROLLOUTS & read_rows(history).curves.keys()
    assert known == OF_ROLLOUTS
    values = {name: [{row[name] for row in history if row["iteration"] == 1 + it} for it in range(3)] for name in known}
    assert all(len(each) == 1 for name in known for each in values[name])


BAD = {
    "no folder": ("nowhere", None, "there is no such file"),
    "empty": (".", None, "there are no metrics in this folder"),
    "torn": ("metrics.jsonl", '{"loss": 1}\n{"lo', "metrics.jsonl:2: not valid JSON"),
    "a list": ("metrics.jsonl", "[1]", "metrics.jsonl:1: a log must be a JSON object"),
    "words": ("metrics.jsonl", '{"loss": "low"}', "holds no metrics"),
    "no history": ("trainer_state.json", '{"epoch": 1}', "it has no `log_history`"),
    "odd history": ("trainer_state.json", '{"log_history": [{"loss": 1}, 2]}', "log_history[1]: a log must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_told_by_its_place(case: str, tmp_path: Path) -> None:
    name, text, problem = BAD[case]
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(SpiritLevelError) as told:
        read_run(tmp_path / name)
    assert problem in str(told.value) and told.value.remedy


# --- the command and the page ------------------------------------------------------------------------


def test_the_command_tells_and_its_exit_code_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    healthy = state(tmp_path / "[bold]healthy", grpo_log(0))
    base, change = SICK["kl-blow-up"]
    sick = state(tmp_path / "sick", LOGS[base](0) | change | {"policy/clipfrac_avg": np.full(POINTS, 0.6)})

    code, told, _ = command_line(monkeypatch, capsys)("doctor", healthy.parent)
    assert code == 0 and "nothing found" in told and "[bold]healthy" in told and "to step 1000" in told
    assert "not logged" in told and "wrong-reference" in told

    code, told, _ = command_line(monkeypatch, capsys)("doctor", sick)
    assert code == 1 and "2 found" in told
    assert told.index("critical · kl-blow-up") < told.index("serious · everything-clipped"), "worst first"
    assert "steps 810 to 1000" in " ".join(told.split()) and "Ziegler" in told

    code, told, _ = command_line(monkeypatch, capsys)("doctor", sick, "--json")
    document = json.loads(told)
    assert code == 1 and document["source"] == str(sick)
    assert [each["sign"] for each in document["diagnoses"]] == ["kl-blow-up", "everything-clipped"]

    short = tmp_path / "short.jsonl"
    write_jsonl(short, rows(sft_log(0))[:5])
    code, told, _ = command_line(monkeypatch, capsys)("doctor", short)
    assert code == 0 and "not enough steps" in told and "loss-diverged" in told

    code, told, error = command_line(monkeypatch, capsys)("doctor", tmp_path / "nowhere")
    assert (code, told) == (3, "") and "nowhere: there is no such file" in error


def test_the_page_has_every_sign_as_it_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    lines = [
        f"| `{sign.name}` | {sign.severity} | {sign.looks_for} | {sign.remedy} | {sign.source} |"
        for sign in SIGNS.values()
    ]
    assert [line for line in page.splitlines() if line.startswith("| `")] == lines
