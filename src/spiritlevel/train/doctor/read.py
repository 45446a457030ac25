"""Metrics from where trainers leave them: our `metrics.jsonl`, TRL's `trainer_state.json`, any JSONL of logs,
TensorBoard's event files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from spiritlevel.errors import SpiritLevelError
from spiritlevel.store import read_json, read_jsonl
from spiritlevel.train.doctor.curve import Curve, Run
from spiritlevel.train.doctor.names import OF_ROLLOUTS, STEPS, canonical

_LOGS = ("metrics.jsonl", "train/metrics.jsonl", "trainer_state.json", "log_history.json", "log.jsonl", "logs.jsonl")
_EVENTS = "events.out.tfevents.*"
_REMEDY = (
    "Name a run's folder (of `spiritlevel align` or `train`, or TRL's output_dir), a trainer_state.json, a JSONL file "
    "with one log a line, or a TensorBoard event file. A run writes its first metrics with its first checkpoint."
)


def read_run(path: Path) -> Run:
    """The curves of a run, from its folder or from one file.

    In a folder, the first of: our metrics.jsonl (also in `train/`), TRL's trainer_state.json, log_history.json,
    log.jsonl, logs.jsonl, the furthest checkpoint's trainer_state.json, TensorBoard's event files. Raises
    SpiritLevelError that says what may be named.
    """
    source = _find(path) if path.is_dir() else path
    if source.is_dir() or source.name.startswith("events.out.tfevents"):
        rows = _read_events(source)
    elif source.suffix == ".jsonl":
        rows = _objects(source, read_jsonl(source))
    else:
        rows = _read_state(source)
    run = read_rows(rows)
    if not run.curves:
        raise SpiritLevelError("holds no metrics", where=str(source), remedy=_REMEDY)
    return replace(run, settings=_settings(path if path.is_dir() else path.parent), source=str(source))


def read_rows(rows: Iterable[Mapping[str, Any]]) -> Run:
    """The curves of logs in order, such as what `train` returns; of their values only numbers are read.

    Where a step was logged twice, as after a restart, the later log holds; a log without a step has its place as one.
    What is of an iteration's rollouts is one point, at the first of its steps: repeats are no evidence.
    """
    points: dict[str, dict[float, float]] = {}
    last: dict[str, tuple[float, float]] = {}
    logged_as: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        numbers = {name: float(value) for name, value in row.items() if _is_number(value)}
        step = next((numbers[name] for name in STEPS if name in numbers), float(number))
        iteration = numbers.get("iteration")
        for name, (logged, value) in canonical(numbers).items():
            if name in STEPS:
                continue
            if iteration is not None and name in OF_ROLLOUTS:
                if last.get(name) == (iteration, value):
                    continue
                last[name] = (iteration, value)
            points.setdefault(name, {})[step] = value
            logged_as[name] = logged
    curves = {name: Curve(*zip(*sorted(curve.items()), strict=True)) for name, curve in points.items()}
    return Run(curves, logged_as)


def _find(folder: Path) -> Path:
    for name in _LOGS:
        if (folder / name).is_file():
            return folder / name
    states = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda state: _number(state.parent.name))
    if states:
        return states[-1]
    if next(folder.rglob(_EVENTS), None) is not None:
        return folder
    raise SpiritLevelError("there are no metrics in this folder", where=str(folder), remedy=_REMEDY)


def _number(name: str) -> int:
    digits = name.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else -1


def _read_state(path: Path) -> list[Mapping[str, Any]]:
    """The log of a transformers Trainer, or a list of logs."""
    document = read_json(path)
    history = document.get("log_history") if isinstance(document, dict) else document
    if not isinstance(history, list):
        raise SpiritLevelError("is no log of a training: it has no `log_history`", where=str(path), remedy=_REMEDY)
    return _objects(path, enumerate(history, start=1), "log_history")


def _objects(path: Path, rows: Iterable[tuple[int, Any]], field: str = "") -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for number, row in rows:
        if not isinstance(row, dict):
            place = f"{path}: {field}[{number - 1}]" if field else f"{path}:{number}"
            raise SpiritLevelError("a log must be a JSON object: names and numbers", where=place, remedy=_REMEDY)
        found.append(row)
    return found


def _read_events(path: Path) -> list[Mapping[str, Any]]:
    """Every scalar as a row of its own."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
            EventAccumulator,
        )
    except ImportError:
        raise SpiritLevelError(
            "TensorBoard is not installed, and these metrics are in its files",
            where=str(path),
            remedy="pip install 'spiritlevel[tensorboard]', or name another log of the run.",
        ) from None
    rows: list[Mapping[str, Any]] = []
    for file in sorted(path.rglob(_EVENTS)) if path.is_dir() else [path]:
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            rows += [{"step": event.step, tag: event.value} for event in events.Scalars(tag)]
    return _joined(rows)


def _joined(rows: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One row a step."""
    by_step: dict[float, dict[str, Any]] = {}
    for row in rows:
        by_step.setdefault(row["step"], {}).update(row)
    return list(by_step.values())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _settings(folder: Path) -> dict[str, Any]:
    """What `spiritlevel align` recorded of its training, if this is such a run."""
    for place in (folder, folder.parent):
        record = place / "runs" / "train.json"
        if record.is_file():
            try:
                settings = json.loads(record.read_text(encoding="utf-8"))["inputs"]["settings"]
            except (OSError, ValueError, KeyError, TypeError):
                return {}
            return settings if isinstance(settings, dict) else {}
    return {}
