"""Content digests: the names by which runs refer to what they read and wrote."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def digest_json(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value` (sorted keys, no spaces, UTF-8)."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_folder(folder: Path, *, suffixes: tuple[str, ...] = ()) -> str:
    """One digest of the names and bytes of all files below `folder` (only those with `suffixes`, if given)."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if suffixes:
        files = [path for path in files if path.name.endswith(suffixes)]
    return digest_json({path.relative_to(folder).as_posix(): digest_file(path) for path in files})
