"""spiritlevel train: every method from its example file to a model, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from math import log
from pathlib import Path

import pytest
import torch
import yaml

from command_line import Run
from spiritlevel.cli.train import METHODS, ROLLOUTS
from spiritlevel.data import Preference, write_preferences
from spiritlevel.models import open_local, open_reward_model
from tiny import save_model

EXAMPLES = Path(__file__).parents[2] / "examples" / "training"
WORDS = ["the", "user", "in", "on", "hello", "as", "a", "and"]
SMALL = ["--lr", "1e-3", "--batch-size", "4", "--rank", "4"]


def apart(module: Sequence[object], *arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """A module called in a process of its own, which may start others."""
    command = [sys.executable, "-m", *map(str, (*module, *arguments))]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""
    }  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, pairs, and a reward function."""
    folder = tmp_path_factory.mktemp("workplace")
    save_model(folder / "tiny", dtype=torch.float32)
    pairs = [
        Preference.of(f"hello {word} {n}", f"{word} the one", " ".join(WORDS[n:]), rule="r")
        for n, word in enumerate(WORDS)
    ]
    write_preferences(folder / "pairs.jsonl", pairs)
    (folder / "score.py").write_text("def letters(chat, reply):\n    return float(sum(c.isalpha() for c in reply))\n")
    return folder


@pytest.fixture
def workplace(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def settings(method: str, out: object) -> Sequence[object]:
    if METHODS[method].shared is ROLLOUTS:
        return [
            "--model", "tiny", "--prompts", "pairs.jsonl", "--reward", "score.py:letters", "--out", out, *SMALL,
            "--iterations", 2, "--prompts-each", 4, "--samples", 2, "--max-new-tokens", 5,
        ]  # fmt: skip
    more = ["--validation", "pairs.jsonl"] if method == "reward" else []
    return ["--model", "tiny", "--data", "pairs.jsonl", "--out", out, "--epochs", 1, *SMALL, *more]


def test_every_method_has_an_example_of_about_ten_lines_that_its_command_takes() -> None:
    files = {path.stem: path for path in EXAMPLES.glob("*.yaml")}
    assert files.keys() == METHODS.keys()
    for method, path in files.items():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 12
        assert f"spiritlevel train {method} --config examples/training/{path.name}" in text
        known = {*METHODS[method].shared, *METHODS[method].options, "model", "out", "lr"}
        assert set(yaml.safe_load(text)) <= known


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_a_model_that_loads(method: str, workplace: Path, spiritlevel: Run) -> None:
    out = workplace / "runs" / method
    example = EXAMPLES / f"{method}.yaml"
    told = spiritlevel("train", method, "--config", example, *settings(method, out))
    assert told.code == 0, told.err
    assert "Traceback" not in told.err
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows and rows[-1]["step"] == rows[-1]["steps"] == len(rows)
    if method == "reward":
        model = open_reward_model(out / "model")
        quality = json.loads((out / "quality.json").read_text())
        assert quality["accuracy"]["n"] == len(WORDS)
        assert model.std > 0 and "accuracy of the longer reply" in told.out
    else:
        opened = open_local(str(out / "model"))
        assert opened.generate([[{"role": "user", "content": "hello"}]], max_new_tokens=3)


@pytest.mark.parametrize(
    ("launcher", "more"),
    [
        ([], ["--processes", 2]),
        (["accelerate.commands.launch", "--multi_gpu", "--num_processes", 2], []),
        (["accelerate.commands.launch", "--config_file", EXAMPLES / "accelerate" / "fsdp2.yaml"], []),
    ],
    ids=["own", "accelerate", "accelerate-fsdp2"],
)
def test_two_processes_write_what_one_does(
    launcher: list[object], more: list[object], workplace: Path, spiritlevel: Run, request: pytest.FixtureRequest
) -> None:
    outs = [workplace / "processes" / name for name in ("one", request.node.name)]
    if not outs[0].exists():
        assert spiritlevel("train", "dpo", *settings("dpo", outs[0]), "--adapter").code == 0
    module = [*launcher, "-m", "spiritlevel"] if launcher else ["spiritlevel"]
    told = apart(module, "train", "dpo", *settings("dpo", outs[1]), *more, "--adapter", folder=workplace)
    assert told.returncode == 0, told.stderr
    assert told.stderr.count("wrote") == 1
    assert (outs[1] / "model" / "adapter_model.safetensors").exists()
    rows = [[json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()] for out in outs]
    for one, two in zip(*rows, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=5e-3)  # bfloat16 where the machine has it


def test_a_failure_of_one_process_ends_all_with_one_message(workplace: Path) -> None:
    """The second process alone can't reward a reply; the first says so."""
    (workplace / "second.py").write_text(
        "import os\n\n\ndef fails(chat, reply):\n    return 1 / (1 - int(os.environ['RANK']))\n"
    )
    more = ["--reward", "second.py:fails", "--processes", 2]
    told = apart(["spiritlevel"], "train", "grpo", *settings("grpo", workplace / "none"), *more, folder=workplace)
    assert told.returncode == 3, told.stderr
    assert told.stderr.count("error:") == 1 and "raised ZeroDivisionError" in told.stderr
    assert "Traceback" not in told.stderr


def test_of_a_process_that_was_killed_the_command_says_so(workplace: Path) -> None:
    (workplace / "deadly.py").write_text(
        "import os\n\n\ndef kills(chat, reply):\n    return os.environ['RANK'] == '0' or os.kill(os.getpid(), 9)\n"
    )
    more = ["--reward", "deadly.py:kills", "--processes", 2]
    told = apart(["spiritlevel"], "train", "grpo", *settings("grpo", workplace / "none"), *more, folder=workplace)
    assert told.returncode == 3, told.stderr
    assert told.stderr.count("error:") == 1 and "process 2 of 2 was killed by signal 9" in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize(
    ("launched", "method", "more", "message"),
    [
        ({}, "dpo", ["--shard"], "there is one process, and nothing to shard over"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "dpo", [], "there is one process"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "dpo", [], "training does not run under FSDP1"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "ppo", [], "learning from rollouts can't shard"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "grpo", [], "training does not run under DEEPSPEED"),
    ],
)
def test_sharding_that_can_not_be_had_is_refused(
    launched: dict[str, str], method: str, more: list[str], message: str,
    workplace: Path, spiritlevel: Run, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    told = spiritlevel("train", method, *settings(method, workplace / "unsharded"), *more)
    assert told.code == 3 and message in told.err and "Traceback" not in told.err


@pytest.mark.parametrize(
    ("method", "more", "message"),
    [
        ("ppo", ["--rank", 0], "needs an adapter"),
        ("ppo", ["--checkpointing", "on"], "two adapters don't work with gradient checkpointing"),
        ("rloo", ["--reward", "score.py"], "not a reward function"),
        ("rloo", ["--reward", "score.py:nothing"], "has no function 'nothing'"),
        ("rloo", ["--reward", "nowhere.py:score"], "can't be imported: FileNotFoundError"),
        ("grpo", ["--reward", "bad.py:nan"], "the reward function returned nan"),
        ("grpo", ["--reward", "bad.py:raises"], "the reward function raised ZeroDivisionError"),
        ("grpo", ["--max-length", 20], "exceed 20 tokens"),
        ("grpo", ["--max-new-tokens", 4000], "with 4000 new tokens exceed the model's context of 2048 tokens"),
        ("dpo", ["--data", "thumbs.jsonl"], "holds feedback, not preferences"),
        ("kto", ["--data", "shown.jsonl"], "holds demonstrations, not feedback or preferences"),
    ],
)
def test_what_can_not_work_is_said(
    method: str, more: list[object], message: str, workplace: Path, spiritlevel: Run
) -> None:
    (workplace / "bad.py").write_text(
        "def nan(chat, reply):\n    return float('nan')\n\n\ndef raises(chat, reply):\n    return 1 / 0\n"
    )
    thumb = {"prompt": "hello", "completion": "the", "label": True}
    (workplace / "thumbs.jsonl").write_text(json.dumps(thumb) + "\n")
    (workplace / "shown.jsonl").write_text(json.dumps({"prompt": "hello", "completion": "the"}) + "\n")
    out = workplace / "refused" / method
    told = spiritlevel("train", method, *settings(method, out), *more)
    assert told.code == 3, told.err
    assert message in " ".join(told.err.split())
    assert "Traceback" not in told.err
    assert not (out / "model").exists()


def test_a_reward_model_of_other_tokens_is_refused(workplace: Path, spiritlevel: Run) -> None:
    out = workplace / "runs" / "other-reward"
    assert spiritlevel("train", "reward", *settings("reward", out)).code == 0
    file = out / "model" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    a, b = list(vocabulary)[:2]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    file.write_text(json.dumps(tokenizer))
    more = ["--reward", out / "model"]
    told = spiritlevel("train", "rloo", *settings("rloo", workplace / "refused-2"), *more)
    assert told.code == 3 and "another tokenizer" in told.err


def test_best_of_n_writes_what_sft_and_dpo_read(workplace: Path, spiritlevel: Run) -> None:
    shared = ["--prompts", "pairs.jsonl", "--reward", "score.py:letters", "--model", "tiny", "--n", 4]
    shared += ["--max-new-tokens", 6]
    for kind, more in (("best", []), ("pairs", ["--pairs"])):
        told = spiritlevel("data", "best-of-n", *shared, "--out", f"{kind}.jsonl", *more, "--json")
        assert told.code == 0, told.err
        curve = json.loads(told.out)["best_of"]
        assert [row["n"] for row in curve] == [1, 2, 4]
        rewards = [row["reward"] for row in curve]
        assert rewards == sorted(rewards) and rewards[0] < rewards[-1]
    for method, data in (("sft", "best.jsonl"), ("dpo", "pairs.jsonl")):
        out = workplace / "runs" / f"{method}-of-best"
        told = spiritlevel("train", method, *settings(method, out), "--data", data)
        assert told.code == 0, told.err


def test_training_goes_on_from_an_adapter_once_it_is_merged(workplace: Path, spiritlevel: Run) -> None:
    runs = workplace / "runs"
    assert spiritlevel("train", "sft", *settings("sft", runs / "first"), "--adapter").code == 0
    adapter, merged = runs / "first" / "model", runs / "first-merged"
    charter = EXAMPLES.parents[1] / "src" / "spiritlevel" / "charter" / "templates" / "accounting"
    for words in (
        ["train", "dpo", *settings("dpo", runs / "second")],
        ["train", "dpo", *settings("dpo", runs / "second"), "--rank", 0],
        ["train", "rloo", *settings("rloo", runs / "second")],
        ["align", charter, "--out", runs / "second"],
    ):
        told = spiritlevel(*words, "--model", adapter)
        assert told.code == 3 and "is an adapter, and training starts from a whole model" in told.err, told.err
        assert f"spiritlevel model merge {adapter} --out MERGED" in told.err and "Traceback" not in told.err
        assert not (runs / "second" / "model").exists()

    assert spiritlevel("model", "merge", adapter, "--out", merged).code == 0
    more = ["--model", merged, "--nll-weight", 0, "--adapter"]
    assert spiritlevel("train", "dpo", *settings("dpo", runs / "second"), *more).code == 0
    first = json.loads((runs / "second" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(log(2), abs=1e-6)  # the policy begins as its reference, the trained model
    second = open_local(str(runs / "second" / "model"))
    assert second.base == merged
    chat = [[{"role": "user", "content": "hello"}]]
    with second.model.disable_adapter():
        assert second.generate(chat, max_new_tokens=8) == open_local(str(merged)).generate(chat, max_new_tokens=8)
