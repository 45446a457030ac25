"""Every loss that TRL has too, value and gradient, against TRL itself on the same tokens (`docs/parity.md`).

TRL lives in an environment of its own, whose interpreter `SPIRITLEVEL_TRL_PYTHON` names; `.ci/run` makes one.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from spiritlevel.models import Fork, LocalModel, RewardModel, open_reward_model, reward_fork, score_batch, score_forks
from spiritlevel.train import (
    CPO,
    DPO,
    IPO,
    KTO,
    ORPO,
    Example,
    Hinge,
    Pairwise,
    Reward,
    RobustDPO,
    SimPO,
    Window,
    save_trained,
)
from spiritlevel.train.objectives.reward import RewardExample
from tiny import build_model, save_model

TRL = os.environ.get("SPIRITLEVEL_TRL_PYTHON")
pytestmark = pytest.mark.skipif(TRL is None, reason="SPIRITLEVEL_TRL_PYTHON names no interpreter that has trl==1.16.0")
SCRIPT = Path(__file__).with_name("trl_losses.py")

# Prompts and replies of unequal lengths, one of a single token.
PAIRS = [
    ([5, 9, 12, 7], [20, 21, 22, 23, 24], [30, 31]),
    ([8, 8], [40], [41, 42, 43, 44, 45, 46]),
    ([3, 14, 15, 92, 65, 35], [89, 79, 32], [38, 46, 26]),
]
# For KTO's estimate of the divergence: for each chosen and then each rejected reply, one to another prompt.
OTHERS = [[40], [89, 79, 32], [20, 21, 22, 23, 24], [41, 42, 43, 44, 45, 46], [38, 46, 26], [30, 31]]
SETTINGS: dict[str, dict[str, Any]] = {
    "kto": {"trainer": "kto", "beta": 0.3, "desirable_weight": 1.0, "undesirable_weight": 1.2},
    "reward": {"trainer": "reward", "center_rewards_coefficient": 0.1},
}
CASES: dict[str, tuple[Pairwise, dict[str, Any]]] = {
    "dpo": (DPO(0.3), {"trainer": "dpo", "loss_type": "sigmoid", "beta": 0.3}),
    "dpo-nll": (
        DPO(0.3, nll_weight=0.5),
        {"trainer": "dpo", "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], "beta": 0.3},
    ),
    "hinge": (Hinge(0.3), {"trainer": "dpo", "loss_type": "hinge", "beta": 0.3}),
    "ipo": (IPO(0.3), {"trainer": "dpo", "loss_type": "ipo", "beta": 0.3}),
    "robust": (
        RobustDPO(0.3, flipped=0.2),
        {"trainer": "dpo", "loss_type": "robust", "beta": 0.3, "label_smoothing": 0.2},
    ),
    "cpo": (CPO(0.3, nll_weight=0.7), {"trainer": "cpo", "loss_type": "sigmoid", "beta": 0.3, "cpo_alpha": 0.7}),
    "simpo": (
        SimPO(2.0, gamma=0.9),
        {"trainer": "cpo", "loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.9, "cpo_alpha": 0.0},
    ),
    "simpo-nll": (
        SimPO(2.0, nll_weight=1.0, gamma=0.9),
        {"trainer": "cpo", "loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.9, "cpo_alpha": 1.0},
    ),
    "orpo": (ORPO(0.3, nll_weight=0.0), {"trainer": "orpo", "beta": 0.3}),
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("parity")
    job = {
        "policy": str(save_model(folder / "policy", seed=0, dtype=torch.float32)),
        "reference": str(save_model(folder / "reference", seed=1, dtype=torch.float32)),
        "reward": str(_reward_folder(folder / "reward")),
        "pairs": PAIRS,
        "others": OTHERS,
        "folder": str(folder),
        "cases": {name: settings for name, (_, settings) in CASES.items()} | SETTINGS,
    }
    assert TRL is not None
    run = subprocess.run([TRL, str(SCRIPT)], input=json.dumps(job), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    answer = json.loads(run.stdout[run.stdout.rindex('{"trl"') :])
    assert answer["trl"] == "1.16.0"
    return answer["found"]


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_those_of_trl(name: str, theirs: dict[str, Any]) -> None:
    objective = CASES[name][0]
    policy = build_model(seed=0, dtype=torch.float32)
    reference = build_model(seed=1, dtype=torch.float32)
    forks = [Fork(tuple(prompt), (tuple(chosen), tuple(rejected))) for prompt, chosen, rejected in PAIRS]
    known = score_forks(reference.model, forks, pad_token=policy.pad_token, token_budget=512)
    examples = [Example(fork, tuple(scores)) for fork, scores in zip(forks, known, strict=True)]
    scores = score_batch(policy.model, forks, pad_token=policy.pad_token)
    loss, _ = objective.loss(scores, examples, Window.over(examples))
    loss.backward()
    _compare(loss, policy, theirs[name])


def test_kto_is_that_of_trl_given_the_same_replies_to_other_prompts(theirs: dict[str, Any]) -> None:
    objective = KTO(beta=0.3, undesirable_weight=1.2)
    policy = build_model(seed=0, dtype=torch.float32)
    reference = build_model(seed=1, dtype=torch.float32)
    judged = [(pair[0], pair[place], kind) for place, kind in ((1, "desirable"), (2, "undesirable")) for pair in PAIRS]
    examples = []
    for (prompt, reply, kind), other in zip(judged, OTHERS, strict=True):
        question = Fork(tuple(prompt), (tuple(reply), tuple(other)))
        [known] = score_forks(reference.model, [question], pad_token=policy.pad_token, token_budget=512)
        examples.append(Example(Fork(question.prompt, question.continuations[:1]), tuple(known), kind, question))
    window = objective.window(policy, examples)
    loss, _ = objective.loss(policy.score([example.fork for example in examples]), examples, window)
    loss.backward()
    _compare(loss, policy, theirs["kto"])


def test_the_reward_model_is_that_of_trl(theirs: dict[str, Any], tmp_path: Path) -> None:
    model = open_reward_model(_reward_folder(tmp_path / "reward"), dtype="float32")
    examples = [
        RewardExample(
            reward_fork(Fork(tuple(prompt), (tuple(chosen), tuple(rejected))), model.pad_token),
            pairs=((0, 1, 0.0, 1.0),),
        )
        for prompt, chosen, rejected in PAIRS
    ]
    scores = model.score([example.fork for example in examples])
    loss, _ = Reward(centre_weight=0.1).loss(scores, examples, Window.over(examples))
    loss.backward()
    _compare(loss, model, theirs["reward"])


def _reward_folder(folder: Path) -> Path:
    save_trained(RewardModel.on(build_model(seed=0, dtype=torch.float32), seed=0), folder, form="merged")
    return folder


def _compare(loss: torch.Tensor, model: LocalModel, theirs: dict[str, Any]) -> None:
    assert float(loss.detach()) == pytest.approx(theirs["loss"], rel=1e-5)
    expected = load_file(theirs["gradient"])
    ours = {key: weight.grad for key, weight in model.model.named_parameters() if weight.grad is not None}
    assert ours.keys() == expected.keys()
    difference = sum(float((ours[key] - expected[key]).square().sum()) for key in expected) ** 0.5
    size = sum(float(expected[key].square().sum()) for key in expected) ** 0.5
    assert difference <= 1e-5 * size, difference / size
