"""The whole loop for one model and one charter: measure, make pairs, train, measure again, gate, report.

Every stage leaves its result and a run record in the output folder. A stage whose record matches its inputs
is not done again, and a stage that was killed goes on from what it kept; so a run may be killed anywhere,
and the same call ends with the same result.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from spiritlevel import checks, evals
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
from spiritlevel.models import LocalModel
from spiritlevel.store import (
    ContentStore,
    RunRecord,
    command_line,
    digest_file,
    digest_folder,
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
    open_base,
    prepare_examples,
    save_trained,
    train,
)

REPORT, PAGE = "report.json", "report.html"


class Progress(Protocol):
    """What the loop tells whoever watches: a stage begins, goes on, and how training stands."""

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Callable[[int], None]]: ...

    def done_before(self, name: str) -> None: ...

    def step(self, metrics: dict[str, float]) -> None: ...


@dataclass(frozen=True)
class AlignConfig:
    """The settings of a run; chosen on train probes and development questions of the accounting charter."""

    seed: int = 0
    max_new_tokens: int = 48
    contrast: ContrastConfig = field(default_factory=lambda: ContrastConfig(whole_wordings=20))
    objective: DPO = field(default_factory=lambda: DPO(beta=0.18, nll_weight=5.0, opening_weight=3.0, margin_tokens=6))
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
    run = _Run(charter, folder, config, progress)
    start = _Opened(model)
    before = run.measure("before", start, held_out)
    run.make_pairs(start, trained_on)
    run.train(start)
    aligned = _Opened(str(folder / "model"))
    after = run.measure("after", aligned, held_out)
    report = build_report(
        charter=charter,
        model={"name": model, "digest": start.digest},
        aligned={"path": str(folder / "model"), "digest": aligned.digest},
        before=(before.cases, before.perplexity),
        after=(after.cases, after.perplexity),
        training={
            "method": "DPO with an NLL term, LoRA",
            **_read_training(folder),
            "settings": _settings(config),
        },
        records=run.records,
        seed=config.seed,
        command=command_line(),
    )
    write_json(folder / REPORT, report)
    write_text(folder / PAGE, render_html(report))
    return report


@dataclass
class _Run:
    """The stages of one run, and the records of those that are done."""

    charter: Charter
    folder: Path
    config: AlignConfig
    progress: Progress
    records: list[RunRecord] = field(default_factory=list)

    @property
    def store(self) -> ContentStore:
        return ContentStore(self.folder / "store")

    def measure(self, when: Literal["before", "after"], opened: _Opened, probes: list[Probe]) -> Measurement:
        """Answer and judge the held-out probes, and score the neutral text."""
        tokens, output = self.config.max_new_tokens, f"{when}.json"

        def work() -> None:
            with self.progress.stage(f"measure {when}", len(probes)) as advance:
                model = opened.model
                cases = measure(
                    self.charter, probes, model, store=self.store, max_new_tokens=tokens, on_progress=advance
                )
                result = Measurement(cases, perplexity(model, neutral_passages()))
            write_json(self.folder / output, asdict(result))

        inputs = self._inputs(opened, probes) | {"max_new_tokens": tokens}
        self._stage(f"measure-{when}", inputs, (output,), work)
        return _load_measurement(self.folder / output)

    def make_pairs(self, opened: _Opened, probes: list[Probe]) -> None:
        config = self.config.contrast

        def work() -> None:
            with self.progress.stage("make preference pairs", contrast_workload(probes, config)) as advance:
                pairs, made = contrast_pairs(
                    self.charter, probes, opened.model, config, store=self.store, on_progress=advance
                )
            write_preferences(self.folder / "pairs.jsonl", pairs)
            write_json(self.folder / "pairs.report.json", {"pairs": made.pairs, "dropped": made.dropped})

        inputs = self._inputs(opened, probes) | {"settings": asdict(config)}
        self._stage("pairs", inputs, ("pairs.jsonl", "pairs.report.json"), work)

    def train(self, opened: _Opened) -> None:
        config, folder, progress = self.config, self.folder, self.progress

        def work() -> None:
            pairs = read_preferences(folder / "pairs.jsonl")
            base = opened.model
            with progress.stage("reference log-probabilities", len(pairs)) as advance:
                examples = prepare_examples(base, config.objective, pairs, store=self.store, on_progress=advance)
            student = add_lora(base, config.lora, seed=config.seed)
            opened.release()  # the adapter now lives inside its weights
            with progress.stage("train"):
                train(student, config.objective, examples, config.train, folder / "train", on_step=progress.step)
            for name in (REPORT, PAGE):  # they describe the model that is replaced
                (folder / name).unlink(missing_ok=True)
            save_trained(student, folder / "model", form="merged")

        inputs: dict[str, Any] = {
            "model": opened.digest,
            "pairs": digest_file(folder / "pairs.jsonl"),
            "settings": _settings(config),
        }
        self._stage("train", inputs, ("model", "train/metrics.jsonl"), work)
        (folder / "train" / "checkpoint.pt").unlink(missing_ok=True)  # only now does nothing need it

    def _inputs(self, opened: _Opened, probes: list[Probe]) -> dict[str, Any]:
        asked = digest_json([probe.model_dump() for probe in probes])
        return {"charter": self.charter.digest, "model": opened.digest, "probes": asked, "judge": _judge()}

    def _stage(self, name: str, inputs: dict[str, Any], outputs: tuple[str, ...], work: Callable[[], None]) -> None:
        record, worked = run_stage(self.folder, name, inputs, outputs, work)
        self.records.append(record)
        if not worked:
            self.progress.done_before(name)


class _Opened:
    """A model opened when it is first needed, and let go when it is trained; its digest stays known."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self._model: LocalModel | None = None

    @property
    def model(self) -> LocalModel:
        if self._model is None:
            self._model = open_base(self.spec)
        return self._model

    @cached_property
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


@cache
def _judge() -> str:
    """What judges, by its source and the neutral text: results of two judges must not be compared.

    When it has changed, a measurement is made again from the kept replies.
    """
    rooms = [Path(room.__file__ or "").parent for room in (checks, evals)]
    return digest_json([digest_folder(room, suffixes=(".py", ".txt")) for room in rooms])


def _settings(config: AlignConfig) -> dict[str, Any]:
    settings = {
        "seed": config.seed,
        **asdict(config.objective),
        **asdict(config.train),
        **asdict(config.lora),
    }
    settings.pop("save_seconds")
    return settings | {f"pairs: {name}": value for name, value in asdict(config.contrast).items() if name != "seed"}


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
