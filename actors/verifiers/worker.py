"""What runs inside a verifier process. Imports nothing heavy: a killed worker must be back soon."""

import contextlib
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from typing import Final

from actors.verifiers import resolve, verdict_of
from actors.verifiers.base import Args
from common.errors import SettingsError
from common.messages import Verdict

CPU_MARGIN_S: Final = 5.0


def start(memory_mb: int, python_path: Sequence[str], names: Sequence[str]) -> None:
    """Once per process: importable user modules, slow imports outside any time limit, then the memory limit."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a Python handler would wait for long arithmetic in C to end
    sys.path[:0] = [path for path in python_path if path not in sys.path]
    for name in tuple(names):
        with contextlib.suppress(SettingsError):  # every verdict will carry it
            resolve(name).warm_up()
    _limit(resource.RLIMIT_AS, _address_space() + memory_mb * 2**20)


def verdicts(name: str, answer: str, args: Args, texts: Sequence[str], timeout_s: float) -> tuple[Verdict, ...]:
    """One verdict per text. Takes any time: the pool kills this process after ``timeout_s``."""
    # only matters once the pool's process is gone: a bomb must not outlive it for ever
    _limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + timeout_s + CPU_MARGIN_S))
    return tuple(verdict_of(name, text, answer, args) for text in texts)


def _limit(kind: int, soft: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _address_space() -> int:
    """Bytes of address space this process has now."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
