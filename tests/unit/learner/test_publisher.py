"""Publishing: files before the manifest, and a version stays while an actor uses it."""

from __future__ import annotations

from dataclasses import dataclass, field

from common.lineage import ONE_LINE
from common.weights import WeightStore, verified
from learner.publisher import Publisher


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
