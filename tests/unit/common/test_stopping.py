"""Being told to stop: a flag for a loop, an exception for a process that still starts."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from common.process import Stopping, until_told_to_stop


def test_a_loop_is_told_by_a_flag() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with until_told_to_stop() as stopping:
        assert not stopping()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_start_ends_where_it_is() -> None:
    reached = []

    def start() -> None:
        with until_told_to_stop() as stopping, stopping.at_once(143):
            reached.append("before")
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("after")

    with pytest.raises(SystemExit) as ended:
        start()
    assert reached == ["before"]
    assert ended.value.code == 143


def test_a_start_whose_libraries_swallow_that_ends_at_its_end() -> None:
    stopping = Stopping()
    with pytest.raises(SystemExit), stopping.at_once(), contextlib.suppress(SystemExit):
        stopping.tell()


def test_a_start_that_was_told_before_does_not_begin() -> None:
    stopping, reached = Stopping(), []
    stopping.tell()
    with pytest.raises(SystemExit), stopping.at_once():
        reached.append("begun")
    assert reached == []


def test_after_the_start_it_is_a_flag_again() -> None:
    stopping = Stopping()
    with stopping.at_once():
        pass
    stopping.tell()
    assert stopping()
