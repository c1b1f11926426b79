"""Single keys from the terminal, without waiting for Return; the terminal is as it was afterwards."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

END: Final = "\x04"
"""Told when the terminal has gone."""

Pressed = Callable[[float], str]
"""Waits so many seconds for keys, and returns those that were pressed."""


@contextmanager
def keys() -> Iterator[Pressed]:
    """Of standard input, if it is a terminal; else no key is ever pressed."""
    if not sys.stdin.isatty():
        yield _nothing
        return
    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)
    tty.setcbreak(file)
    try:
        yield _read
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)


def _read(timeout_s: float) -> str:
    file = sys.stdin.fileno()
    ready, _, _ = select.select([file], [], [], timeout_s)
    return (os.read(file, 64).decode(errors="replace") or END) if ready else ""


def _nothing(timeout_s: float) -> str:
    time.sleep(timeout_s)
    return ""
