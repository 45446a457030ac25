"""The packaged model: converted once, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from small_disk import fill, small_disk
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import catalogue, model_folder, open_local
from spiritlevel.store import digest_file
from tiny import build_model


@pytest.fixture
def conversions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stands in for the package a tiny model; the sources that were converted."""
    package, converted = tmp_path / "package", []
    package.mkdir()
    (package / catalogue._GGUF).write_text("weights")
    found = SimpleNamespace(submodule_search_locations=[str(package)])

    def read(source: Path) -> tuple[object, object]:
        converted.append(source)
        model = build_model(dtype=torch.float32)
        return model.model, model.tokenizer

    monkeypatch.setattr(catalogue.importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(catalogue, "_GGUF_SHA256", digest_file(package / catalogue._GGUF))
    monkeypatch.setattr(catalogue, "_read_gguf", read)
    monkeypatch.setenv("SPIRITLEVEL_CACHE", str(tmp_path / "cache"))
    return converted


def test_it_is_converted_once_and_again_when_a_file_is_damaged(conversions: list[Path]) -> None:
    folder = model_folder(catalogue.PACKAGED)
    assert model_folder(catalogue.PACKAGED) == folder
    assert len(conversions) == 1
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    (folder / "config.json").write_text("{}")
    assert open_local(catalogue.PACKAGED).folder == folder
    assert len(conversions) == 2


def test_what_a_killed_conversion_left_is_removed(conversions: list[Path]) -> None:
    folder = model_folder(catalogue.PACKAGED)
    left = folder.with_name(f".{folder.name}.{10**30}.tmp")
    folder.rename(left)
    model_folder(catalogue.PACKAGED)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_full_disk_is_told_and_leaves_nothing(
    conversions: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        monkeypatch.setenv("SPIRITLEVEL_CACHE", str(disk))
        fill(disk, but=40_000)
        with pytest.raises(SpiritLevelError, match="disk is full") as told:
            model_folder(catalogue.PACKAGED)
        assert catalogue.PACKAGED in told.value.where
        assert list((disk / "models").iterdir()) == []
        (disk / "filler").unlink()
        assert (model_folder(catalogue.PACKAGED) / "model.safetensors").exists()
