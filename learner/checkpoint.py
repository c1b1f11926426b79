"""Checkpoints: atomic, hashed, fsynced. checkpoint.md has the argument for the order of checkpoint and ack.

``ROOT/epochs/000002`` is created exclusively by every learner start, which then writes into it where it goes on
from; ``ROOT/e000002-s00000040/`` holds one checkpoint: the engine's files, ``ended.bin`` (17 bytes per uid) and
``commit.json``, which lists all hashes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from common.folders import fsync, listed, write_folder
from common.messages import WeightFile
from common.streams import Ending
from learner.identity import UNKNOWN, Identity, refuse_other
from learner.uid_ledger import UidLedger

log = structlog.get_logger()

COMMIT: Final = "commit.json"
UIDS: Final = "ended.bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a learner must remember besides its engine. ``endings`` may not be acknowledged yet."""

    epoch: int
    policy_version: int
    cursor: int
    """Above every prompt that was ever issued, and so above all that ended: a run is rebuilt up to here."""
    endings: tuple[Ending, ...]
    ended: UidLedger
    """Every uid that reached its end: a redelivered or regenerated twin is recognised by it."""
    trained: int = 0
    """Groups that went into the weights; as many as the ledger has trained uids, or one was trained twice."""
    identity: Identity = UNKNOWN
    """Uids count on the prompts staying the same, and the parameters on the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochStart:
    """Where an epoch goes on from: a checkpoint, or (0, 0) for the base model; and the server's data set."""

    epoch: int
    policy_version: int
    generation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    folder: Path
    state: State


class CheckpointStore:
    def __init__(self, root: Path, kept: int) -> None:
        self.root = root
        self._kept = kept

    def new_epoch(self) -> int:
        """The next epoch, taken by creating its file exclusively: two starts can never share one."""
        folder = self.root / "epochs"
        folder.mkdir(parents=True, exist_ok=True)
        epoch = self.highest_epoch() + 1
        while True:
            try:
                (folder / f"{epoch:06d}").touch(exist_ok=False)
            except FileExistsError:
                epoch += 1
                continue
            fsync(folder)
            return epoch

    def highest_epoch(self) -> int:
        return max((int(path.name) for path in (self.root / "epochs").glob("[0-9]*")), default=0)

    def record_start(self, epoch: int, start: EpochStart) -> None:
        """Make durable where the epoch goes on from, before it publishes or issues anything."""
        path = self.root / "epochs" / f"{epoch:06d}"
        path.write_text(json.dumps(asdict(start)), encoding="utf-8")
        fsync(path)

    def starts(self) -> dict[int, EpochStart]:
        """Of every epoch that got as far as to record it; one that did not has done nothing that anybody saw."""
        found = {}
        for path in sorted((self.root / "epochs").glob("[0-9]*")):
            try:
                found[int(path.name)] = EpochStart(**json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, TypeError):  # empty, or torn
                log.info("checkpoint.epoch_without_start", epoch=path.name)
        return found

    def save(self, state: State, write: Callable[[Path], None]) -> Path:
        """Write a checkpoint; it is durable when this returns. Older ones beyond ``kept`` are removed."""

        def write_all(folder: Path) -> None:
            write(folder)
            (folder / UIDS).write_bytes(state.ended.to_bytes())
            commit = {
                "epoch": state.epoch,
                "policy_version": state.policy_version,
                "cursor": state.cursor,
                "trained": state.trained,
                "identity": asdict(state.identity),
                "endings": [asdict(ending) for ending in state.endings],
                "files": [asdict(file) for file in listed(folder)],
            }
            (folder / COMMIT).write_text(json.dumps(commit), encoding="utf-8")

        for partial in self.root.glob("e*-s*.tmp"):  # of saves that failed; a full disk needs their room
            shutil.rmtree(partial)
        folder = self._unused(f"e{state.epoch:06d}-s{state.policy_version:08d}")
        write_folder(folder, write_all, durable=True)
        self._remove_older()
        return folder

    def newest(self) -> Checkpoint | None:
        """The newest valid checkpoint by (epoch, step). A broken one is logged and passed over."""
        for folder in self._folders():
            try:
                return Checkpoint(folder=folder, state=_read(folder))
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.error("checkpoint.invalid", folder=str(folder), reason=str(error))
        return None

    def check(self, now: Identity) -> None:
        """Before anything starts: raises SettingsError when the run cannot go on with such prompts or such a model.

        A checkpoint that cannot be read is passed over, as it is when the run goes on.
        """
        for folder in self._folders():
            try:
                commit: dict[str, Any] = json.loads((folder / COMMIT).read_text(encoding="utf-8"))
                saved = Identity(**commit["identity"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.error("checkpoint.invalid", folder=str(folder), reason=str(error))
                continue
            refuse_other(now, saved, folder.name)
            return

    def _unused(self, name: str) -> Path:
        """A step that was saved before keeps its folder until the new one is complete."""
        taken = [_age(path) for path in self._folders() if path.name.partition(".")[0] == name]
        return self.root / (f"{name}.{max(taken)[1] + 1}" if taken else name)

    def _folders(self) -> list[Path]:
        """Complete checkpoints, the newest first."""
        found = [path for path in self.root.glob("e*-s*") if not path.name.endswith(".tmp")]
        return sorted(found, key=_age, reverse=True)

    def _remove_older(self) -> None:
        for folder in self._folders()[self._kept :]:
            shutil.rmtree(folder)


def _age(folder: Path) -> tuple[str, int]:
    """Sorts by epoch and step (digits of fixed width), then by how often the step was saved before (a number)."""
    name, _, again = folder.name.partition(".")
    return name, int(again or 0)


def _read(folder: Path) -> State:
    """State of a checkpoint after all its hashes were checked. Raises ValueError, naming the file."""
    commit: dict[str, Any] = json.loads((folder / COMMIT).read_text(encoding="utf-8"))
    found = {file.name: file for file in listed(folder)}
    for expected in (WeightFile(**fields) for fields in commit["files"]):
        if found.get(expected.name) != expected:
            raise ValueError(f"{expected.name} is missing or altered")
    return State(
        epoch=commit["epoch"],
        policy_version=commit["policy_version"],
        cursor=commit["cursor"],
        identity=Identity(**commit["identity"]),
        endings=tuple(Ending(**fields) for fields in commit["endings"]),
        trained=commit["trained"],
        ended=UidLedger.from_bytes((folder / UIDS).read_bytes()),
    )
