"""Files that are whole or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from spiritlevel.errors import SpiritLevelError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; what is written there takes its place if the block succeeds.

    Raises SpiritLevelError when the disk is full or the place can't be written; the old file stays.
    """
    with _place_beside(path) as temporary:
        yield temporary
        temporary.replace(path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: an empty one to fill, which then replaces `path`."""
    with _place_beside(path) as temporary:
        temporary.mkdir()
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)


@contextmanager
def _place_beside(path: Path) -> Iterator[Path]:
    """`.NAME.PID.tmp`, which is gone afterwards, as is what killed processes left under such a name."""
    start = f".{path.name}."
    temporary = path.with_name(f"{start}{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for other in os.scandir(path.parent):
            if other.name.startswith(start) and other.name.endswith(".tmp"):
                process = other.name.removeprefix(start).removesuffix(".tmp")
                if process.isdecimal() and not _is_another_alive(int(process)):
                    _remove(Path(other.path))
        yield temporary
    except Exception as error:
        cause = _system_error(error)
        if cause is None:
            raise
        raise _explained(cause, path) from error
    finally:
        _remove(temporary)


def _is_another_alive(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _remove(path: Path) -> None:
    with suppress(OSError):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_json(path: Path) -> Any:
    """Raises SpiritLevelError naming the file and the line if it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise _unreadable(error, path) from None
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise SpiritLevelError(f"not valid JSON: {error}", where=f"{path}:{line}") from None


def read_jsonl(path: Path) -> list[tuple[int, Any]]:
    """(line number, value) of every line that is not blank. Raises SpiritLevelError naming the line."""
    rows = []
    try:
        with path.open("rb") as file:  # as text, bad UTF-8 would be told of no line
            for number, raw in enumerate(file, start=1):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                if line.strip():
                    rows.append((number, json.loads(line)))
    except OSError as error:
        raise _unreadable(error, path) from None
    except (ValueError, RecursionError) as error:
        fault = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        raise SpiritLevelError(
            f"not valid JSON: {fault}",
            where=f"{path}:{number}",
            remedy="Each line must be one JSON object in UTF-8; mend or remove this line.",
        ) from None
    return rows


class ContentStore:
    """JSON values under content digests, one small file each, safe against kills and torn writes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, key: str) -> Any | None:
        """The value, or None if it is absent or torn."""
        try:
            entry = json.loads(self._path(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return entry["value"] if isinstance(entry, dict) and entry.get("key") == key else None

    def put(self, key: str, value: Any) -> None:
        with atomic_path(self._path(key)) as temporary:
            temporary.write_text(json.dumps({"key": key, "value": value}, ensure_ascii=False), encoding="utf-8")

    def _path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key[2:]}.json"


def compute_missing(
    store: ContentStore,
    keys: Sequence[str],
    batches: Sequence[Sequence[int]],
    compute: Callable[[Sequence[int], Callable[[int, Any], None]], None],
    on_progress: Callable[[int], None] | None = None,
) -> list[Any]:
    """The values of `keys`, computing by batches what the store lacks.

    A batch that lacks anything is computed whole, so that a run that was killed and resumed sees the same
    batches, and therefore the same numbers, as one that was not. A key that stands in several places has one value,
    the first that was computed. `compute(indices, done)` calls `done(index, value)` for each; on_progress(n) is told
    of n more values.
    """
    values = {key: value for key in keys if (value := store.get(key)) is not None}

    def done(index: int, value: Any) -> None:
        if keys[index] not in values:
            store.put(keys[index], value)
            values[keys[index]] = value

    for batch in batches:
        if any(keys[index] not in values for index in batch):
            compute(batch, done)
        if on_progress is not None:
            on_progress(len(batch))
    return [values.get(key) for key in keys]


def _unreadable(error: OSError, path: Path) -> SpiritLevelError:
    if isinstance(error, FileNotFoundError):
        return SpiritLevelError("there is no such file", where=str(path), remedy="Check the name and the folder.")
    return SpiritLevelError(error.strerror or str(error), where=str(path), remedy="Name a file that can be read.")


def _system_error(error: BaseException | None) -> OSError | None:
    """What the system said, if that is behind `error`: libraries in Rust (safetensors, tokenizers) put its number into
    words, and torch.save raises on top of it when it closes a file that it could not write."""
    if error is None or isinstance(error, OSError):
        return error
    if number := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(number[1]), os.strerror(int(number[1])))
    return _system_error(error.__context__) if isinstance(error, RuntimeError) else None


def _explained(error: OSError, path: Path) -> SpiritLevelError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SpiritLevelError(
            "the disk is full; everything finished before is kept",
            where=str(path),
            remedy="Free some space and run the same command again: it goes on where it stopped.",
        )
    return SpiritLevelError(f"cannot be written: {error.strerror or error}", where=str(path))
