"""The whole loop for one model and one charter: measure, make pairs, train, measure again, gate, report.

Every stage leaves its result and a run record in the output folder. A stage whose record matches its inputs
is not done again, and a stage that was killed goes on from what it kept; so a run may be killed anywhere,
and the same call ends with the same result.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from spiritlevel.align.report import render_html
from spiritlevel.align.summary import build_report
from spiritlevel.charter import Charter, Probe, read_probes
from spiritlevel.checks.lint import require_sound
from spiritlevel.data import (
    ContrastConfig,
    contrast_pairs,
    contrast_workload,
    read_preferences,
    write_preferences,
)
from spiritlevel.errors import SpiritLevelError
from spiritlevel.evals import Case, Perplexity, measure, neutral_passages, perplexity
from spiritlevel.models import LocalModel, open_local
from spiritlevel.store import (
    ContentStore,
    RunRecord,
    digest_json,
    read_json,
    read_jsonl,
    run_stage,
    write_json,
    write_text,
)
from spiritlevel.train import (
    DPO,
    LoraSettings,
    TrainConfig,
    add_lora,
    prepare_examples,
    save_trained,
    train,
)


class Progress(Protocol):
    """What the loop tells whoever watches: a stage begins, goes on, and how training stands."""

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Callable[[int], None]]: ...

    def done_before(self, name: str) -> None: ...

    def step(self, metrics: dict[str, float]) -> None: ...


@dataclass(frozen=True)
class AlignConfig:
    """The settings of a run; the defaults were chosen on train probes of the accounting charter."""

    seed: int = 0
    max_new_tokens: int = 48
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    objective: DPO = field(default_factory=lambda: DPO(beta=0.1, nll_weight=5.0))
    lora: LoraSettings = field(default_factory=LoraSettings)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(learning_rate=2e-3, epochs=1, batch_size=4))

    def seeded(self, seed: int) -> AlignConfig:
        """The same with every random choice drawn from `seed`."""
        return replace(
            self, seed=seed, contrast=replace(self.contrast, seed=seed), train=replace(self.train, seed=seed)
        )


@dataclass(frozen=True)
class Measurement:
    """What a model did on the held-out probes and on neutral text."""

    cases: list[Case]
    perplexity: Perplexity


def align(charter: Charter, model: str, folder: Path, config: AlignConfig, progress: Progress) -> dict[str, Any]:
    """Run the loop and return the report, which is also written as report.json and report.html.

    Raises SpiritLevelError before anything is generated if the charter has errors or lacks probes.
    """
    held_out, trained_on = _probes(charter)
    store = ContentStore(folder / "store")
    opened = _Opened(model)
    base = {
        "charter": charter.digest,
        "model": opened.digest,
        "probes": digest_json([p.prompt for p in held_out]),
    }
    records: list[RunRecord] = []

    def stage(name: str, inputs: dict[str, Any], outputs: tuple[str, ...], work: Callable[[], None]) -> None:
        record, worked = run_stage(folder, name, inputs, outputs, work)
        records.append(record)
        if not worked:
            progress.done_before(name)

    def measuring(spec: _Opened, output: str, label: str) -> Callable[[], None]:
        def work() -> None:
            with progress.stage(label, len(held_out)) as advance:
                result = _measure(charter, held_out, spec.model, store, config, advance)
            write_json(folder / output, asdict(result))

        return work

    settings = {"max_new_tokens": config.max_new_tokens}
    stage(
        "measure-before",
        base | settings,
        ("before.json",),
        measuring(opened, "before.json", "measure before"),
    )

    def make_pairs() -> None:
        total = contrast_workload(trained_on, config.contrast)
        with progress.stage("make preference pairs", total) as advance:
            pairs, made = contrast_pairs(
                charter, trained_on, opened.model, config.contrast, store=store, on_progress=advance
            )
        write_preferences(folder / "pairs.jsonl", pairs)
        write_json(folder / "pairs.report.json", {"pairs": made.pairs, "dropped": made.dropped})

    inputs = {"charter": charter.digest, "model": opened.digest, "settings": asdict(config.contrast)}
    inputs["probes"] = digest_json([probe.model_dump() for probe in trained_on])
    stage("pairs", inputs, ("pairs.jsonl", "pairs.report.json"), make_pairs)

    def train_adapter() -> None:
        _train(opened, folder, store, config, progress)

    train_inputs: dict[str, Any] = {
        "model": opened.digest,
        "pairs": records[-1].outputs["pairs.jsonl"],
        "settings": _settings(config),
    }
    stage("train", train_inputs, ("model", "train/metrics.jsonl"), train_adapter)

    aligned = _Opened(str(folder / "model"))
    stage(
        "measure-after",
        base | settings | {"model": aligned.digest},
        ("after.json",),
        measuring(aligned, "after.json", "measure after"),
    )

    before, after = (_load_measurement(folder / name) for name in ("before.json", "after.json"))
    report = build_report(
        charter=charter,
        model={"name": model, "digest": opened.digest},
        aligned={"path": str(folder / "model"), "digest": aligned.digest},
        before=(before.cases, before.perplexity),
        after=(after.cases, after.perplexity),
        training={
            "method": f"DPO (beta {config.objective.beta:g}) + {config.objective.nll_weight:g} NLL, LoRA",
            **_read_training(folder),
            "settings": _settings(config),
        },
        records=records,
        seed=config.seed,
        command=" ".join(sys.argv),
    )
    write_json(folder / "report.json", report)
    write_text(folder / "report.html", render_html(report))
    return report


class _Opened:
    """A model opened only when a stage really needs it; its digest is known without that."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self._model: LocalModel | None = None

    @property
    def model(self) -> LocalModel:
        if self._model is None:
            self._model = open_local(self.spec)
        return self._model

    @property
    def digest(self) -> str:
        return self.model.digest

    def release(self) -> None:
        self._model = None


def _probes(charter: Charter) -> tuple[list[Probe], list[Probe]]:
    """The held-out and the train probes of a charter that is fit to be used."""
    require_sound(charter)
    held_out, trained_on = read_probes(charter, "held_out"), read_probes(charter, "train")
    for half, probes in (("held_out", held_out), ("train", trained_on)):
        if not probes:
            raise SpiritLevelError(
                f"the charter has no {half} probes",
                where=str(charter.path),
                remedy=f"List JSONL files in probes.{half}.",
            )
    return held_out, trained_on


def _measure(
    charter: Charter,
    probes: list[Probe],
    model: LocalModel,
    store: ContentStore,
    config: AlignConfig,
    advance: Callable[[int], None],
) -> Measurement:
    cases = measure(charter, probes, model, store=store, max_new_tokens=config.max_new_tokens, on_progress=advance)
    return Measurement(cases, perplexity(model, neutral_passages()))


def _train(opened: _Opened, folder: Path, store: ContentStore, config: AlignConfig, progress: Progress) -> None:
    pairs = read_preferences(folder / "pairs.jsonl")
    base = opened.model
    with progress.stage("reference log-probabilities", len(pairs)) as advance:
        examples = prepare_examples(base, config.objective, pairs, store=store, on_progress=advance)
    student = add_lora(base, config.lora, seed=config.seed)
    opened.release()  # the adapter now lives inside its weights
    with progress.stage("train", None):
        train(student, config.objective, examples, config.train, folder / "train", on_step=progress.step)
    save_trained(student, folder / "model", form="merged")
    (folder / "train" / "checkpoint.pt").unlink(missing_ok=True)


def _settings(config: AlignConfig) -> dict[str, Any]:
    settings = {
        "seed": config.seed,
        **asdict(config.objective),
        **asdict(config.train),
        **asdict(config.lora),
    }
    settings.pop("save_seconds")
    return settings


def _load_measurement(path: Path) -> Measurement:
    document = read_json(path)
    cases = [Case(**{**row, "findings": tuple(row["findings"])}) for row in document["cases"]]
    parts = document["perplexity"]
    return Measurement(cases, Perplexity(parts["value"], tuple((nats, count) for nats, count in parts["passages"])))


def _read_training(folder: Path) -> dict[str, Any]:
    made = read_json(folder / "pairs.report.json")
    history = [row for _, row in read_jsonl(folder / "train" / "metrics.jsonl")]
    count = sum(sum(sources.values()) for sources in made["pairs"].values())
    return {"pairs": count, "sources": made["pairs"], "dropped": made["dropped"], "history": history}
