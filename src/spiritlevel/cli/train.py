"""spiritlevel train METHOD: one subcommand an objective."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from spiritlevel.cli.terminal import TerminalProgress, err
from spiritlevel.errors import SpiritLevelError

if TYPE_CHECKING:
    from spiritlevel.train import Objective

app = typer.Typer(help="Train a model on preference records, by one of these methods.", no_args_is_help=True)

DATA = typer.Option(..., "--data", help="Preference records: .jsonl or .parquet, TRL's columns.")
MODEL = typer.Option("smollm2-135m", help="smollm2-135m, a directory, or a hub id.")
OUT = typer.Option(..., "--out", help="Folder for the trained model, metrics and checkpoint.")
RATE = typer.Option(3e-4, "--lr", help="Peak learning rate (about ten times less for full weights).")
EPOCHS = typer.Option(3, min=1, help="Passes over the data.")
BATCH = typer.Option(8, min=1, help="Examples per optimiser step.")
BUDGET = typer.Option(2048, min=1, help="Most tokens in one forward pass; lower it if memory is short.")
LENGTH = typer.Option(2048, min=2, help="Longest example, in tokens; longer ones are an error, never cut.")
SCHEDULE = typer.Option("linear", help="linear, cosine or constant, after a warm-up over 10 % of the steps.")
RANK = typer.Option(16, min=0, help="LoRA rank; 0 trains all weights.")
MERGE = typer.Option(True, "--merge/--adapter", help="Write a whole model, or a PEFT adapter.")
SEED = typer.Option(0, help="Draws the order of the data and the adapter's start.")
BOARD = typer.Option(False, "--tensorboard", help="Also log for TensorBoard.")


@app.command()
def dpo(
    data: Path = DATA, model: str = MODEL, out: Path = OUT,
    beta: float = typer.Option(0.1, min=1e-6, help="How closely to stay to the reference."),
    nll_weight: float = typer.Option(1.0, min=0.0, help="Weight of the chosen replies' likelihood; 0: plain DPO."),
    opening_weight: float = typer.Option(1.0, min=0.0, help="How often a chosen reply's first 4 tokens count."),
    margin_tokens: int | None = typer.Option(
        None, min=1, help="How many first tokens of each reply the preference term reads. (default: all)"
    ),
    lr: float = RATE, epochs: int = EPOCHS, batch_size: int = BATCH, token_budget: int = BUDGET,
    max_length: int = LENGTH, schedule: str = SCHEDULE, rank: int = RANK, merge: bool = MERGE,
    seed: int = SEED, tensorboard: bool = BOARD,
) -> None:  # fmt: skip
    """Direct Preference Optimization (arXiv:2305.18290), with an NLL term on the chosen replies."""
    from spiritlevel.train import DPO

    _train(
        DPO(beta, nll_weight, opening_weight, margin_tokens), data, model, out, lr, epochs, batch_size, token_budget,
        max_length, schedule, rank, merge, seed, tensorboard,
    )  # fmt: skip


@app.command()
def sft(
    data: Path = DATA, model: str = MODEL, out: Path = OUT, lr: float = RATE, epochs: int = EPOCHS,
    batch_size: int = BATCH, token_budget: int = BUDGET, max_length: int = LENGTH, schedule: str = SCHEDULE,
    rank: int = RANK, merge: bool = MERGE, seed: int = SEED, tensorboard: bool = BOARD,
) -> None:  # fmt: skip
    """Supervised fine-tuning on the chosen replies; the loss is on completion tokens only."""
    from spiritlevel.train import SFT

    _train(
        SFT(), data, model, out, lr, epochs, batch_size, token_budget, max_length, schedule, rank, merge, seed,
        tensorboard,
    )  # fmt: skip


def _train(
    objective: Objective, data: Path, model: str, out: Path, lr: float, epochs: int, batch_size: int,
    token_budget: int, max_length: int, schedule: str, rank: int, merge: bool, seed: int, tensorboard: bool,
) -> None:  # fmt: skip
    if schedule not in ("linear", "cosine", "constant"):
        raise SpiritLevelError(f"there is no schedule {schedule!r}", remedy="Choose linear, cosine or constant.")
    if rank == 0 and not merge:
        raise SpiritLevelError(
            "`--rank 0` trains all weights, so there is no adapter to write",
            remedy="Leave `--adapter` out, or choose a rank above 0.",
        )
    from spiritlevel.data import read_preferences
    from spiritlevel.models import open_local
    from spiritlevel.store import ContentStore
    from spiritlevel.train import LoraSettings, TrainConfig, add_lora, prepare_examples, save_trained, train

    records = read_preferences(data)
    base = open_local(model)
    progress = TerminalProgress()
    config = TrainConfig(
        learning_rate=lr, epochs=epochs, batch_size=batch_size, token_budget=token_budget, max_length=max_length,
        schedule=schedule, seed=seed,  # type: ignore[arg-type]
    )  # fmt: skip
    with progress.stage("reference log-probabilities", len(records)) as advance:
        store = ContentStore(out / "store")
        examples = prepare_examples(base, objective, records, store=store, on_progress=advance)
    student = add_lora(base, LoraSettings(rank, 2 * rank), seed=seed) if rank else base
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
