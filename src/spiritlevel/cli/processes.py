"""Several processes that train together: calling this command in all of them, or being one of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from spiritlevel.errors import SpiritLevelError

# When one has failed, the first may tell why for so many seconds before all are stopped.
_LAST_WORDS = 5.0


def share_with(count: int) -> None:
    """Go on as one of so many processes, or of those that `accelerate launch` or torchrun has started."""
    if count > 1 and "WORLD_SIZE" not in os.environ:
        _call_again_in(count)
    if "WORLD_SIZE" in os.environ:
        from accelerate import PartialState
        from torch import cuda

        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if 0 < cuda.device_count() < here:
            raise SpiritLevelError(
                f"{here} processes can't share {cuda.device_count()} GPUs", remedy="Start one process a GPU at most."
            )
        PartialState(cpu=not cuda.is_available())  # each takes its own GPU, before a model is put there
        sys.excepthook = partial(_tell_late, sys.excepthook)


def _tell_late(tell: Callable[..., object], *error: object) -> None:
    """The traceback of what no one expected, unless it is only that another process was killed: then this one is
    stopped before."""
    time.sleep(1.0)
    tell(*error)


def _call_again_in(count: int) -> NoReturn:
    """Run this very command in so many processes on this machine, and leave with the first exit code that is not 0.

    They find each other by the variables that torchrun sets too. When one fails, the others are stopped: they would
    wait for it forever.
    """
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    command = [sys.executable, "-m", "spiritlevel", *sys.argv[1:]]
    children = [
        subprocess.Popen(command, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(count)
    ]
    try:
        while any(child.poll() is None for child in children) and not any(child.poll() for child in children):
            time.sleep(0.1)
        codes = [child.poll() for child in children]
        if killed := [rank for rank, code in enumerate(codes) if code and code < 0]:
            raise SpiritLevelError(
                f"process {killed[0] + 1} of {count} was killed by signal {-(codes[killed[0]] or 0)}",
                remedy="If memory was short, lower --token-budget; the same command goes on from the last checkpoint.",
            )
        deadline = time.monotonic() + _LAST_WORDS
        while children[0].poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        for child in children:
            child.terminate()
            child.wait()
    sys.exit(next((code for code in codes if code), 0))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
