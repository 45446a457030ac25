"""spiritlevel train METHOD: one subcommand an objective, made from one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer
import yaml

from spiritlevel.cli.terminal import TerminalProgress, err
from spiritlevel.errors import SpiritLevelError

if TYPE_CHECKING:
    from spiritlevel.train import Checkpointing, LoraSettings, LoraVariant

app = typer.Typer(help="Train a model on preference records, by one of these methods.", no_args_is_help=True)


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


# The options that all methods have: (type, option).
COMMON: dict[str, tuple[Any, Any]] = {
    "data": (Path, typer.Option(..., "--data", help="Preference records: .jsonl or .parquet, TRL's columns.")),
    "model": (str, typer.Option("smollm2-135m", help="smollm2-135m, a directory, or a hub id.")),
    "out": (Path, typer.Option(..., "--out", help="Folder for the trained model, metrics and checkpoint.")),
    "lr": (float, typer.Option(3e-4, "--lr", help="Peak learning rate (about ten times less for full weights).")),
    "epochs": (int, typer.Option(3, min=1, help="Passes over the data.")),
    "batch_size": (int, typer.Option(8, min=1, help="Examples per optimiser step.")),
    "token_budget": (
        int,
        typer.Option(2048, min=1, help="Most tokens in one forward pass; lower it if memory is short."),
    ),
    "max_length": (
        int,
        typer.Option(2048, min=2, help="Longest example, in tokens; longer ones are an error, never cut."),
    ),
    "schedule": (
        str,
        typer.Option("linear", help="linear, cosine or constant, after a warm-up over 10 % of the steps."),
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
        typer.Option("auto", help="Compute activations twice to save memory; auto: only where they would not fit."),
    ),
    "merge": (bool, typer.Option(True, "--merge/--adapter", help="Write a whole model, or a PEFT adapter.")),
    "seed": (int, typer.Option(0, help="Draws the order of the data and the adapter's start.")),
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
}


@dataclass(frozen=True)
class Method:
    """A subcommand: its help, and the objective's own options with their defaults."""

    help: str
    options: dict[str, Any]


_PAIRWISE = {"beta": 0.1, "nll_weight": 0.0, "opening_weight": 1.0, "margin_tokens": None}
METHODS = {
    "sft": Method("Supervised fine-tuning on the chosen replies; the loss is on completion tokens only.", {}),
    "dpo": Method(
        "Direct Preference Optimization (arXiv:2305.18290), with an NLL term on the chosen replies (arXiv:2404.19733).",
        _PAIRWISE | {"nll_weight": 1.0},
    ),
    "cdpo": Method("Conservative DPO: smoothed labels, for noisy ones (Mitchell 2023).", _PAIRWISE | {"flipped": 0.1}),
    "robust-dpo": Method("Robust DPO: unbiased under label flips (arXiv:2403.00409).", _PAIRWISE | {"flipped": 0.1}),
    "ipo": Method(
        "Identity Preference Optimization: a margin to hit (arXiv:2310.12036).", _PAIRWISE | {"average": True}
    ),
    "hinge": Method("Hinge loss on the margin, as in SLiC and RSO (arXiv:2309.06657).", _PAIRWISE),
    "simpo": Method(
        "Simple Preference Optimization: no reference, log-probabilities a token (arXiv:2405.14734).",
        _PAIRWISE | {"beta": 2.0, "gamma": 1.0},
    ),
    "cpo": Method(
        "Contrastive Preference Optimization: DPO without a reference, with an NLL term (arXiv:2401.08417).",
        _PAIRWISE | {"nll_weight": 1.0},
    ),
    "orpo": Method(
        "Odds Ratio Preference Optimization: SFT and preference in one, no reference (arXiv:2403.07691).",
        _PAIRWISE | {"nll_weight": 1.0},
    ),
}


def _command(name: str, method: Method) -> Callable[..., None]:
    """The function behind `spiritlevel train NAME`, with the signature that typer reads."""

    def command(**given: Any) -> None:
        own = {option: given.pop(option) for option in method.options}
        given.pop("config")
        _train(name, own, **given)

    parameters = {**COMMON}
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


def _train(
    method: str, own: dict[str, Any], *, data: Path, model: str, out: Path, lr: float, epochs: int, batch_size: int,
    token_budget: int, max_length: int, schedule: str, rank: int, lora: LoraVariant, alpha: int | None, modules: str,
    checkpointing: Checkpointing, merge: bool, seed: int, tensorboard: bool,
) -> None:  # fmt: skip
    if schedule not in ("linear", "cosine", "constant"):
        raise SpiritLevelError(f"there is no schedule {schedule!r}", remedy="Choose linear, cosine or constant.")
    if rank == 0 and not merge:
        raise SpiritLevelError(
            "`--rank 0` trains all weights, so there is no adapter to write",
            remedy="Leave `--adapter` out, or choose a rank above 0.",
        )
    if rank == 0 and (lora, alpha, modules) != ("lora", None, "all-linear"):
        raise SpiritLevelError(
            "`--rank 0` trains all weights, so there is no adapter to set up",
            remedy="Leave `--lora`, `--alpha` and `--modules` out, or choose a rank above 0.",
        )
    from spiritlevel.data import read_preferences
    from spiritlevel.models import open_local
    from spiritlevel.store import ContentStore
    from spiritlevel.train import (
        OBJECTIVES,
        TrainConfig,
        add_lora,
        prepare_examples,
        save_trained,
        train,
    )

    objective = OBJECTIVES[method](**own)
    records = read_preferences(data)
    base = open_local(model)
    progress = TerminalProgress()
    config = TrainConfig(
        learning_rate=lr, epochs=epochs, batch_size=batch_size, token_budget=token_budget, max_length=max_length,
        schedule=schedule, seed=seed, checkpointing=checkpointing,  # type: ignore[arg-type]
    )  # fmt: skip
    with progress.stage("reference log-probabilities", len(records)) as advance:
        store = ContentStore(out / "store")
        examples = prepare_examples(base, objective, records, store=store, on_progress=advance)
    student = add_lora(base, _lora_settings(rank, lora, alpha, modules), seed=seed) if rank else base
    write_board = _tensorboard(out) if tensorboard else None

    def on_step(metrics: dict[str, float]) -> None:
        progress.step(metrics)
        if write_board is not None:
            write_board(metrics)

    with progress.stage(f"train {objective.name}"):
        train(student, objective, examples, config, out, on_step=on_step)
    save_trained(student, out / "model", form="merged" if merge else "adapter")
    wrote = f"wrote {out / 'model'}; try it: spiritlevel chat --model {out / 'model'}"
    err.print(wrote, markup=False, soft_wrap=True)


def _lora_settings(rank: int, variant: LoraVariant, alpha: int | None, modules: str) -> LoraSettings:
    from spiritlevel.train import LoraSettings

    # At rank 16 both scales are 2; LoRA's stays so, rsLoRA's falls with √rank.
    usual = 8 if variant == "rslora" else 2 * rank
    names = tuple(name.strip() for name in modules.split(","))
    return LoraSettings(rank, alpha or usual, "all-linear" if modules == "all-linear" else names, variant)


def _tensorboard(folder: Path):  # type: ignore[no-untyped-def]
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise SpiritLevelError(
            "TensorBoard is not installed",
            remedy="pip install 'spiritlevel[tensorboard]', or leave the flag out.",
        ) from None
    writer = SummaryWriter(folder / "tensorboard")

    def write(metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            if name not in ("step", "steps"):
                writer.add_scalar(f"train/{name}", value, int(metrics["step"]))
        writer.flush()

    return write
