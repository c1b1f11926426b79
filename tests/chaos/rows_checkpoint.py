"""Rows 4 and 5: a checkpoint that is cut short at every file operation, or that finds no room."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

from chaos.disks import filled, small_disk
from chaos.engines import ToyTrainer, trained_uids
from chaos.rig import Rig
from chaos.rows import Done, check, lines_with, row, stop_and_audit
from common.messages import uid_of
from common.streams import Ending
from learner.checkpoint import CheckpointStore, State
from learner.uid_ledger import UidLedger

FILE_CALLS: Final = frozenset(
    ("open", "write", "close", "flush", "fsync", "rename", "replace", "mkdir", "rmdir", "unlink", "remove", "scandir")
)
"""Builtins that a checkpoint's way to the disk goes through."""
MOST_CALLS: Final = 2000


@row(4, "kill -9 at each file operation of a checkpoint", "the previous or the new one loads, whole", ci=True)
def killed_at_each_file_operation(folder: Path) -> Done:
    return _each_operation(folder, lose_unsynced=False)


@row(4, "power cut at each file operation: what was not synced is gone", "the previous or the new one loads", ci=True)
def power_cut_at_each_file_operation(folder: Path) -> Done:
    return _each_operation(folder, lose_unsynced=True)


@row(5, "the disk of the checkpoints is full", "the run goes on, says so, and acknowledges nothing", ci=True)
def full_checkpoint_disk(folder: Path) -> Done:
    disk = folder / "chaos" / "checkpoints"
    with small_disk(disk, megabytes=4), Rig(folder) as rig:
        rig.start()
        rig.steps(4)
        log = rig.directory.logs / "learner.log"
        with filled(disk):
            rig.until(lambda: lines_with(log, "checkpoint.failed"), "a checkpoint that fails")
            newest, trained = rig.checkpoints.newest(), rig.streams.ledger()["trained:policy"]
            rig.steps(6)
            check(newest is not None, "the checkpoint from before is gone")
            again = rig.checkpoints.newest()
            check(again is not None and again.folder == newest.folder, "a checkpoint appeared on a full disk")
            check(rig.streams.ledger()["trained:policy"] == trained, "what no checkpoint holds was acknowledged")
        rig.until(lambda: rig.streams.ledger()["trained:policy"] > trained, "a checkpoint, once there is room")
        failures = len(lines_with(log, "checkpoint.failed"))
        return Done(times=failures, note=f"{failures} saves failed", items=stop_and_audit(rig).items)


def _each_operation(folder: Path, *, lose_unsynced: bool) -> Done:
    """A child saves the second checkpoint and dies at its k-th operation, for every k until it does not die."""
    outcomes = {1: 0, 2: 0}
    for operation in range(1, MOST_CALLS):
        root = folder / str(operation)
        store = CheckpointStore(root, kept=1)
        _save(store, 1)
        before = _inodes(root)
        status = _in_child(lambda store=store: _save(store, 2), _Killer(root, operation, lose_unsynced, before))
        survived = os.WIFEXITED(status)
        check(survived or os.WTERMSIG(status) == signal.SIGKILL, f"the child ended with {status}")
        outcomes[_loaded(store)] += 1
        _save(store, 3)  # what was left behind is in nobody's way
        check(_loaded(store) == 3 and not list(root.glob("*.tmp")), f"operation {operation}: litter stays")
        if survived:
            check(_loaded(store) == 3, "the child that was not killed did not save")
            note = f"{outcomes[1]} times the previous one, {outcomes[2]} times the new one"
            return Done(times=operation - 1, note=note)
    raise AssertionError(f"a checkpoint of more than {MOST_CALLS} file operations")


def _save(store: CheckpointStore, version: int) -> None:
    engine, ended = ToyTrainer(), UidLedger()
    engine.policy_version = version
    engine.trained = [uid_of(number) for number in range(version * 10)]
    for uid in engine.trained:
        ended.add(uid, "trained", "policy")
    ending = Ending(stream="s", id="1-1", uid=engine.trained[0], outcome="trained", kind="policy")
    state = State(
        epoch=1, policy_version=version, cursor=version, endings=(ending,), ended=ended, trained=len(engine.trained)
    )
    store.save(state, engine.write_checkpoint)


def _loaded(store: CheckpointStore) -> int:
    """Version of the newest checkpoint, after a look at everything in it."""
    newest = store.newest()
    check(newest is not None, "no checkpoint is left")
    assert newest is not None
    version = newest.state.policy_version
    uids = trained_uids(newest.folder)
    check(len(uids) == version * 10 and newest.state.ended.uids() == set(uids), f"version {version} is not whole")
    ToyTrainer().read_checkpoint(newest.folder, version)
    return version


@dataclass
class _Killer:
    """A profiler that counts calls of builtins, and kills its process at one of them: half before it, half after."""

    root: Path
    operation: int
    lose_unsynced: bool
    synced: set[int]
    """Inodes whose content is on the disk."""
    count: int = 0

    def __call__(self, frame: FrameType, event: str, function: Any) -> None:
        if event not in ("c_call", "c_return") or getattr(function, "__name__", "") not in FILE_CALLS:
            return
        if event == "c_return" and function.__name__ == "fsync":
            self.synced.add(os.fstat(frame.f_locals["descriptor"]).st_ino)
        self.count += 1
        if self.count == self.operation:
            sys.setprofile(None)
            if self.lose_unsynced:
                self._lose()
            os.kill(os.getpid(), signal.SIGKILL)

    def _lose(self) -> None:
        for path in self.root.rglob("*"):
            if path.is_file() and path.stat().st_ino not in self.synced:
                os.truncate(path, 0)


def _inodes(root: Path) -> set[int]:
    return {path.stat().st_ino for path in root.rglob("*")}


def _in_child(work: Callable[[], None], killer: _Killer) -> int:
    """Wait status of a child that does the work under the killer's eyes."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            sys.setprofile(killer)
            work()
            sys.setprofile(None)
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]
