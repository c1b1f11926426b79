"""Runs in the background that end with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from run_harness import Up


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start_up(*settings: str) -> Up:
        started.append(Up(tmp_path, *settings))
        return started[-1]

    yield start_up
    for up in started:
        if up.process.poll() is None:
            up.interrupt()
            up.wait()
