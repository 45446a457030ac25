"""Rows in Parquet files, which need an extra."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spiritlevel.errors import SpiritLevelError
from spiritlevel.store import atomic_path


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """All rows. Raises SpiritLevelError if there is no such file or it can't be read."""
    pyarrow = require_pyarrow()
    if not path.exists():
        raise SpiritLevelError("there is no such file", where=str(path), remedy="Check the name.")
    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise SpiritLevelError(f"not a readable Parquet file: {error}", where=str(path)) from None
    return rows


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Whole or not at all, with the columns of every row. Raises SpiritLevelError if the rows are no table."""
    pyarrow = require_pyarrow()
    names = list(dict.fromkeys(name for row in rows for name in row))
    try:
        table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
        with atomic_path(path) as temporary:
            pyarrow.parquet.write_table(table, temporary)
    except (pyarrow.ArrowException, OverflowError) as error:
        remedy = "Write .jsonl: a Parquet column has one type, and no empty objects."
        raise SpiritLevelError(f"these rows are no table: {error}", where=str(path), remedy=remedy) from None


def require_pyarrow() -> Any:
    """The library. Raises SpiritLevelError if it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise SpiritLevelError(
            "reading and writing Parquet needs pyarrow",
            remedy="pip install 'spiritlevel[parquet]', or use JSONL.",
        ) from None
    return pyarrow
