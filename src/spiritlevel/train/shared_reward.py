"""A reward model as one more adapter beside the policy's: no second copy of the base in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import Fork, LocalModel, RewardModel, model_folder
from spiritlevel.models.local import check_task_type
from spiritlevel.store import read_json
from spiritlevel.train.actor_critic import using_adapter

REWARD = "reward"


class SharedReward(RewardModel):
    """Scores with the adapter "reward" and its head, on the base that the policy has too."""

    head: Tensor

    @classmethod
    def beside(cls, policy: LocalModel, base: Path, folder: Path) -> SharedReward:
        """The reward adapter of `folder` on the model of `policy`, whose own base came from the directory `base`.

        Raises SpiritLevelError if it is no reward model's, or was trained on another base.
        """
        from peft import LoraConfig, set_peft_model_state_dict

        settings = read_json(folder / "adapter_config.json")
        check_task_type(settings, cls.task_type, folder)
        trained_on = model_folder(settings["base_model_name_or_path"])
        if trained_on.resolve() != base.resolve():
            raise SpiritLevelError(
                f"the reward adapter was trained on another base, {trained_on}",
                where=str(folder),
                remedy="Train it on the policy's base, or write it merged (without --adapter).",
            )
        weights = load_file(folder / "adapter_model.safetensors")
        config = LoraConfig(**settings | {"task_type": policy.task_type, "modules_to_save": None})
        policy.model.add_adapter(REWARD, config, autocast_adapter_dtype=False)
        set_peft_model_state_dict(policy.model, {k: w for k, w in weights.items() if "lora_" in k}, REWARD)
        for name, parameter in policy.model.named_parameters():
            if f".{REWARD}." in name:
                parameter.requires_grad_(False)
        found = cls(policy.model, policy.tokenizer, name=str(folder), folder=folder, base=base)
        found.head = next(weight for name, weight in weights.items() if name.endswith("score.weight")).to(policy.device)
        found.read_scale(folder)
        return found

    def score(self, forks: Sequence[Fork]) -> Float[Tensor, " replies"]:  # type: ignore[override]
        with using_adapter(self.model, REWARD):
            return super().score(forks)

    def head_weight(self) -> Tensor:
        return self.head
