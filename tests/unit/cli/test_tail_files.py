"""Lines of growing files, from the end backwards and as they come."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli import tail_files
from cli.tail_files import Growing, newest_lines


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(text=st.text(alphabet="ab\n", max_size=40), block=st.integers(1, 7))
def test_lines_come_backwards_whatever_the_block(tmp_path: Path, text: str, block: int) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    whole = text[: text.rfind("\n") + 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tail_files, "BLOCK", block)
        assert list(newest_lines(path)) == [line.encode() for line in reversed(whole.split("\n")[:-1])]
        growing = Growing(path)
        assert growing.start == len(whole)


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    growing = Growing(tmp_path / "none")
    assert (list(newest_lines(tmp_path / "none")), growing.lines()) == ([], [])
    (tmp_path / "none").write_text("one\n")
    assert growing.lines() == [b"one"]


def test_only_what_comes_is_returned_whole_and_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old\nha")
    growing = Growing(path)
    with path.open("a") as file:
        file.write("lf\nnext\npie")
        file.flush()
        assert growing.lines() == [b"half", b"next"]
        assert growing.lines() == []
        file.write("ce\n")
    assert growing.lines() == [b"piece"]


def test_a_file_that_was_cut_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one\ntwo\n")
    growing = Growing(path)
    path.write_text("new\n")
    assert growing.lines() == [b"new"]


def test_the_end_may_be_given(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one\ntwo\nthree\n")
    assert list(newest_lines(path, end=8)) == [b"two", b"one"]
