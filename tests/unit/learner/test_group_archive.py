"""What the learner archives of a batch, and what happens to the archive when it is full, resumed, or has no disk."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from common.archive import ArchiveReader, segments
from common.settings import Archive, Learner, Run, Settings
from learner.archive import NO_ARCHIVE, GroupArchive, by_sibling, open_archive
from learner.archive_files import SEGMENTS, Segments, cut


def archive(folder: Path, *, version: int = 0, epoch: int = 1, max_mb: int = 1) -> GroupArchive:
    return GroupArchive(Segments(folder, epoch, version, max_mb), Learner(), clock=lambda: 12.5)


def train(archive: GroupArchive, group, version: int, losses=None) -> None:
    """One batch of one group, as the loop does it."""
    archive.consumed(group, "trained", version - 1, 1, 2)
    archive.trained([group], version, losses)
    archive.write(version)


def versions(folder: Path) -> list[int]:
    return [one.policy_version for one in ArchiveReader(folder).groups()]


def test_a_trained_group_is_kept_with_its_step_advantages_and_losses(make_group, tmp_path: Path) -> None:
    group = make_group(1, (1.0, None, 0.0))
    with archive(tmp_path) as kept:
        train(kept, group, 7, np.array([-0.5, 0.25]))
    [found] = ArchiveReader(tmp_path).groups()
    assert (found.uid, found.outcome, found.policy_version, found.staleness) == (group.uid, "trained", 7, 1)
    assert (found.content_staleness, found.at) == (None, 12.5)
    assert found.advantages == pytest.approx((1.0, 0.0, -1.0), abs=1e-3)
    assert found.loss == (-0.5, 0.0, 0.25)


def test_what_was_not_trained_has_no_advantage_and_no_loss(make_group, tmp_path: Path) -> None:
    filtered, stale = make_group(1, (1.0, 1.0)), make_group(2, (1.0, 0.0), objective="pointwise")
    with archive(tmp_path) as kept:
        kept.consumed(filtered, "filtered", 3, 0, 0)
        kept.consumed(stale, "dropped_stale", 3, 5, 6)
        kept.write(4)
    found = list(ArchiveReader(tmp_path).groups())
    assert [(one.outcome, one.policy_version, one.loss) for one in found] == [
        ("filtered", 3, None),
        ("dropped_stale", 3, None),
    ]
    assert [one.content_staleness for one in found] == [None, 6]
    assert [one.advantages for one in found] == [(0.0, 0.0), (0.0, 0.0)]


def test_losses_are_dealt_out_in_the_order_of_the_samples(make_group) -> None:
    groups = [make_group(1, (1.0, 0.0)), make_group(2, (None, 1.0, 0.0))]
    found = by_sibling(groups, np.array([1.0, 2.0, 3.0, 4.0]))
    assert found == {groups[0].uid: (1.0, 2.0), groups[1].uid: (0.0, 3.0, 4.0)}


def test_a_loss_that_is_not_finite_or_not_known_is_none(make_group) -> None:
    groups = [make_group(1, (1.0, 0.0)), make_group(2, (1.0, 0.0))]
    assert by_sibling(groups, np.array([1.0, np.nan, 3.0, 4.0])) == {groups[0].uid: None, groups[1].uid: (3.0, 4.0)}
    assert by_sibling(groups, None) == {groups[0].uid: None, groups[1].uid: None}


def test_a_resumed_run_forgets_what_its_checkpoint_does_not_know(make_group, tmp_path: Path) -> None:
    for epoch, steps in ((1, range(1, 4)), (2, range(4, 7))):
        with archive(tmp_path, version=steps[0] - 1, epoch=epoch) as kept:
            for step in steps:
                train(kept, make_group(step), step)
    assert versions(tmp_path) == [1, 2, 3, 4, 5, 6]
    cut(tmp_path, 5)
    assert versions(tmp_path) == [1, 2, 3, 4, 5]
    with archive(tmp_path, version=2, epoch=3) as kept:
        train(kept, make_group(3), 3)
    assert versions(tmp_path) == [1, 2, 3]


def test_a_torn_block_of_a_killed_learner_does_not_hide_what_has_to_be_cut(make_group, tmp_path: Path) -> None:
    with archive(tmp_path) as kept:
        for step in (1, 2, 3):
            train(kept, make_group(step), step)
    (tmp_path / "e000002-000001.groups").write_bytes(b"SPG1 torn")
    cut(tmp_path, 1)
    assert versions(tmp_path) == [1]


def test_the_oldest_go_first_when_it_is_full(make_group, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with archive(tmp_path, max_mb=1) as kept:
        for step in range(1, 61):
            group = make_group(step, (1.0, 0.0), tokens=8000)
            for rollout in group.rollouts:  # what cannot be compressed
                rollout.completion.token_ids[:] = rng.integers(0, 2**31 - 1, 8000)
            train(kept, group, step)
    sizes = [path.stat().st_size for path in segments(tmp_path)]
    assert sum(sizes) <= 2**20
    assert len(sizes) >= SEGMENTS // 2
    kept_versions = versions(tmp_path)
    assert kept_versions == list(range(kept_versions[0], 61))
    assert 1 < kept_versions[0] <= 60 - 8


@contextmanager
def full_disk() -> Iterator[None]:
    """Files may not grow beyond a few bytes. No fixture: pytest's own output may be a file, too."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_costs_records_is_said_once_and_ends_nothing(make_group, tmp_path: Path) -> None:
    with capture_logs() as logs, full_disk(), archive(tmp_path) as kept:
        for step in (1, 2, 3):
            train(kept, make_group(step), step)
    assert [entry["event"] for entry in logs] == ["archive.failed"]
    assert [path.stat().st_size for path in segments(tmp_path)] == [0]


def test_room_again_is_used(make_group, tmp_path: Path) -> None:
    folder = tmp_path / "groups"
    folder.write_text("in the way")
    with capture_logs() as logs, archive(folder) as kept:
        train(kept, make_group(1), 1)
        train(kept, make_group(2), 2)
        kept.write(2)  # waits for the one before
        kept.write(2)
        folder.unlink()
        train(kept, make_group(3), 3)
    assert versions(folder) == [3]
    assert [entry["event"] for entry in logs] == ["archive.failed", "archive.recovered"]


def test_a_group_too_large_for_a_record_is_left_out_and_the_others_kept(
    make_group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.codec.MAX_MESSAGE_BYTES", 5000)
    with capture_logs() as logs, archive(tmp_path) as kept:
        train(kept, make_group(1, tokens=2000), 1)
        train(kept, make_group(2), 2)
    assert versions(tmp_path) == [2]
    assert [entry["event"] for entry in logs] == ["archive.group_left_out"]


def test_switched_off_it_keeps_nothing(make_group, tmp_path: Path) -> None:
    off = open_archive(Settings(run=Run(dir=tmp_path), archive=Archive(max_mb=0)), 1, 0)
    assert off is NO_ARCHIVE
    with off:
        train(off, make_group(1), 1)
    assert list(tmp_path.iterdir()) == []
    with open_archive(Settings(run=Run(dir=tmp_path)), 1, 0) as on:
        train(on, make_group(1), 1)
    assert versions(tmp_path / "run" / "groups") == [1]
