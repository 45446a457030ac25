"""Policy and value model on one base: two adapters and a value head, no second copy of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spiritlevel.models import Fork, LocalModel, lay_out_for, plan_batches, predicting_states, score_layout
from spiritlevel.train.adapters import LoraSettings, lora_config

POLICY, VALUE = "default", "value"


@dataclass(frozen=True)
class ActorCriticScores:
    """logprobs: log π of each scored token; values: V of the state it was drawn in; owner: its continuation."""

    logprobs: Float[Tensor, " scored"]
    values: Float[Tensor, " scored"]
    owner: Int[Tensor, " scored"]


class ActorCritic(LocalModel):
    """A model with a policy adapter (see `add_lora`) to which a value adapter and head are added.

    The head is zero at first, as in Ziegler et al. 2019 (arXiv:1909.08593).
    """

    @classmethod
    def on(cls, policy: LocalModel, settings: LoraSettings, *, seed: int) -> ActorCritic:
        peft = policy.model
        torch.manual_seed(seed)
        peft.add_adapter(VALUE, lora_config(policy, settings), autocast_adapter_dtype=False)
        width = peft.get_input_embeddings().weight.shape[1]
        peft.value_head = nn.Linear(width, 1, dtype=torch.promote_types(policy.dtype, torch.float32)).to(policy.device)
        nn.init.zeros_(peft.value_head.weight)
        nn.init.zeros_(peft.value_head.bias)
        _train_all(peft)
        return cls(peft, policy.tokenizer, name=policy.name)

    def score(self, forks: Sequence[Fork]) -> ActorCriticScores:  # type: ignore[override]
        layout = lay_out_for(self.model, forks, pad_token=self.pad_token)
        policy = score_layout(self.model, layout, self.temperature)
        with using_adapter(self.model, VALUE):
            values = self._values(predicting_states(self.model, layout))
        return ActorCriticScores(policy.logprobs, values, policy.owner)

    @torch.inference_mode()
    def values(self, forks: Sequence[Fork], *, token_budget: int = 4096) -> list[list[float]]:
        """V before every scored token of every fork, without gradients."""
        found: list[list[float]] = [[] for _ in forks]
        with using_adapter(self.model, VALUE):
            for batch in plan_batches([fork.length for fork in forks], token_budget):
                layout = lay_out_for(self.model, [forks[index] for index in batch], pad_token=self.pad_token)
                values = self._values(predicting_states(self.model, layout)).tolist()
                for index in batch:
                    found[index], values = values[: forks[index].scored], values[forks[index].scored :]
        return found

    def _values(self, states: Float[Tensor, "scored width"]) -> Float[Tensor, " scored"]:
        head = self.model.value_head
        return head(states.to(head.weight.dtype))[:, 0]  # type: ignore[no-any-return]


def policy_alone(model: LocalModel) -> LocalModel:
    """The policy as `save_trained` takes it: without the adapters that stand beside it, and without the value head."""
    for name in set(model.model.peft_config) - {POLICY}:
        model.model.delete_adapter(name)
    if hasattr(model.model, "value_head"):
        del model.model.value_head
    return LocalModel(model.model, model.tokenizer, name=model.name)


@contextmanager
def using_adapter(model: Any, name: str | None) -> Iterator[None]:
    """While this lasts the model computes with another adapter, or as its base (None). What is trained stays so."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = model.active_adapter
    try:
        if name is None:
            model.base_model.disable_adapter_layers()
        else:
            _activate(model, name, trained)
        yield
    finally:
        model.base_model.enable_adapter_layers()
        _activate(model, before, trained)


def _activate(model: Any, name: str, trained: Sequence[nn.Parameter]) -> None:
    model.set_adapter(name)
    for parameter in trained:  # peft takes the gradients of all others away
        parameter.requires_grad_(True)


def _train_all(peft: Any) -> None:
    for name, parameter in peft.named_parameters():
        if f".{POLICY}." in name or f".{VALUE}." in name or name.startswith("value_head"):
            parameter.requires_grad_(True)
