"""spiritlevel train METHOD: one subcommand an objective, made from one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter, Signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import typer
import yaml

from spiritlevel.cli.training import train_on_records, train_on_rollouts
from spiritlevel.errors import SpiritLevelError

app = typer.Typer(
    help="Train a model on records of people's judgement, or on its own replies and their rewards.",
    no_args_is_help=True,
)


def _config(context: typer.Context, file: Path | None) -> Path | None:
    """Take the defaults from a YAML file: option names without dashes in front, `_` or `-` within."""
    if file is None:
        return None
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise SpiritLevelError(f"can't be read as YAML: {reason}", where=str(file)) from None
    if not isinstance(settings, dict):
        raise SpiritLevelError("holds no settings", where=str(file), remedy="Write one `option: value` a line.")
    settings = {str(name).replace("-", "_"): value for name, value in settings.items()}
    known = {parameter.name for parameter in context.command.params} - {"config"}
    if unknown := sorted(settings.keys() - known):
        raise SpiritLevelError(
            f"{unknown[0]} is no option of `spiritlevel train {context.info_name}`",
            where=str(file),
            remedy=f"The options are: {', '.join(sorted(known))}.",
        )
    context.default_map = settings
    return file


Options = dict[str, tuple[Any, Any]]

# The options of methods that learn from records: (type, option).
RECORDS: Options = {
    "data": (
        Path,
        typer.Option(..., "--data", help="Records of the method's kind, with TRL's columns: .jsonl or .parquet."),
    ),
    "validation": (
        Path | None,
        typer.Option(None, "--validation", help="Records that are not learnt from, to judge by after every epoch."),
    ),
    "epochs": (int, typer.Option(3, min=1, help="Passes over the data.")),
    "batch_size": (int, typer.Option(8, min=1, help="Examples per optimiser step.")),
    "shard": (
        bool,
        typer.Option(False, "--shard", help="Cut weights and optimiser state over the processes (FSDP2)."),
    ),
}

# The options of methods that learn from rollouts.
ROLLOUTS: Options = {
    "prompts": (
        Path,
        typer.Option(..., "--prompts", help="A .jsonl or .parquet file with `prompt`; or a charter: its train probes."),
    ),
    "reward": (
        str,
        typer.Option(..., "--reward", help="A reward model's folder, module:function, file.py:function, or a charter."),
    ),
    "iterations": (int, typer.Option(50, min=1, help="How often replies are drawn and learnt from.")),
    "prompts_each": (int, typer.Option(16, min=1, help="Prompts an iteration.")),
    "samples": (int, typer.Option(4, min=1, help="Replies drawn to each of them.")),
    "max_new_tokens": (int, typer.Option(64, min=1, help="The longest reply, in tokens.")),
    "temperature": (float, typer.Option(1.0, min=1e-3, help="Of the drawing; the same divides when scoring.")),
    "unfinished_reward": (
        float | None,
        typer.Option(None, help="The reward of a reply that was cut at its limit. (default: its score)"),
    ),
    "engine": (
        str | None,
        typer.Option(None, "--engine", help="The address of a vLLM server that draws them. (default: this process)"),
    ),
    "epochs": (int, typer.Option(1, min=1, help="Passes over an iteration's replies.")),
    "batch_size": (int, typer.Option(8, min=1, help="Prompts per optimiser step, with all their replies.")),
}

# The options that all methods have.
COMMON: Options = {
    "model": (str, typer.Option("smollm2-135m", help="smollm2-135m, a directory, or a hub id.")),
    "out": (Path, typer.Option(..., "--out", help="Folder for the trained model, metrics and checkpoint.")),
    "lr": (float, typer.Option(3e-4, "--lr", help="Peak learning rate (about ten times less for full weights).")),
    "token_budget": (
        int,
        typer.Option(2048, min=1, help="Most tokens in one forward pass; lower it if memory is short."),
    ),
    "max_length": (
        int,
        typer.Option(2048, min=2, help="Longest example, in tokens; longer ones are an error, never cut."),
    ),
    "schedule": (
        Literal["linear", "cosine", "constant"],
        typer.Option("linear", help="Of the learning rate, after a warm-up over 10 % of the steps."),
    ),
    "rank": (int, typer.Option(16, min=0, help="LoRA rank; 0 trains all weights.")),
    "lora": (
        Literal["lora", "rslora", "dora"],
        typer.Option("lora", "--lora", help="LoRA, rank-stabilised LoRA, or weight-decomposed LoRA (DoRA)."),
    ),
    "alpha": (
        int | None,
        typer.Option(None, min=1, help="LoRA's scale is alpha/rank, rsLoRA's alpha/√rank. (default: 2 rank; rsLoRA 8)"),
    ),
    "modules": (
        str,
        typer.Option("all-linear", help="Which linear modules get an adapter: all-linear, or names: q_proj,v_proj"),
    ),
    "checkpointing": (
        Literal["auto", "on", "off"],
        typer.Option(
            "auto", help="Compute activations twice to save memory; auto: where they would not fit, or --shard."
        ),
    ),
    "processes": (int, typer.Option(1, min=1, help="Processes on this machine that share the work.")),
    "merge": (bool, typer.Option(True, "--merge/--adapter", help="Write a whole model, or a PEFT adapter.")),
    "seed": (int, typer.Option(0, min=0, help="Draws the order of the data and the adapter's start.")),
    "tensorboard": (bool, typer.Option(False, "--tensorboard", help="Also log for TensorBoard.")),
    "config": (
        Path,
        typer.Option(
            None, "--config", is_eager=True, callback=_config, help="A YAML file of these options; flags go first."
        ),
    ),
}

# The options that only some methods have: (type, help, limits).
OWN: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "beta": (float, "Scale of the implicit reward: how soon a margin is won.", {"min": 1e-6}),
    "nll_weight": (float, "Weight of the chosen replies' mean token loss.", {"min": 0.0}),
    "opening_weight": (float, "How often a chosen reply's first 4 tokens count in it.", {"min": 0.0}),
    "margin_tokens": (
        int | None,
        "How many first tokens of each reply the preference term reads. (default: all)",
        {"min": 1},
    ),
    "flipped": (float, "The share of pairs taken to be labelled the wrong way round.", {"min": 0.0, "max": 0.5}),
    "average": (bool, "Log-ratios a token, or of whole replies.", {}),
    "gamma": (float, "By how much a pair is to be won.", {"min": 0.0}),
    "desirable_weight": (float, "Weight of good replies.", {"min": 0.0}),
    "undesirable_weight": (float, "Weight of bad replies.", {"min": 0.0}),
    "centre_weight": (float, "Weight of (s_chosen + s_rejected)², which keeps rewards near 0.", {"min": 0.0}),
    "kl_coefficient": (float, "Of the penalty for leaving the reference, in the reward.", {"min": 0.0}),
    "kl_target": (float | None, "The divergence of a reply that it is steered to. (default: it stays)", {"min": 1e-6}),
    "kl_gain": (
        float,
        "How fast: an iteration changes the penalty by at most a fifth of this share.",
        {"min": 1e-6},
    ),
    "kl_weight": (float, "Of the divergence from the reference, in the loss.", {"min": 0.0}),
    "clip": (float, "How far a ratio may fall, or for PPO move, in one iteration.", {"min": 1e-6, "max": 0.99}),
    "clip_above": (float, "How far a ratio may rise in one iteration (DAPO: 0.28).", {"min": 1e-6}),
    "decay": (float, "λ of the generalised advantages.", {"min": 0.0, "max": 1.0}),
    "value_weight": (float, "Weight of the value loss.", {"min": 0.0}),
    "whiten_rewards": (bool, "Give the rewards of an iteration variance 1.", {}),
    "mean": (Literal["token", "reply", "constant"], "What the loss is a mean over (DAPO, GRPO, Dr. GRPO).", {}),
    "ratio": (Literal["token", "reply"], "A ratio a token, or one a reply (GSPO).", {}),
    "scale": (bool, "Divide by the standard deviation of the group (Dr. GRPO: not).", {}),
}


@dataclass(frozen=True)
class Method:
    """A subcommand: its help, the objective's own options with their defaults, and what it learns from."""

    help: str
    options: dict[str, Any]
    shared: Options
    run: Callable[[str, dict[str, Any], SimpleNamespace], None]


def _on_records(text: str, **options: Any) -> Method:
    return Method(text, options, RECORDS, train_on_records)


def _on_pairs(text: str, **options: Any) -> Method:
    usual = {"beta": 0.1, "nll_weight": 0.0, "opening_weight": 1.0, "margin_tokens": None}
    return _on_records(text, **usual | options)


def _on_rollouts(text: str, **options: Any) -> Method:
    return Method(text, options, ROLLOUTS, train_on_rollouts)


METHODS = {
    "sft": _on_records(
        "Supervised fine-tuning on demonstrations or chosen replies; the loss is on completion tokens only."
    ),
    "reward": _on_records(
        "A reward model from pairs or rankings (Bradley-Terry; arXiv:2009.01325, arXiv:2203.02155).", centre_weight=0.0
    ),
    "dpo": _on_pairs(
        "Direct Preference Optimization (arXiv:2305.18290), with an NLL term on the chosen replies (arXiv:2404.19733).",
        nll_weight=1.0,
    ),
    "cdpo": _on_pairs("Conservative DPO: smoothed labels, for noisy ones (Mitchell 2023).", flipped=0.1),
    "robust-dpo": _on_pairs("Robust DPO: unbiased under label flips (arXiv:2403.00409).", flipped=0.1),
    "ipo": _on_pairs("Identity Preference Optimization: a margin to hit (arXiv:2310.12036).", average=True),
    "hinge": _on_pairs("Hinge loss on the margin, as in SLiC and RSO (arXiv:2309.06657)."),
    "simpo": _on_pairs(
        "Simple Preference Optimization: no reference, log-probabilities a token (arXiv:2405.14734).",
        beta=2.0,
        gamma=1.0,
    ),
    "cpo": _on_pairs(
        "Contrastive Preference Optimization: DPO without a reference, with an NLL term (arXiv:2401.08417).",
        nll_weight=1.0,
    ),
    "orpo": _on_pairs(
        "Odds Ratio Preference Optimization: SFT and preference in one, no reference (arXiv:2403.07691).",
        nll_weight=1.0,
    ),
    "kto": _on_records(
        "Kahneman-Tversky Optimization: single replies, each good or bad (arXiv:2402.01306).",
        beta=0.1,
        desirable_weight=1.0,
        undesirable_weight=1.0,
    ),
    "ppo": _on_rollouts(
        "Proximal Policy Optimization with a KL penalty and a value model (arXiv:1707.06347, arXiv:2009.01325).",
        kl_coefficient=0.05,
        kl_target=None,
        kl_gain=0.2,
        clip=0.2,
        decay=0.95,
        value_weight=0.1,
        whiten_rewards=False,
    ),
    "grpo": _on_rollouts(
        "Group Relative Policy Optimization (arXiv:2402.03300); Dr. GRPO, DAPO and GSPO by switches.",
        mean="token",
        ratio="token",
        scale=True,
        clip=0.2,
        clip_above=0.2,
        kl_weight=0.0,
    ),
    "rloo": _on_rollouts("REINFORCE with a leave-one-out baseline (arXiv:2402.14740).", kl_coefficient=0.05, clip=0.2),
}


def _command(name: str, method: Method) -> Callable[..., None]:
    """The function behind `spiritlevel train NAME`, with the signature that typer reads."""

    def command(**given: Any) -> None:
        own = {option: given.pop(option) for option in method.options}
        given.pop("config")
        method.run(name, own, SimpleNamespace(**given))

    parameters = {**method.shared, **COMMON}
    for option, default in method.options.items():
        kind, text, limits = OWN[option]
        parameters[option] = (kind, typer.Option(default, help=text, **limits))
    command.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            Parameter(option, Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for option, (kind, default) in parameters.items()
        ]
    )
    command.__annotations__ = {option: kind for option, (kind, _) in parameters.items()}
    command.__doc__ = method.help
    return command


for _name, _method in METHODS.items():
    app.command(_name)(_command(_name, _method))
