"""Publishing: files before the manifest, and a version stays while an actor uses it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from weight_versions import Model

from common.codec import encode
from common.lineage import ONE_LINE
from common.remote import Remote
from common.weights import WeightStore, verified
from learner.publisher import TEND_S, Publisher


@dataclass
class Streams:
    manifests: list = field(default_factory=list)
    beats: dict = field(default_factory=dict)
    progress: dict = field(default_factory=dict)

    def publish(self, manifest) -> None:
        assert [path.read_bytes() for path in verified(manifest)] == [b"%d" % manifest.version]  # complete by now
        self.manifests.append(manifest)

    def report_progress(self, **fields) -> None:
        assert self.manifests[-1].version == fields["policy_version"]
        self.progress |= fields

    def members(self):
        return self.beats


class Engine:
    policy_version = 0

    def write_weights(self, folder) -> None:
        (folder / "model.safetensors").write_bytes(b"%d" % self.policy_version)


def publish(tmp_path, versions, beats=None, kept=2):
    streams, engine = Streams(beats=beats or {}), Engine()
    publisher = Publisher(streams, WeightStore(tmp_path), epoch=3, kept=kept)
    for engine.policy_version in versions:
        publisher.publish(engine)
    return streams, sorted(int(path.name.rpartition("v")[2]) for path in tmp_path.iterdir())


def test_manifests_name_their_parent_and_come_last(tmp_path) -> None:
    streams, _ = publish(tmp_path, range(4))
    assert [(m.epoch, m.version, m.parent) for m in streams.manifests] == [(3, 0, -1), (3, 1, 0), (3, 2, 1), (3, 3, 2)]
    assert streams.progress == {"policy_version": 3, "epoch": 3, "lineage": ONE_LINE.to_json()}


def test_only_the_newest_are_kept(tmp_path) -> None:
    assert publish(tmp_path, range(6))[1] == [4, 5]


def test_a_version_stays_while_a_living_actor_uses_it(tmp_path) -> None:
    beats = {
        "slow": {"role": "actor", "policy_version": 2},
        "dead": None,
        "starting": {"role": "actor", "policy_version": -1},
        "recycler": {"role": "recycler", "policy_version": 0},
        "stopped": {"role": "actor", "state": "stopped"},
    }
    assert publish(tmp_path, range(6), beats)[1] == [2, 3, 4, 5]


def test_it_never_waits_and_keeps_all_while_there_are_few(tmp_path) -> None:
    assert publish(tmp_path, range(3), kept=4)[1] == [0, 1, 2]


# -- what the disk and the server do to it ---------------------------------------------------------------------


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class FullDisk(Engine):
    full = True

    def write_weights(self, folder) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        super().write_weights(folder)


@dataclass
class Server(Streams):
    """Remembers what was announced, until it loses it."""

    def newest_weights(self):
        return [encode(manifest) for manifest in reversed(self.manifests)]


@pytest.fixture
def tended(tmp_path):
    clock = Clock()
    server = Server()
    return server, Publisher(server, WeightStore(tmp_path), epoch=3, kept=2, clock=clock), clock


def test_weights_that_a_full_disk_refused_are_published_when_it_has_room(tended) -> None:
    server, publisher, clock = tended
    engine = FullDisk()
    publisher.publish(engine)
    for _ in range(3):
        clock.now += TEND_S + 1
        publisher.tend(engine)
    assert server.manifests == []
    engine.full = False
    publisher.tend(engine)
    assert server.manifests == []  # not at every look
    clock.now += TEND_S + 1
    publisher.tend(engine)
    assert [m.version for m in server.manifests] == [0]


def test_weights_that_the_server_lost_are_announced_again(tended) -> None:
    server, publisher, clock = tended
    publisher.publish(Engine())
    [announced] = server.manifests
    server.manifests.clear()
    server.progress.clear()
    clock.now += TEND_S + 1
    publisher.tend(Engine())
    clock.now += TEND_S + 1
    publisher.tend(Engine())
    assert server.manifests == [announced]
    assert server.progress["policy_version"] == 0


def test_damaged_weights_that_actors_cannot_load_are_written_again(tended, tmp_path) -> None:
    server, publisher, clock = tended
    publisher.publish(Engine())
    [path] = verified(server.manifests[0])
    server.beats["a"] = {"role": "actor", "policy_version": 0, "apply_failures": 1}
    clock.now += TEND_S + 1
    publisher.tend(Engine())
    assert len(server.manifests) == 1  # nothing is wrong with them
    path.write_bytes(b"torn")
    clock.now += TEND_S + 1
    publisher.tend(Engine())
    assert len(server.manifests) == 1  # nobody complains
    server.beats["a"]["apply_failures"] = 2
    clock.now += TEND_S + 1
    publisher.tend(Engine())
    assert server.manifests[1] == server.manifests[0]
    assert path.read_bytes() == b"0"


def test_an_actor_that_never_updates_does_not_keep_every_version(tmp_path) -> None:
    beats = {"stuck": {"role": "actor", "policy_version": 0}}
    assert publish(tmp_path, range(40), beats)[1] == list(range(24, 40))


# -- differences --------------------------------------------------------------------------------------------------


class ModelEngine:
    """Writes tensors, of which a step moves a few bits."""

    def __init__(self) -> None:
        self.policy_version = 0
        self.model = Model()

    def step(self) -> None:
        self.policy_version += 1
        self.model.step()

    def write_weights(self, folder) -> None:
        self.model.write(folder)


@dataclass
class Announced(Server):
    def publish(self, manifest) -> None:
        self.manifests.append(manifest)


@pytest.fixture
def chained(tmp_path):
    clock, server = Clock(), Announced()
    store = WeightStore(tmp_path, anchor_every=4)
    return server, Publisher(server, store, epoch=3, kept=1, clock=clock), clock


def publish_steps(publisher, engine, count) -> None:
    for _ in range(count):
        publisher.publish(engine)
        engine.step()
    engine.policy_version -= 1  # it is as it was published


def test_the_chain_of_the_newest_version_is_kept(chained, tmp_path) -> None:
    server, publisher, _ = chained
    publish_steps(publisher, ModelEngine(), 7)
    assert [len(manifest.chain) for manifest in server.manifests] == [0, 1, 2, 3, 0, 1, 2]
    assert [link.version for link in server.manifests[-1].links] == [4, 5, 6]
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"e000003-v{version:08d}" for version in (4, 5, 6)),
        "e000003-v00000006.whole",
    }


def test_a_difference_that_actors_cannot_apply_is_published_whole(chained) -> None:
    """Even where every file is as it was written: it may not lead where it should."""
    server, publisher, clock = chained
    engine = ModelEngine()
    publish_steps(publisher, engine, 2)
    clock.now += TEND_S + 1
    publisher.tend(engine)
    assert len(server.manifests) == 2  # nobody complains
    server.beats["a"] = {"role": "actor", "policy_version": 0, "apply_failures": 1}
    for _ in range(3):
        clock.now += TEND_S + 1
        publisher.tend(engine)
    assert [(m.version, m.parent, len(m.chain)) for m in server.manifests] == [(0, -1, 0), (1, 0, 1), (1, 0, 0)]
    assert verified(server.manifests[2])
    server.beats["a"]["apply_failures"] = 2
    clock.now += TEND_S + 1
    publisher.tend(engine)
    assert len(server.manifests) == 3  # whole weights that are intact are not the reason


def test_a_difference_that_the_server_lost_is_announced_again_with_its_chain(chained) -> None:
    server, publisher, clock = chained
    engine = ModelEngine()
    publish_steps(publisher, engine, 3)
    announced = server.manifests[-1]
    server.manifests.clear()
    clock.now += TEND_S + 1
    publisher.tend(engine)
    assert server.manifests == [announced]
    assert len(announced.chain) == 2


def test_a_store_that_cannot_be_reached_is_tried_again(tmp_path, monkeypatch) -> None:
    clock, server = Clock(), Announced()
    remote = Remote(f"file://{tmp_path}/shared", "demo", writing=True)
    publisher = Publisher(server, WeightStore(tmp_path / "w", remote=remote), epoch=3, kept=2, clock=clock)

    def away(_folder) -> None:
        raise OSError("no route to host")

    with monkeypatch.context() as patch:
        patch.setattr(remote, "upload", away)
        publisher.publish(ModelEngine())
    assert server.manifests == []
    clock.now += TEND_S + 1
    publisher.tend(ModelEngine())
    assert [manifest.uri for manifest in server.manifests] == [f"file://{tmp_path}/shared/demo/e000003-v00000000"]
