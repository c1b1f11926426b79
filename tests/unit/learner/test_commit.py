"""The order of checkpoint and acknowledgement (learner/checkpoint.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from common.errors import Fenced
from common.streams import Ending
from learner.checkpoint import Checkpoint, CheckpointStore, State
from learner.commit import REPEATED_S, Committer
from learner.uid_ledger import UidLedger


class Disk(CheckpointStore):
    """The real store, which also writes down when it saved; may be full."""

    def __init__(self, root, calls) -> None:
        super().__init__(root, kept=2)
        self.calls = calls
        self.full = False

    def save(self, state, write) -> Path:
        if self.full:
            raise OSError(28, "No space left on device")
        folder = super().save(state, write)
        self.calls.append(("saved", state.policy_version))
        return folder


@dataclass
class Server:
    """Settles like the server does; looks for the checkpoint the moment it is asked to."""

    store: Disk
    calls: list = field(default_factory=list)
    acked: set = field(default_factory=set)

    class keys:
        @staticmethod
        def groups() -> dict[str, tuple[str, ...]]:
            return {"rollouts": ("learner",)}

    def settle(self, token, group, policy_version, endings) -> int:
        assert self.store.newest().state.policy_version == policy_version, "acknowledged before it was durable"
        assert endings == self.store.newest().state.endings
        before = len(self.acked)
        self.acked |= {ending.id for ending in endings}
        self.calls.append(("settled", [ending.id for ending in endings]))
        return len(self.acked) - before

    def trim(self, stream) -> int:
        self.calls.append(("trimmed", stream))
        return 0


@dataclass
class Shelf:
    endings: list[Ending] = field(default_factory=list)
    ended: UidLedger = field(default_factory=UidLedger)
    trained: int = 0
    remembered: list[list[str]] = field(default_factory=list)

    def remember(self, endings) -> None:
        self.remembered.append([ending.id for ending in endings])
        self.endings = self.endings[len(endings) :]


@dataclass
class Engine:
    policy_version: int = 0

    def write_checkpoint(self, folder) -> None:
        (folder / "model").write_bytes(b"m")


@dataclass
class Fence:
    check: object
    epoch: int = 1
    token: str = "1:t"

    def hold(self, call):
        return call()


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Issuer:
    reached: int = 0


def ending(index: int) -> Ending:
    return Ending(stream="rollouts", id=f"{index}-0", uid=f"{index:032x}", outcome="trained", kind="policy")


@dataclass
class World:
    disk: Disk
    server: Server
    shelf: Shelf
    engine: Engine
    committer: Committer
    clock: Clock

    def step(self, *indices: int) -> None:
        self.engine.policy_version += 1
        self.shelf.endings += [ending(index) for index in indices]
        self.committer.save_if_due(self.engine)


@pytest.fixture
def make_world(tmp_path):
    def make(every: int = 1, saved=None, guard=lambda: None) -> World:
        calls = []
        disk = Disk(tmp_path / "checkpoints", calls)
        server, shelf, engine = Server(disk, calls), Shelf(), Engine(saved.state.policy_version if saved else 0)
        clock = Clock()
        committer = Committer(server, disk, shelf, Issuer(7), fence=Fence(guard), every=every, saved=saved, clock=clock)
        return World(disk, server, shelf, engine, committer, clock)

    return make


def test_first_the_disk_then_the_server_then_the_trim(make_world) -> None:
    world = make_world()
    world.step(1, 2)
    assert world.server.calls == [("saved", 1), ("settled", ["1-0", "2-0"]), ("trimmed", "rollouts")]
    assert world.shelf.remembered == [["1-0", "2-0"]]
    assert world.shelf.endings == []


def test_a_checkpoint_repeats_what_was_settled_a_moment_ago_and_nothing_older(make_world) -> None:
    """A server that lost its last second forgot those acks; acknowledging twice changes nothing."""
    world = make_world()
    for index in (1, 2, 3):
        world.clock.now += 0.6 * REPEATED_S
        world.step(index)
    settled = [ids for what, ids in world.server.calls if what == "settled"]
    assert settled == [["1-0"], ["1-0", "2-0"], ["2-0", "3-0"]]


def test_after_a_resume_the_endings_of_the_loaded_checkpoint_are_repeated(make_world) -> None:
    state = State(epoch=1, policy_version=4, cursor=7, endings=(ending(1),), ended=UidLedger())
    world = make_world(saved=Checkpoint(folder=Path("e000001-s00000004"), state=state))
    world.step(2)
    world.clock.now += 1.1 * REPEATED_S
    world.step(3)
    settled = [ids for what, ids in world.server.calls if what == "settled"]
    assert settled == [["1-0", "2-0"], ["3-0"]]


def test_a_full_disk_settles_nothing_and_the_next_save_settles_all(make_world) -> None:
    world = make_world()
    world.step(1)
    world.disk.full = True
    world.step(2)
    world.step(3)
    assert world.server.acked == {"1-0"}
    assert world.disk.newest().state.policy_version == 1
    world.disk.full = False
    world.step(4)
    assert world.server.acked == {"1-0", "2-0", "3-0", "4-0"}
    assert world.shelf.endings == []


def test_the_last_save_waits_for_a_full_disk(make_world) -> None:
    world = make_world()
    world.disk.full = True
    world.step(1)
    naps = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        world.disk.full = len(naps) < 3

    world.committer._sleep = nap
    world.committer.finish(world.engine, lambda: False)
    assert (len(naps), world.server.acked) == (3, {"1-0"})


def test_a_learner_told_to_stop_does_not_wait_for_the_disk(make_world) -> None:
    world = make_world()
    world.disk.full = True
    world.step(1)
    world.committer.finish(world.engine, lambda: True)
    assert world.server.acked == set()


def test_between_two_checkpoints_nothing_is_settled(make_world) -> None:
    world = make_world(every=3)
    for index in range(1, 6):
        world.step(index)
    assert world.server.acked == {"1-0", "2-0", "3-0"}
    world.committer.save(world.engine)  # the end of the run
    assert world.server.acked == {"1-0", "2-0", "3-0", "4-0", "5-0"}


def test_the_end_of_a_run_saves_only_what_is_new(make_world) -> None:
    world = make_world()
    world.step(1)
    calls = list(world.server.calls)
    world.committer.save(world.engine)
    assert world.server.calls == calls
    world.shelf.endings.append(ending(9))  # filtered after the last step
    world.committer.save(world.engine)
    assert "9-0" in world.server.acked


def test_a_fenced_learner_saves_and_settles_nothing(make_world) -> None:
    def guard() -> None:
        raise Fenced("newer")

    world = make_world(guard=guard)
    with pytest.raises(Fenced):
        world.step(1)
    assert world.server.calls == []
    assert world.disk.newest() is None


def test_a_state_holds_the_cursor_and_every_ended_uid(make_world) -> None:
    world = make_world()
    world.shelf.ended.add("ab" * 16, "filtered", "policy")
    world.shelf.trained = 3
    world.step(1)
    found = world.disk.newest().state
    assert (found.cursor, found.trained, found.policy_version) == (7, 3, 1)
    assert found.ended.end_of("ab" * 16) == "filtered"
