"""The checkpoint store: what is found is whole, what is broken is passed over, an epoch is taken once."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import folders
from common.streams import Ending
from learner.checkpoint import CheckpointStore, State
from learner.uid_ledger import CODES, UidLedger


def ledger(uids) -> UidLedger:
    found = UidLedger()
    for index, uid in enumerate(sorted(uids)):
        found.add(uid.hex(), *CODES[index % len(CODES)])
    return found


UIDS = ledger(bytes([index]) * 16 for index in range(8))
ENDINGS = (
    Ending(stream="s", id="1-0", uid="aa", outcome="trained", kind="policy"),
    Ending(stream="s", id="2-0", uid="", outcome="trained", kind="judge"),
)


def state(version: int, epoch: int = 1) -> State:
    return State(epoch=epoch, policy_version=version, cursor=10 * version, endings=ENDINGS, ended=UIDS, trained=3)


def write(folder) -> None:
    (folder / "model.safetensors").write_bytes(b"model" * 100)


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", kept=3)


def test_what_was_saved_is_found(store) -> None:
    folder = store.save(state(4), write)
    found = store.newest()
    assert (found.folder, found.state) == (folder, state(4))
    assert (folder / "model.safetensors").read_bytes() == b"model" * 100
    assert CheckpointStore(store.root.parent / "other", kept=1).newest() is None


def test_the_newest_is_by_epoch_and_then_by_step(store) -> None:
    """Not by time: a fenced learner may write last. Its steps do not count against a newer epoch's."""
    for epoch, version in [(2, 5), (1, 90), (2, 3)]:
        store.save(state(version, epoch), write)
    assert (store.newest().state.epoch, store.newest().state.policy_version) == (2, 5)


@pytest.mark.parametrize("name", ["model.safetensors", "ended.bin", "commit.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_broken_checkpoint_is_passed_over(store, name, damage) -> None:
    store.save(state(1), write)
    path = store.save(state(2), write) / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[0] ^= 1
        path.write_bytes(content)
    assert store.newest().state == state(1)


def test_a_folder_without_a_commit_is_nothing(store) -> None:
    store.save(state(1), write)
    (store.root / "e000001-s00000009").mkdir()
    (store.root / "e000001-s00000008.tmp").mkdir()
    shutil.copytree(store.root / "e000001-s00000001", store.root / "e000001-s00000007.tmp")
    assert store.newest().state == state(1)


def test_older_ones_are_removed(store) -> None:
    for version in range(1, 7):
        store.save(state(version), write)
    assert sorted(path.name for path in store.root.iterdir()) == [f"e000001-s0000000{v}" for v in (4, 5, 6)]


def test_a_write_that_fails_leaves_the_previous_one(store) -> None:
    store.save(state(1), write)

    def no_room(folder) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space"):
        store.save(state(2), no_room)
    assert store.newest().state == state(1)
    store.save(state(3), write)  # there is room again; what failed gives its own back
    assert sorted(path.name for path in store.root.iterdir()) == ["e000001-s00000001", "e000001-s00000003"]


def test_a_step_saved_again_keeps_the_first_until_the_second_is_complete(store) -> None:
    """The last checkpoint of a run may be of a step that has one. Its endings are acknowledged: it is needed."""
    store.save(state(4), write)
    later = replace(state(4), endings=ENDINGS[:1])
    seen = []

    def look(folder) -> None:
        write(folder)
        seen.append(store.newest().state)

    store.save(later, look)
    assert seen == [state(4)]
    assert store.newest().state == later
    for endings in (ENDINGS, (), ENDINGS[1:]):
        store.save(replace(later, endings=endings), write)
        assert store.newest().state.endings == endings
    store.save(state(5), write)
    assert store.newest().state == state(5)


def test_a_step_saved_a_dozen_times_is_read_as_it_was_saved_last(store) -> None:
    """As a learner does that waits for a full server to have room: "….10" is younger than "….9"."""
    for cursor in range(12):
        store.save(replace(state(4), cursor=cursor), write)
        assert store.newest().state.cursor == cursor


def test_files_are_on_disk_before_the_name_and_the_name_before_the_return(store, monkeypatch) -> None:
    """The order that survives a power cut: every file, its folder, the rename, the parent."""
    steps = []
    sync = os.fsync
    rename = folders.Path.rename

    def fsync(descriptor) -> None:
        steps.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def renamed(self, target):
        steps.append("rename")
        return rename(self, target)

    monkeypatch.setattr(folders.os, "fsync", fsync)
    monkeypatch.setattr(folders.Path, "rename", renamed)
    store.save(state(1), write)
    assert steps == [
        "commit.json",
        "ended.bin",
        "model.safetensors",
        "e000001-s00000001.tmp",
        "rename",
        "checkpoints",
    ]


@settings(max_examples=20)
@given(uids=st.frozensets(st.binary(min_size=16, max_size=16), max_size=20), cursor=st.integers(0, 2**40))
def test_every_state_survives(tmp_path_factory, uids, cursor) -> None:
    store = CheckpointStore(tmp_path_factory.mktemp("states"), kept=1)
    saved = replace(state(1), ended=ledger(uids), cursor=cursor)
    store.save(saved, write)
    assert store.newest().state == saved


# -- epochs ---------------------------------------------------------------------------------------------------


def test_epochs_rise_from_one(store) -> None:
    assert store.highest_epoch() == 0
    assert [store.new_epoch() for _ in range(3)] == [1, 2, 3]
    assert store.highest_epoch() == 3


def test_racing_threads_never_share_an_epoch(store) -> None:
    with ThreadPoolExecutor(8) as threads:
        taken = list(threads.map(lambda _: CheckpointStore(store.root, 1).new_epoch(), range(64)))
    assert sorted(taken) == list(range(1, 65))


def _take_epochs(root, number: int) -> list[int]:
    store = CheckpointStore(root, 1)
    return [store.new_epoch() for _ in range(number)]


def test_racing_processes_never_share_an_epoch(store) -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("forkserver")) as processes:
        both = [processes.submit(_take_epochs, store.root, 100) for _ in range(2)]
        taken = [epoch for future in both for epoch in future.result()]
    assert sorted(taken) == list(range(1, 201))
