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

from spiritlevel.models import Fork, score_batch, score_forks
from spiritlevel.train import CPO, DPO, IPO, ORPO, Example, Hinge, Pairwise, RobustDPO, SimPO, Window
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
        "pairs": PAIRS,
        "folder": str(folder),
        "cases": {name: settings for name, (_, settings) in CASES.items()},
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
    assert float(loss.detach()) == pytest.approx(theirs[name]["loss"], rel=1e-5)
    expected = load_file(theirs[name]["gradient"])
    ours = {key: weight.grad for key, weight in policy.model.named_parameters() if weight.grad is not None}
    assert ours.keys() == expected.keys()
    difference = sum(float((ours[key] - expected[key]).square().sum()) for key in expected) ** 0.5
    size = sum(float(expected[key].square().sum()) for key in expected) ** 0.5
    assert difference <= 1e-5 * size, difference / size
