"""A reward model: the trunk of a language model with one linear unit, read at the last token of a reply."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spiritlevel.chat import Chat
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models.fork import Fork, plan_batches
from spiritlevel.models.local import LocalModel, load_weights
from spiritlevel.models.scoring import bare, lay_out_for, predicting_states

_SCALE = "reward.json"


class RewardModel(LocalModel):
    """A Hugging Face sequence classifier with one label, `score`. A reward is (score − mean) / std."""

    task_type = "SEQ_CLS"
    mean, std = 0.0, 1.0

    @classmethod
    def on(cls, base: LocalModel, *, seed: int) -> RewardModel:
        """A fresh head on the trunk of `base`, which it takes over, drawn from N(0, 1/(width+1)) as Stiennon et al.
        2020 (arXiv:2009.01325) do."""
        from transformers import AutoModelForSequenceClassification

        causal = base.model
        settings = causal.config.to_dict() | {"id2label": {0: "reward"}, "label2id": {"reward": 0}}
        config = type(causal.config).from_dict(settings)
        # transformers reads a score at the last token that is not padding: with a pad token that also ends replies it
        # reads one token too early.
        config.pad_token_id = _pad_token(base)
        base.tokenizer.pad_token_id = config.pad_token_id
        with torch.device("meta"):
            classifier: Any = AutoModelForSequenceClassification.from_config(config, dtype=base.dtype)  # type: ignore[no-untyped-call]
        setattr(classifier, classifier.base_model_prefix, causal.get_decoder())
        width = classifier.score.in_features
        draws = torch.randn(1, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        classifier.score.weight = nn.Parameter((draws / (width + 1) ** 0.5).to(base.device, base.dtype))
        return cls(classifier, base.tokenizer, name=base.name)

    @property
    def scale(self) -> dict[str, float]:
        return {"mean": self.mean, "std": self.std}

    def fork(self, chat: Chat, replies: Sequence[str]) -> Fork:
        return reward_fork(super().fork(chat, replies), self.pad_token)

    def score(self, forks: Sequence[Fork]) -> Float[Tensor, " replies"]:  # type: ignore[override]
        """The rewards of all replies of one micro-batch of `reward_fork`s, in float32, with gradients if enabled."""
        layout = lay_out_for(self.model, forks, pad_token=self.pad_token)
        states = predicting_states(self.model, layout)
        last = torch.bincount(layout.owner, minlength=layout.continuations).cumsum(0) - 1
        return self.read(states[last.to(states.device)])

    def read(self, states: Float[Tensor, "replies width"]) -> Float[Tensor, " replies"]:
        """The head on hidden states. It computes in float32: bfloat16 tells two rewards in 256 apart."""
        wide = torch.promote_types(states.dtype, torch.float32)
        scores = states.to(wide) @ self.head_weight().to(wide)[0]
        return (scores - self.mean) / self.std

    @torch.inference_mode()
    def rewards(
        self, forks: Sequence[Fork], *, token_budget: int = 4096, on_progress: Callable[[int], None] | None = None
    ) -> list[list[float]]:
        """The reward of every reply of every `reward_fork`, in order."""
        found: list[list[float]] = [[] for _ in forks]
        for batch in plan_batches([fork.length for fork in forks], token_budget):
            scores = self.score([forks[index] for index in batch]).tolist()
            for index in batch:
                count = len(forks[index].continuations)
                found[index], scores = scores[:count], scores[count:]
            if on_progress is not None:
                on_progress(len(batch))
        return found

    def normalise(self, rewards: Sequence[float]) -> None:
        """Shift and scale all rewards from now on so that these have mean 0 and standard deviation 1, as Ziegler et
        al. 2019 (arXiv:1909.08593) do before a policy learns from them."""
        values = torch.tensor(rewards, dtype=torch.float64)
        if len(values) < 2 or not float(values.std()) > 0:
            raise SpiritLevelError(
                "the reward model gives all replies the same reward",
                where=self.name,
                remedy="It has learnt nothing: look at its accuracy, and at the data.",
            )
        self.mean += self.std * float(values.mean())
        self.std *= float(values.std())

    def save_settings(self, folder: Path) -> None:
        super().save_settings(folder)
        (folder / _SCALE).write_text(json.dumps(self.scale))

    def read_scale(self, folder: Path) -> None:
        """Take mean and std from a saved reward model; without them rewards are plain scores."""
        if (folder / _SCALE).exists():
            scale = json.loads((folder / _SCALE).read_text())
            self.mean, self.std = float(scale["mean"]), float(scale["std"])

    def head_weight(self) -> Float[Tensor, "1 width"]:
        score = bare(self.model).score
        # peft keeps a trained copy of the head beside the base's.
        trained = getattr(score, "modules_to_save", None)
        weight: Tensor = (score if trained is None else trained[score.active_adapters[0]]).weight
        return weight


def reward_fork(fork: Fork, token: int) -> Fork:
    """The fork with one more token after each reply, so that the state *at* its last token is among those that predict.
    Which token does not matter: it takes no place and is never read."""
    return Fork(fork.prompt, tuple((*reply, token) for reply in fork.continuations))


def open_reward_model(folder: Path, *, dtype: str | None = None) -> RewardModel:
    """Load what `spiritlevel train reward` wrote, or any sequence classifier with one label, whose rewards are its
    scores. Raises SpiritLevelError if it is something else, such as a language model, which has no such head."""
    from transformers import AutoModelForSequenceClassification

    kind, task_type = AutoModelForSequenceClassification, RewardModel.task_type
    loaded = load_weights(folder, kind, task_type, dtype=dtype, num_labels=1)
    model = RewardModel(loaded.model, loaded.tokenizer, name=str(folder), folder=folder, base=loaded.base)
    model.read_scale(folder)
    return model


def _pad_token(model: LocalModel) -> int:
    """A token that no chat ends with: the tokenizer's, or else the first special one that is free."""
    special = (token for token, added in sorted(model.tokenizer.added_tokens_decoder.items()) if added.special)
    candidates = (model.tokenizer.pad_token_id, model.tokenizer.unk_token_id, *special)
    free = next((token for token in candidates if token is not None and token not in model.stop_tokens), None)
    if free is None:
        raise SpiritLevelError(
            "the tokenizer has no token to pad with: every special one ends a reply",
            where=model.name,
            remedy="Name a `pad_token` in tokenizer_config.json that is not the end token, such as an unused one.",
        )
    return int(free)
