"""Nothing half-written is ever read, and a stage is done exactly once."""

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from small_disk import fill, small_disk
from spiritlevel.errors import SpiritLevelError
from spiritlevel.store import (
    ContentStore,
    atomic_folder,
    atomic_path,
    compute_missing,
    digest_folder,
    digest_json,
    read_json,
    read_jsonl,
    run_stage,
    write_jsonl,
    write_text,
)
from tiny import build_tokenizer


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_digest_ignores_the_order_of_keys(value):
    assert digest_json(value) == digest_json(dict(reversed(value.items())))


@given(st.lists(json_values, max_size=5))
def test_jsonl_reads_what_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("jsonl") / "rows.jsonl"
    write_jsonl(path, rows)
    assert [row for _, row in read_jsonl(path)] == rows


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "folder"
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("1")
    with pytest.raises(RuntimeError), atomic_folder(path) as temporary:
        (temporary / "b").write_text("2")
        raise RuntimeError
    assert names(path) == ["a"]
    with atomic_folder(path) as temporary:
        (temporary / "c").write_text("3")
    assert names(path) == ["c"]
    assert names(tmp_path) == ["folder"]


WEIGHTS = {"weight": torch.ones(10_000)}


def save_through_python(path: Path) -> None:
    with path.open("wb") as file:
        torch.save(WEIGHTS, file)


@pytest.mark.parametrize("atomic", [atomic_path, atomic_folder])
@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("x" * 20_000),
        lambda path: save_file(WEIGHTS, path),
        lambda path: build_tokenizer().backend_tokenizer.save(str(path)),
        save_through_python,
    ],
    ids=["text", "safetensors", "tokenizer", "torch"],
)
def test_a_full_disk_is_told_with_place_and_remedy_whoever_writes(
    tmp_path: Path, write: Callable[[Path], None], atomic: Callable
):
    with small_disk(tmp_path / "disk") as disk:
        path = disk / "x"
        with atomic(path) as temporary:
            (temporary / "file" if temporary.is_dir() else temporary).write_text("old")
        fill(disk, but=4096)
        with pytest.raises(SpiritLevelError, match="disk is full; everything") as told, atomic(path) as temporary:
            write(temporary / "file" if temporary.is_dir() else temporary)
        assert told.value.where == str(path)
        assert told.value.remedy.startswith("Free some space")
        assert (path / "file" if path.is_dir() else path).read_text() == "old"
        assert names(disk) == ["filler", "x"]


@pytest.mark.parametrize("error", [ValueError("(os error)"), SpiritLevelError("the rank is 0")])
def test_what_is_no_fault_of_the_disk_stays_what_it_is(tmp_path: Path, error: Exception):
    with pytest.raises(type(error)) as told, atomic_path(tmp_path / "x"):
        try:
            (tmp_path / "missing").read_text()
        except OSError:
            raise error from None
    assert told.value is error


def test_a_place_that_cannot_be_is_told_by_its_own_name(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "x", tmp_path / ("x" * 300)):
        with pytest.raises(SpiritLevelError, match="cannot be written") as told:
            write_text(path, "")
        assert told.value.where == str(path)


@pytest.fixture
def dead() -> int:
    """The id of a process that is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize("atomic", [atomic_path, atomic_folder])
def test_what_killed_processes_left_is_removed_when_the_same_path_is_written(
    tmp_path: Path, dead: int, atomic: Callable
):
    kept = [f".x.{os.getppid()}.tmp", f".x.json.{dead}.tmp", ".x.y.tmp", f".[x].{dead}.tmp"]
    for name in (*kept, f".x.{dead}.tmp"):
        (tmp_path / name).write_text("half")
    for process in (os.getpid(), 10**30):
        (tmp_path / f".x.{process}.tmp").mkdir()
        (tmp_path / f".x.{process}.tmp" / "weights").write_text("half")
    with atomic(tmp_path / "x") as temporary:
        (temporary / "file" if temporary.is_dir() else temporary).write_text("whole")
    assert names(tmp_path) == sorted([*kept, "x"])
    with atomic(tmp_path / "[x]") as temporary:
        (temporary / "file" if temporary.is_dir() else temporary).write_text("whole")
    assert names(tmp_path) == sorted([*kept[:-1], "x", "[x]"])


def test_a_broken_line_is_named(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    lines = ['{"a": 1}'] * 5000
    lines[4710] = '{"a": 1'
    path.write_text("\n".join(lines))
    with pytest.raises(SpiritLevelError) as told:
        read_jsonl(path)
    assert told.value.where == f"{path}:4711"


FAULTS = [b'{"a": 1', b"9" * 5000, b"[" * 100_000, b'{"a": "\xff"}']


@pytest.mark.parametrize("fault", FAULTS, ids=["cut", "long-number", "deep", "not-utf-8"])
def test_whatever_is_wrong_with_a_line_it_is_named(tmp_path: Path, fault: bytes):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"1\r\n\n" + fault + b"\n2\n")
    with pytest.raises(SpiritLevelError, match="not valid JSON: ") as told:
        read_jsonl(path)
    assert told.value.where == f"{path}:3"
    assert told.value.remedy.startswith("Each line must be one JSON object")
    path.write_bytes(fault)
    with pytest.raises(SpiritLevelError, match="not valid JSON: ") as told:
        read_json(path)
    assert told.value.where == f"{path}:1"


def test_a_torn_entry_counts_as_absent(tmp_path: Path):
    store = ContentStore(tmp_path)
    key = digest_json("key")
    store.put(key, {"text": "whole"})
    assert store.get(key) == {"text": "whole"}
    (file,) = tmp_path.rglob("*.json")
    file.write_text(file.read_text()[:-5])
    assert store.get(key) is None


def test_only_batches_that_lack_something_are_computed(tmp_path: Path):
    store = ContentStore(tmp_path)
    keys = [digest_json(number) for number in range(6)]
    calls: list[list[int]] = []

    def compute(indices, done):
        calls.append(list(indices))
        for index in indices:
            done(index, index * 10)

    batches = [[0, 1], [2, 3], [4, 5]]
    assert compute_missing(store, keys, batches, compute) == [0, 10, 20, 30, 40, 50]
    store._path(keys[3]).unlink()
    calls.clear()
    assert compute_missing(store, keys, batches, compute) == [0, 10, 20, 30, 40, 50]
    assert calls == [[2, 3]], "the batch that lost one value is computed whole, the others not at all"


def test_a_stage_runs_once_until_inputs_or_outputs_change(tmp_path: Path):
    runs = []

    def work():
        runs.append(1)
        write_text(tmp_path / "out.txt", "result")

    first, worked = run_stage(tmp_path, "s", {"x": 1}, ("out.txt",), work)
    assert worked
    again, worked = run_stage(tmp_path, "s", {"x": 1}, ("out.txt",), work)
    assert not worked
    assert again == first
    (tmp_path / "out.txt").write_text("tampered")
    assert run_stage(tmp_path, "s", {"x": 1}, ("out.txt",), work)[1]
    assert run_stage(tmp_path, "s", {"x": 2}, ("out.txt",), work)[1]
    assert len(runs) == 3
    record = json.loads((tmp_path / "runs" / "s.json").read_text())
    assert record["versions"]["torch"]
    assert record["outputs"]["out.txt"]


def test_folder_digest_sees_names_and_bytes(tmp_path: Path):
    (tmp_path / "a").write_text("1")
    first = digest_folder(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert digest_folder(tmp_path) != first


@pytest.mark.parametrize("kept", [(), (0,), (0, 1)], ids=str)
def test_a_key_in_two_batches_has_one_value_whether_or_not_a_run_was_killed(tmp_path: Path, kept: tuple[int, ...]):
    """A batch's numbers depend a little on its mates; a value that was computed twice was another one on resuming."""
    keys, batches = ["a", "b", "a", "c"], [[0, 1], [2, 3]]
    store = ContentStore(tmp_path)

    def compute(batch: Sequence[int], done: Callable[[int, Any], None]) -> None:
        for index in batch:
            done(index, [keys[index], f"in batch {batches.index([*batch])}"])

    for index in kept:  # what a killed run had got done
        store.put(keys[index], [keys[index], "in batch 0"])
    expected = [["a", "in batch 0"], ["b", "in batch 0"], ["a", "in batch 0"], ["c", "in batch 1"]]
    assert compute_missing(store, keys, batches, compute) == expected
    assert compute_missing(store, keys, batches, compute) == expected
