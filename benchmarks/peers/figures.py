"""What both sides of a comparison measure alike. Needs torch alone, since TRL's environment has nothing of ours."""

from __future__ import annotations

import resource
from typing import Any

import torch


def peak_gb() -> float:
    """The most memory that this process has held, in GB (1e9 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class TokenCount:
    """How many tokens, padding included, go through models: what their embeddings are asked for."""

    def __init__(self, *models: Any) -> None:
        self.tokens = 0
        for model in models:
            model.get_input_embeddings().register_forward_hook(self._count)

    def _count(self, module: torch.nn.Module, given: tuple[torch.Tensor, ...], found: Any) -> None:
        if type(given[0]) is torch.Tensor:  # an estimate of memory runs on fake ones
            self.tokens += given[0].numel()
