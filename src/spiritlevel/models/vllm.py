"""Rollouts from a vLLM server: token ids over HTTP, and the policy's adapter as files that the server reads.

What has to agree is checked where it can be seen: a reply ends where the policy ends one, and the log-probabilities are
those that the policy itself gives, with its adapter and at the temperature of the sampling.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any

import httpx

from spiritlevel.errors import SpiritLevelError
from spiritlevel.models.fork import Fork
from spiritlevel.models.local import LocalModel
from spiritlevel.models.rollout import Rollout
from spiritlevel.models.sampling import Sampling
from spiritlevel.models.server import Body, Server, advise, checked_url
from spiritlevel.store import atomic_folder

# How far the server's log-probabilities may be from the policy's own, in nats a token, on average over the samples of a
# prompt. Two programs that round otherwise were up to 0.07 apart (SmolLM2-135M in bfloat16); another model is beyond.
MISMATCH = 0.2

_EXAMPLE = "Write its address, for example http://127.0.0.1:8000"
_START = (
    "Start it with: VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank RANK"
    " --logprobs-mode processed_logprobs"
)
_LOAD, _UNLOAD, _DRAW = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/completions"
# The whole distribution: what is left out is otherwise taken from the model's generation_config.json.
_PLAIN: Body = {"top_p": 1.0, "top_k": 0, "min_p": 0.0} | {
    "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
}  # fmt: skip


class VLLM:
    """A rollout engine. The server at `url` serves the policy's base; `docs/methods.md` has its command line.

    folder: for the adapters, of this engine alone; the server must find it under the same path. timeout: the longest
    wait for a reply, in seconds; a server that died is noticed at once. Raises SpiritLevelError if there is none.
    """

    def __init__(
        self, url: str, folder: Path, *, timeout: float = 3600.0, retries: int = 4, concurrency: int = 256
    ) -> None:
        self.folder = folder.resolve()
        self._server = Server(
            checked_url(url, example=_EXAMPLE).removesuffix("/v1"), kind="a vLLM server", remedy=self._remedy,
            timeout=timeout, retries=retries, concurrency=concurrency,
        )  # fmt: skip
        self._room = self._server.get("/v1/models", _room, wanted="the models of a vLLM server")
        self._model: LocalModel | None = None
        self._run, self._adapter = secrets.token_hex(4), ""

    def generate(
        self, prompts: Sequence[tuple[int, ...]], sampling: Sampling, *, seeds: Sequence[Sequence[int]]
    ) -> list[list[Rollout]]:
        """The same seeds give the same replies, but for near ties that fall otherwise when the server batches
        otherwise."""
        model = self._sent()
        if sampling.temperature <= 0 or sampling.top_p != 1.0:
            raise ValueError("rollouts are drawn from the whole distribution")
        self._check_room(max(map(len, prompts), default=0) + sampling.max_new_tokens)
        stop = model.stop_tokens
        bodies = [
            self._body(prompt, sampling, stop, seed) for prompt, own in zip(prompts, seeds, strict=True) for seed in own
        ]
        read = partial(_rollout, stop=stop, longest=sampling.max_new_tokens)
        drawn = iter(self._server.post_all(_DRAW, bodies, read, wanted="token ids with their log-probabilities"))
        rollouts = [list(islice(drawn, len(own))) for own in seeds]
        if rollouts and rollouts[0]:
            _compare(model, prompts[0], rollouts[0], sampling.temperature, where=self._server.url)
        return rollouts

    def logprobs(self, forks: Sequence[Fork], *, temperature: float) -> list[list[float]]:
        """By the model itself: vLLM knows no temperature for given tokens, and 0.32 on a CPU dies of the question when
        it serves adapters."""
        return self._sent().token_logprobs(forks, temperature=temperature)

    def update_weights(self, model: LocalModel) -> None:
        """Send the active adapter, under a new name: what the server has cached of prompts belongs to the old one."""
        self._model = model
        settings, weights = _adapter(model)
        name = f"spiritlevel-{self._run}-{hashlib.sha256(weights).hexdigest()[:12]}"
        if name == self._adapter:
            return
        with atomic_folder(self.folder / name) as made:
            settings.save_pretrained(made)
            (made / "adapter_model.safetensors").write_bytes(weights)
        # In place: a load whose answer was lost is asked for again.
        self._server.post(_LOAD, {"lora_name": name, "lora_path": str(self.folder / name), "load_inplace": True})
        self._drop_adapter()
        self._adapter = name

    def close(self) -> None:
        """The server forgets the adapter, if it is still there; the folder goes."""
        self._drop_adapter()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._server.close()

    def _sent(self) -> LocalModel:
        if self._model is None:
            raise ValueError("update_weights comes first")
        return self._model

    def _drop_adapter(self) -> None:
        if self._adapter:
            with suppress(httpx.HTTPError):
                self._server.client.post(self._server.url + _UNLOAD, json={"lora_name": self._adapter}, timeout=10.0)
            shutil.rmtree(self.folder / self._adapter, ignore_errors=True)
            self._adapter = ""

    def _body(self, prompt: Sequence[int], sampling: Sampling, stop: frozenset[int], seed: int) -> Body:
        return _PLAIN | {
            "model": self._adapter,
            "prompt": list(prompt),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "seed": seed % 2**63,  # it takes signed ones
            "logprobs": 0,
            "return_token_ids": True,
            "ignore_eos": True,  # only what the policy takes for an end is one
            "stop_token_ids": sorted(stop),
        }

    def _check_room(self, longest: int) -> None:
        if longest > self._room:
            raise SpiritLevelError(
                f"the longest prompt and its reply take {longest} tokens, and the server has room for {self._room}",
                where=self._server.url,
                remedy="Start the server with a larger --max-model-len, or draw shorter replies.",
            )

    def _remedy(self, response: httpx.Response) -> str:
        path = response.request.url.path
        if path.endswith(_LOAD):
            if str(self.folder) in response.text:
                return f"The server must see {self.folder} as this process does: choose --out on a disk that both have."
            return f"{_START}."
        if response.status_code == 404:
            lost = path.endswith(_DRAW)
            return "Has the server been started anew? Give the same command again." if lost else _EXAMPLE
        return advise(response)


def _room(answer: Any) -> int:
    """The tokens that the served base has room for."""
    served = [model for model in answer["data"] if model["owned_by"] == "vllm" and not model["parent"]]
    return int(served[0]["max_model_len"])


def _rollout(answer: Any, *, stop: frozenset[int], longest: int) -> Rollout:
    choice = answer["choices"][0]
    tokens, logprobs = tuple(map(int, choice["token_ids"])), tuple(map(float, choice["logprobs"]["token_logprobs"]))
    ended, finished = choice["finish_reason"], tokens[-1] in stop
    if len(tokens) != len(logprobs) or not all(map(isfinite, logprobs)):
        raise ValueError("a log-probability for each token")
    if (ended == "stop") != finished or (len(tokens) < longest and not finished):
        raise SpiritLevelError(
            f"the server ended a reply ({ended}) after {len(tokens)} of {longest} tokens, not with an end token",
            remedy=f"Does it serve the policy's base? Start it with --generation-config vllm too. {_START}.",
        )
    return Rollout(tokens, logprobs, finished)


def _adapter(model: LocalModel) -> tuple[Any, bytes]:
    """The settings and the weights of the active adapter, as peft writes them."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    if not hasattr(model.model, "peft_config"):
        raise SpiritLevelError("a vLLM server is sent adapters, and the model has none", where=model.name)
    name = model.model.active_adapter
    settings = model.model.peft_config[name]
    if settings.use_dora:
        raise SpiritLevelError(
            "vLLM does not serve DoRA", remedy="Choose --lora lora or rslora, or leave --engine out."
        )
    weights = get_peft_model_state_dict(model.model, adapter_name=name, save_embedding_layers=False)
    return settings, save({key: weight.detach().cpu().contiguous() for key, weight in weights.items()})


def _compare(
    model: LocalModel, prompt: tuple[int, ...], rollouts: Sequence[Rollout], temperature: float, *, where: str
) -> None:
    """Raises SpiritLevelError if these were not drawn from `model`, or have log-probabilities of another temperature:
    the ratio π/π_old would be wrong in every step."""
    fork = Fork(prompt, tuple(rollout.tokens for rollout in rollouts))
    theirs = [value for rollout in rollouts for value in rollout.logprobs]

    def distance(temperature: float) -> float:
        [ours] = model.token_logprobs([fork], temperature=temperature)
        return sum(abs(one - other) for one, other in zip(ours, theirs, strict=True)) / len(theirs)

    found = distance(temperature)
    if temperature != 1.0 and distance(1.0) < min(MISMATCH, found / 2):
        raise SpiritLevelError(
            f"the server's log-probabilities are those of temperature 1, and it draws at {temperature:g}",
            where=where,
            remedy=f"{_START}.",
        )
    if found > MISMATCH:
        raise SpiritLevelError(
            f"the server's log-probabilities are {found:.2f} nats a token from the policy's: it draws from another one",
            where=where,
            remedy=f"It must serve the base that is trained, {model.name}, in the same precision (--dtype).",
        )
