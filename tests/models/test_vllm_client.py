"""The vLLM engine against a real HTTP server that answers as vLLM does, from a tiny model in float64.

What vLLM itself does is in `test_vllm.py`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from spiritlevel.chat import user
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import VLLM, Fork, InProcess, LocalModel, Sampling, decode, open_local, server
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
from tiny import save_model

PROMPTS = [(5, 9, 12, 7), (8, 8), (3, 14, 15, 92, 65, 35)]
SEEDS = [[1, 2], [3, 4], [5, 6]]
SAMPLING = Sampling(6, 1.3)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: StandIn

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send(*self.server.reply(self.path, {}))

    def do_POST(self) -> None:
        self.send(*self.server.reply(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

    def send(self, status: int, answer: Any) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class StandIn(ThreadingHTTPServer):
    """`change(path, answer)` may spoil an answer: what it returns is sent instead."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.folder, self.lock = folder, threading.Lock()
        self.adapters: dict[str, LocalModel] = {}
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.change: Callable[[str, Any], tuple[int, Any]] = lambda path, answer: (200, answer)
        self.raw = False  # vLLM's default: log-probabilities before the temperature

    def handle_error(self, *_: object) -> None:
        pass  # a client that hangs up is part of these tests

    def reply(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        with self.lock:
            self.told.append((path, body))
            match path:
                case "/v1/models":
                    served = [{"id": "tiny", "owned_by": "vllm", "parent": None, "max_model_len": 64}]
                    return self.change(path, {"data": served})
                case "/v1/load_lora_adapter":
                    base = open_local(str(self.folder), dtype="float64")
                    adapted: Any = PeftModel.from_pretrained(
                        base.model, body["lora_path"], autocast_adapter_dtype=False
                    )
                    self.adapters[body["lora_name"]] = base.carrying(adapted)
                    return self.change(path, "Success")
                case "/v1/unload_lora_adapter":
                    del self.adapters[body["lora_name"]]
                    return self.change(path, "Success")
            if body["model"] not in self.adapters:
                return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
            return self.change(path, {"choices": [self.choice(body)]})

    def choice(self, body: dict[str, Any]) -> dict[str, Any]:
        model, prompt = self.adapters[body["model"]], tuple(body["prompt"])
        sampling = Sampling(body["max_tokens"], body["temperature"])
        stop = frozenset(body["stop_token_ids"])
        [completion] = decode(
            model.model, [prompt], sampling, stop_tokens=stop, pad_token=0, seeds=[body["seed"]], keep_drawn=True
        )
        tokens, logprobs = zip(*completion.drawn, strict=True)
        if self.raw:
            [logprobs] = model.token_logprobs([Fork(prompt, (tokens,))])
        ended = "stop" if completion.finished else "length"
        return {"token_ids": tokens, "logprobs": {"token_logprobs": logprobs}, "finish_reason": ended}

    def paths(self) -> list[str]:
        return [path.rpartition("/")[2] for path, _ in self.told]


@pytest.fixture(autouse=True)
def quick_and_keyless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_FIRST_BACKOFF_S", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("SPIRITLEVEL_API_KEY", raising=False)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[], StandIn]]:
    """Starts a server of a tiny model."""
    folder = save_model(tmp_path / "tiny")
    running = []

    def start() -> StandIn:
        running.append(StandIn(folder))
        threading.Thread(target=running[-1].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return running[-1]

    yield start
    for one in running:
        one.shutdown()
        one.server_close()


@pytest.fixture
def vllm(serve: Callable[[], StandIn]) -> StandIn:
    return serve()


@pytest.fixture
def engine(vllm: StandIn, tmp_path: Path) -> Iterator[VLLM]:
    with closing(VLLM(vllm.url, tmp_path / "engine", retries=1)) as opened:
        yield opened


def policy(vllm: StandIn, *, seed: int = 7, moved: bool = True, **settings: Any) -> LocalModel:
    """The served model with an adapter that changes something."""
    model = add_lora(open_local(str(vllm.folder), dtype="float64"), LoraSettings(4, 8, **settings), seed=seed)
    if moved:
        move(model)
    return model


def move(model: LocalModel) -> None:
    generator = torch.Generator().manual_seed(3)
    for name, weight in model.model.named_parameters():
        if ".lora_B.default." in name:
            weight.data += 0.3 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["fresh", "moved", "rslora", "actor-critic"])
def test_what_it_draws_and_scores_is_what_the_model_itself_would(kind: str, vllm: StandIn, engine: VLLM) -> None:
    model = policy(vllm, moved=kind != "fresh", variant="rslora" if kind == "rslora" else "lora")
    if kind == "actor-critic":
        model = ActorCritic.on(model, LoraSettings(4, 8), seed=8)
    engine.update_weights(model)
    found = engine.generate(PROMPTS, SAMPLING, seeds=SEEDS)
    for ours, theirs in zip(InProcess(model).generate(PROMPTS, SAMPLING, seeds=SEEDS), found, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert (one.tokens, one.finished) == (other.tokens, other.finished)
            assert other.logprobs == pytest.approx(one.logprobs, abs=1e-6)
    forks = [Fork(prompt, ((4, 5), (6,))) for prompt in PROMPTS]
    assert engine.logprobs(forks, temperature=1.3) == model.token_logprobs(forks, temperature=1.3)


def test_a_request_leaves_nothing_to_the_models_generation_config(vllm: StandIn, engine: VLLM) -> None:
    model = policy(vllm)
    engine.update_weights(model)
    engine.generate(PROMPTS[:1], SAMPLING, seeds=[[2**64 - 1]])
    path, body = vllm.told[-1]
    assert path == "/v1/completions"
    assert body.pop("model") in vllm.adapters
    assert body == {
        "prompt": [5, 9, 12, 7],
        "max_tokens": 6,
        "temperature": 1.3,
        "seed": 2**63 - 1,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logprobs": 0,
        "return_token_ids": True,
        "ignore_eos": True,
        "stop_token_ids": sorted(model.stop_tokens),
    }


def test_an_adapter_is_sent_when_it_has_changed_and_the_old_one_goes(
    vllm: StandIn, engine: VLLM, tmp_path: Path
) -> None:
    model = policy(vllm)
    names = []
    for changed in (True, False, True):
        if changed:
            move(model)
        engine.update_weights(model)
        [name] = vllm.adapters
        assert [path.name for path in (tmp_path / "engine").iterdir()] == [name]
        assert {path.name for path in (tmp_path / "engine" / name).iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
        }
        names.append(name)
    assert names[0] == names[1] != names[2]
    assert vllm.paths() == ["models", *["load_lora_adapter"] * 2, "unload_lora_adapter"]
    engine.close()
    assert not vllm.adapters and not (tmp_path / "engine").exists()


def test_log_probabilities_before_the_temperature_are_noticed(vllm: StandIn, engine: VLLM) -> None:
    vllm.raw = True
    engine.update_weights(policy(vllm))
    engine.generate(PROMPTS, Sampling(6, 1.0), seeds=SEEDS)
    with pytest.raises(SpiritLevelError, match=r"of temperature 1, and it draws at 1\.3(.|\n)*processed_logprobs"):
        engine.generate(PROMPTS, SAMPLING, seeds=SEEDS)


@pytest.mark.parametrize("wrong", ["base", "adapter"])
def test_another_model_behind_the_server_is_noticed(wrong: str, vllm: StandIn, engine: VLLM) -> None:
    model = policy(vllm)
    engine.update_weights(model)
    if wrong == "base":
        for served in vllm.adapters.values():
            head = served.model.get_base_model().lm_head.weight
            head.data = head.data.roll(1, 0)
    else:
        move(model)  # trained further, and not sent
    with pytest.raises(SpiritLevelError, match="nats a token from the policy's: it draws from another one"):
        engine.generate(PROMPTS, SAMPLING, seeds=SEEDS)


def test_what_can_not_work_is_refused_before_it_is_sent(vllm: StandIn, engine: VLLM) -> None:
    with pytest.raises(SpiritLevelError, match="does not serve DoRA"):
        engine.update_weights(policy(vllm, moved=False, variant="dora"))
    with pytest.raises(SpiritLevelError, match="is sent adapters, and the model has none"):
        engine.update_weights(open_local(str(vllm.folder)))
    with pytest.raises(SpiritLevelError, match=r"take 65 tokens, and the server has room for 64(.|\n)*--max-model-len"):
        engine.update_weights(policy(vllm))
        engine.generate([(1,) * 59], SAMPLING, seeds=[[1]])
    for sampling in (Sampling(6), Sampling(6, 1.0, top_p=0.9)):
        with pytest.raises(ValueError, match="the whole distribution"):
            engine.generate(PROMPTS, sampling, seeds=SEEDS)
    assert "completions" not in vllm.paths()


@pytest.mark.parametrize(
    "answer",
    [
        {"data": [{"id": "gpt", "owned_by": "openai"}]},
        {"data": [{"id": "m", "owned_by": "llamacpp", "meta": {}}]},
        {"data": []},
        {"models": []},
        "hello",
    ],
)
def test_another_server_is_told_from_vllm(answer: Any, vllm: StandIn, tmp_path: Path) -> None:
    vllm.change = lambda path, _: (200, answer)
    with pytest.raises(SpiritLevelError, match=r"expected the models of a vLLM server(.|\n)*URL that of a vLLM server"):
        VLLM(vllm.url + "/v1", tmp_path / "engine")
    vllm.change = lambda path, _: (404, "nothing here")
    with pytest.raises(SpiritLevelError, match=r"HTTP 404: \"nothing here\"(.|\n)*http://127"):
        VLLM(vllm.url, tmp_path / "engine")


def test_no_server_at_all(vllm: StandIn, tmp_path: Path) -> None:
    vllm.shutdown()
    vllm.server_close()
    with pytest.raises(SpiritLevelError, match=r"the server cannot be reached(.|\n)*Is it running"):
        VLLM(vllm.url, tmp_path / "engine", retries=1)
    with pytest.raises(SpiritLevelError, match=r"not a plain address(.|\n)*127\.0\.0\.1:8000"):
        VLLM("localhost:8000", tmp_path / "engine")


@pytest.mark.parametrize(
    ("status", "answer", "remedy"),
    [
        (404, {"detail": "Not Found"}, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        (500, {"error": {"message": "LoRA rank 4 is greater than max_lora_rank 1."}}, "--max-lora-rank RANK"),
        (404, {"error": {"message": "No adapter found for FOLDER"}}, "choose --out on a disk that both have"),
    ],
)
def test_a_server_that_does_not_take_the_adapter(
    status: int, answer: Any, remedy: str, vllm: StandIn, engine: VLLM
) -> None:
    spoilt = json.loads(json.dumps(answer).replace("FOLDER", str(engine.folder)))
    vllm.change = lambda path, _: (status, spoilt)
    with pytest.raises(SpiritLevelError, match=f"HTTP {status}") as caught:
        engine.update_weights(policy(vllm))
    assert remedy in caught.value.remedy


def spoil(**changes: Any) -> Callable[[str, Any], tuple[int, Any]]:
    return lambda path, answer: (200, {"choices": [answer["choices"][0] | changes]})


@pytest.mark.parametrize(
    "changes",
    [
        {"token_ids": None},
        {"token_ids": []},
        {"logprobs": None},
        {"logprobs": {"token_logprobs": [None] * 6}},
        {"logprobs": {"token_logprobs": [-1.0]}},
    ],
)
def test_an_answer_without_token_ids_or_log_probabilities(changes: dict[str, Any], vllm: StandIn, engine: VLLM) -> None:
    engine.update_weights(policy(vllm))
    vllm.change = spoil(**changes)
    with pytest.raises(SpiritLevelError, match="expected token ids with their log-probabilities, found"):
        engine.generate(PROMPTS, SAMPLING, seeds=SEEDS)


@pytest.mark.parametrize("reason", ["length", "stop", "abort"])
def test_a_reply_that_ends_where_the_policy_would_not(reason: str, vllm: StandIn, engine: VLLM) -> None:
    engine.update_weights(policy(vllm))
    cut = {"token_ids": [4, 5], "logprobs": {"token_logprobs": [-1.0, -1.0]}, "finish_reason": reason}
    vllm.change = spoil(**cut)
    with pytest.raises(SpiritLevelError, match=rf"ended a reply \({reason}\) after 2 of 6 tokens"):
        engine.generate(PROMPTS, SAMPLING, seeds=SEEDS)


def test_a_server_that_was_started_anew_has_lost_the_adapter(vllm: StandIn, engine: VLLM) -> None:
    engine.update_weights(policy(vllm))
    vllm.adapters.clear()
    with pytest.raises(SpiritLevelError, match=r"does not exist(.|\n)*Give the same command again"):
        engine.generate(PROMPTS, SAMPLING, seeds=SEEDS)


def test_a_run_whose_server_dies_goes_on_with_another_to_the_same_weights(
    serve: Callable[[], StandIn], tmp_path: Path
) -> None:
    chats = [[user("hello")], [user("the user in")], [user("on a and on")]]
    online = OnlineConfig(iterations=3, prompts=3, samples=3, max_new_tokens=6, temperature=1.3)
    config = TrainConfig(learning_rate=5e-3, epochs=2, batch_size=2, save_seconds=0)
    reward = function_reward(lambda chat, reply: float(sum(map(reply.count, "aeiou"))), name="vowels")

    def run(name: str, running: StandIn, last: int = 100) -> tuple[LocalModel, list[dict[str, float]]]:
        model = policy(running, moved=False)

        def on_step(metrics: dict[str, float]) -> None:
            if metrics["step"] == last:
                running.shutdown()
                running.server_close()

        with closing(VLLM(running.url, tmp_path / name / "engine", retries=1)) as engine:
            return model, train_online(
                model, GRPO(), chats, reward, online, config, tmp_path / name, engine=engine, on_step=on_step
            )

    straight, expected = run("straight", serve())
    assert all(row["ratio"] == pytest.approx(1, abs=1e-6) for row in expected[::4])  # the first of an iteration
    with pytest.raises(SpiritLevelError, match="the server cannot be reached"):
        run("killed", serve(), last=4)
    assert not (tmp_path / "killed" / "engine").exists()
    resumed, found = run("killed", serve())
    assert [row["loss"] for row in found] == [row["loss"] for row in expected]
    for left, right in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(left, right)
