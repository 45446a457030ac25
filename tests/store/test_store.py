"""Nothing half-written is ever read, and a stage is done exactly once."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritlevel.errors import SpiritLevelError
from spiritlevel.store import (
    ContentStore,
    atomic_folder,
    atomic_path,
    compute_missing,
    digest_folder,
    digest_json,
    read_jsonl,
    run_stage,
    write_jsonl,
    write_text,
)


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


def test_a_full_disk_is_told_with_place_and_remedy():
    if not Path("/dev/full").exists():
        pytest.skip("needs Linux's /dev/full")
    full = Path("/dev/full")
    with pytest.raises(SpiritLevelError, match=r"disk is full") as told, atomic_path(Path("/dev/shm/x.json")):
        full.write_text("x" * 100_000)
    assert "x.json" in told.value.where
    assert told.value.remedy


def test_a_broken_line_is_named(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    lines = ['{"a": 1}'] * 5000
    lines[4710] = '{"a": 1'
    path.write_text("\n".join(lines))
    with pytest.raises(SpiritLevelError) as told:
        read_jsonl(path)
    assert told.value.where == f"{path}:4711"


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
