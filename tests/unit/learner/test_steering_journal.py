"""The journal of what users said: every change once, in order, also after torn lines and a full disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.steering import Change
from learner.journal import Journal


def change(nonce: str, epoch: int = 1) -> Change:
    return Change(nonce=nonce, action="pause", by="ann", at=1.5, policy_version=3, epoch=epoch)


def nonces(root: Path) -> list[str]:
    return [one.nonce for one in Journal(root).read()]


def test_what_was_appended_is_read_by_the_next_epoch(tmp_path: Path) -> None:
    with_values = Change(
        nonce="b",
        action="set",
        by="ann",
        at=1.0,
        policy_version=3,
        epoch=1,
        changes={"learner.lr": (1e-4, 3e-4), "learner.max_steps": (10, 20)},
        of_file={"learner.lr": 1e-4, "learner.max_steps": 10},
    )
    journal = Journal(tmp_path, 1)
    journal.append(change("a"))
    journal.append(with_values)
    Journal(tmp_path, 2).append(change("c", 2))
    assert Journal(tmp_path, 3).read() == [change("a"), with_values, change("c", 2)]


def test_a_run_that_nobody_steered_has_none(tmp_path: Path) -> None:
    assert Journal(tmp_path).read() == []
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_a_fenced_learner_decided_too_counts_once(tmp_path: Path) -> None:
    Journal(tmp_path, 2).append(change("a", 2))
    Journal(tmp_path, 1).append(change("a", 1))
    assert [one.epoch for one in Journal(tmp_path).read()] == [1]


def test_a_line_that_was_cut_off_is_passed_over_and_the_next_one_is_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 1)
    journal.append(change("a"))
    [path] = (tmp_path / "steering").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    assert nonces(tmp_path) == ["a"]
    Journal(tmp_path, 2).append(change("b", 2))
    assert nonces(tmp_path) == ["a", "b"]


def test_a_full_disk_leaves_nothing_of_the_line(tmp_path: Path, monkeypatch) -> None:
    journal = Journal(tmp_path, 1)
    journal.append(change("a"))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            journal.append(change("b"))
    journal.append(change("c"))
    assert nonces(tmp_path) == ["a", "c"]
