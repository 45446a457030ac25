"""AdamW that trains low-precision weights through float32 master copies.

The model computes in its own dtype and no weight is ever cast in a forward pass; updates smaller than a
bfloat16 step add up in the masters instead of being lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import cos, pi
from typing import Any, Literal

import torch
from torch import nn

from spiritlevel.train.sharding import cut_like, joined

Schedule = Literal["linear", "cosine", "constant"]


class MasterAdamW:
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101) over float32 (or float64) masters of `parameters`."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, weight_decay: float = 0.0, eps: float = 1e-8) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.masters = [
            parameter if parameter.dtype in (torch.float32, torch.float64) else nn.Parameter(parameter.detach().float())
            for parameter in self.parameters
        ]
        self.adam = torch.optim.AdamW(self.masters, lr=0.0, weight_decay=weight_decay, eps=eps)

    def step(self, learning_rate: float, max_grad_norm: float) -> float:
        """Clip the gradients to a global norm, update, write back. Returns the norm before clipping."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            if master is not parameter:
                master.grad = None if parameter.grad is None else parameter.grad.float()
        norm = joined(nn.utils.clip_grad_norm_(self.masters, max_grad_norm, error_if_nonfinite=False))
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        if torch.isfinite(norm):
            self.adam.step()
        with torch.no_grad():
            for parameter, master in zip(self.parameters, self.masters, strict=True):
                if master is not parameter:
                    parameter.copy_(master)
                parameter.grad = master.grad = None
        return float(norm)

    def state_dict(self) -> dict[str, Any]:
        return {"masters": [master.detach() for master in self.masters], "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """state: of whole tensors, whether these are sharded or not."""
        with torch.no_grad():
            for parameter, master, saved in zip(self.parameters, self.masters, state["masters"], strict=True):
                master.copy_(cut_like(saved, master))
                if master is not parameter:
                    parameter.copy_(master)
        for index, moments in state["adam"]["state"].items():
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name] = cut_like(moments[name], self.masters[index])
        self.adam.load_state_dict(state["adam"])


def learning_rate(step: int, steps: int, *, peak: float, warmup: float, schedule: Schedule) -> float:
    """The rate of step 0 ... steps−1: linear warm-up over the share `warmup`, then the schedule down to 0."""
    warm = max(1, round(warmup * steps)) if warmup else 0
    if step < warm:
        return peak * (step + 1) / warm
    if schedule == "constant":
        return peak
    done = (step - warm) / max(1, steps - warm)
    return peak * (1 - done) if schedule == "linear" else peak * 0.5 * (1 + cos(pi * done))
