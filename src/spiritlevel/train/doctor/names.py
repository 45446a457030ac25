"""One vocabulary for the metrics of all trainers: ours, TRL's of every method and age, and their prefixes.

| canonical | unit |
| --- | --- |
| kl | policy against reference, nats, summed over a reply's tokens, mean of replies |
| entropy | nats a token |
| finished | share of sampled replies that ended by EOS |
| length | mean tokens of a sampled reply |
| groups_without_signal | share of groups whose rewards are all equal |
| reward_chosen, reward_rejected, margin | scores of a reward model, or implicit rewards times beta |
"""

from __future__ import annotations

from collections.abc import Mapping

# TRL 1.16 (trainer/*_trainer.py), its PPO up to 1.12, and the PPO of 0.11 and before, which LLaMA-Factory still uses.
# A name that is canonical already, or known to nobody, stays what it is.
CANONICAL: dict[str, str] = {
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "logps/chosen": "logprob_chosen",
    "logps/rejected": "logprob_rejected",
    "nll_loss": "nll",
    "mean_token_accuracy": "token_accuracy",
    "frac_reward_zero_std": "groups_without_signal",
    "completions/mean_length": "length",
    "clip_ratio/region_mean": "clip_fraction",
    "clip_ratio": "clip_fraction",
    "sampling/importance_sampling_ratio/mean": "sampling_ratio",
    "objective/scores": "reward",
    "objective/kl": "kl",
    "objective/kl_coef": "kl_coefficient",
    "policy/clipfrac_avg": "clip_fraction",
    "policy/entropy_avg": "entropy",
    "loss/value_avg": "value_loss",
    "val/ratio": "ratio",
    "lr": "learning_rate",
    "ppo/mean_scores": "reward",
    "env/reward_mean": "reward",
    "ppo/policy/clipfrac": "clip_fraction",
    "ppo/policy/entropy": "entropy",
    "ppo/loss/value": "value_loss",
    "ppo/val/var_explained": "value_explained_variance",
    "ppo/learning_rate": "learning_rate",
    "tokens/responses_len_mean": "length",
}
STEPS = ("step", "global_step", "_step", "train/global_step", "episode")
# Of the rollouts of an iteration; our log repeats them at each step that learns from these.
OF_ROLLOUTS = frozenset(
    ("reward", "reward_std", "kl", "kl_coefficient", "entropy", "length", "finished", "groups_without_signal",
     "value_explained_variance")
)  # fmt: skip
_VALIDATION = ("eval_", "eval/", "validation/")


def canonical(row: Mapping[str, float]) -> dict[str, tuple[str, float]]:
    """canonical name -> (name in the log, value), of one row of a log."""
    found: dict[str, tuple[str, float]] = {}
    for name, value in row.items():
        found[_rename(name)] = (name, value)
    _derive(row, found)
    return found


def _rename(name: str) -> str:
    name = name.removeprefix("train/")
    for prefix in _VALIDATION:
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            return f"validation_{CANONICAL.get(name, name)}"
    return CANONICAL.get(name, name)


def _derive(row: Mapping[str, float], found: dict[str, tuple[str, float]]) -> None:
    """What TRL logs in another unit."""
    plain = {name.removeprefix("train/"): (name, value) for name, value in row.items()}
    if "completions/clipped_ratio" in plain:
        name, cut = plain["completions/clipped_ratio"]
        found["finished"] = (name, 1 - cut)
    if "val/num_eos_tokens" in plain:  # a count of no known whole: an upper bound
        name, count = plain["val/num_eos_tokens"]
        found["finished"] = (name, min(count, 1.0))
    if "kl" in plain and "completions/mean_length" in plain:  # GRPO's and RLOO's is the mean of all tokens
        name, a_token = plain["kl"]
        found["kl"] = (name, a_token * plain["completions/mean_length"][1])
