"""Content-addressed files and run records."""

from spiritlevel.store.digest import digest_file, digest_folder, digest_json
from spiritlevel.store.files import (
    ContentStore,
    atomic_folder,
    atomic_path,
    compute_missing,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
    write_text,
)
from spiritlevel.store.runs import RunRecord, command_line, installed_versions, machine, run_stage

__all__ = [
    "ContentStore",
    "RunRecord",
    "atomic_folder",
    "atomic_path",
    "command_line",
    "compute_missing",
    "digest_file",
    "digest_folder",
    "digest_json",
    "installed_versions",
    "machine",
    "read_json",
    "read_jsonl",
    "run_stage",
    "write_json",
    "write_jsonl",
    "write_text",
]
