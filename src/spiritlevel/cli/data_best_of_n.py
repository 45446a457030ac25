"""spiritlevel data best-of-n: draw replies, keep the best by a reward."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from rich.markup import escape
from rich.table import Table

from spiritlevel.cli.terminal import TerminalProgress, out
from spiritlevel.errors import SpiritLevelError


def best_of_n(
    prompts: Path = typer.Option(..., "--prompts", help="A file with `prompt`, or a charter: its train probes."),
    reward: str = typer.Option(..., "--reward", help="A reward model's folder, file.py:function, or a charter."),
    output: Path = typer.Option(..., "--out", help="A .jsonl or .parquet file."),
    model: str = typer.Option("smollm2-135m", help="The model that draws."),
    n: int = typer.Option(8, "--n", min=2, help="Replies drawn to each prompt."),
    pairs: bool = typer.Option(False, "--pairs", help="Write (best > worst) as preferences, not the best alone."),
    at_least: float | None = typer.Option(None, help="Keep only replies with this reward (rejection sampling)."),
    max_new_tokens: int = typer.Option(64, min=1, help="The longest reply, in tokens."),
    temperature: float = typer.Option(1.0, min=1e-3),
    seed: int = typer.Option(0),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable output."),
) -> None:
    """Draw n replies to each prompt and keep the best by a reward, to train on; says what best of n is worth."""
    from spiritlevel.cli.training import open_reward, read_chats
    from spiritlevel.data import check_writable, write_records
    from spiritlevel.models import Sampling, open_local
    from spiritlevel.train import best_of_n_kl, best_of_n_value, best_records, draw_rewarded

    check_writable(output)
    chats = read_chats(prompts)
    opened = open_local(model)
    source = open_reward(reward, opened, base=opened)
    sampling = Sampling(max_new_tokens, temperature)
    with TerminalProgress().stage("draw replies", n * len(chats)) as advance:
        drawn = draw_rewarded(opened, chats, source, sampling, samples=n, seed=seed, on_progress=advance)
    records = best_records(drawn, pairs=pairs, at_least=at_least, author=model, reward=reward)
    if not records:
        raise SpiritLevelError(
            "no prompt gave a record",
            where=str(prompts),
            remedy="All replies have the same reward, or none reaches --at-least: look at the reward.",
        )
    write_records(output, records)
    values = [[score for _, score in replies] for replies in drawn]
    curve = {
        k: (best_of_n_kl(k), sum(best_of_n_value(row, row, k) for row in values) / len(values))
        for k in sorted({1, *(2**power for power in range(1, n.bit_length()) if 2**power <= n), n})
    }
    if as_json:
        rows = [{"n": k, "kl_bound": kl, "reward": mean} for k, (kl, mean) in curve.items()]
        out.print_json(json.dumps({"prompts": len(chats), "records": len(records), "best_of": rows}))
        return
    title = escape(f"{len(records)} records of {len(chats)} prompts in {output}")
    table = Table("best of", "mean reward", "divergence, at most (nats)", title=title)
    for k, (kl, mean) in curve.items():
        table.add_row(str(k), f"{mean:.3f}", f"{kl:.2f}")
    out.print(table)
