"""What the processes tell each other: heartbeats, progress, weights."""

from __future__ import annotations

from common.codec import decode
from common.heartbeat import Heartbeat
from common.messages import WeightFile, WeightManifest
from common.records import STOPPED, lives
from common.streams import WEIGHTS_REMEMBERED


def manifest(version: int) -> WeightManifest:
    file = WeightFile(name="model.safetensors", sha256="0" * 64, size=1)
    return WeightManifest(epoch=1, version=version, parent=version - 1, uri="/nowhere", files=(file,))


def test_a_member_lives_as_long_as_its_heartbeat_by_the_servers_clock(streams, wait_until) -> None:
    streams.heartbeat("actor-1", {"policy_version": 3}, ttl_s=60)
    streams.heartbeat("actor-2", {"policy_version": 4}, ttl_s=0.02)
    wait_until(lambda: streams.members()["actor-2"] is None)
    assert streams.members() == {"actor-1": {"policy_version": 3}, "actor-2": None}


def test_a_farewell_stays_until_the_next_sign_of_life(streams) -> None:
    heartbeat = Heartbeat(streams, "actor-1", "actor")
    heartbeat.stop()
    beat = streams.members()["actor-1"]
    assert beat == {"role": "actor", "state": STOPPED}
    assert not lives(beat)
    assert not streams.lives("actor-1")
    assert heartbeat.last_sign("actor-1") == "actor-1 is not running"
    assert streams.client.pttl(streams.keys.heartbeat("actor-1")) == -1
    streams.heartbeat("actor-1", {"role": "actor", "state": "generating"}, ttl_s=60)
    assert lives(streams.members()["actor-1"])
    assert streams.lives("actor-1")


def test_the_last_heartbeat_counts(streams) -> None:
    for version in (1, 2):
        streams.heartbeat("actor-1", {"policy_version": version}, ttl_s=60)
    assert streams.members() == {"actor-1": {"policy_version": 2}}
    assert 59_000 < streams.client.pttl(streams.keys.heartbeat("actor-1")) <= 60_000


def test_nobody_is_a_member_at_first(streams) -> None:
    assert streams.members() == {}


def test_progress_is_merged_by_field(streams) -> None:
    assert streams.progress() == {}
    streams.report_progress(policy_version=1, judge_granted=5)
    streams.report_progress(policy_version=2)
    assert streams.progress() == {"policy_version": "2", "judge_granted": "5"}


def test_the_newest_weights_come_first(streams) -> None:
    assert streams.newest_weights() == []
    for version in range(6):
        streams.publish(manifest(version))
    found = [decode(WeightManifest, payload) for payload in streams.newest_weights(3)]
    assert found == [manifest(5), manifest(4), manifest(3)]


def test_the_weights_stream_does_not_grow_for_ever(streams) -> None:
    for version in range(WEIGHTS_REMEMBERED + 300):
        streams.publish(manifest(version))
    assert WEIGHTS_REMEMBERED <= streams.client.xlen(streams.keys.weights) < WEIGHTS_REMEMBERED + 200
    assert decode(WeightManifest, streams.newest_weights(1)[0]).version == WEIGHTS_REMEMBERED + 299


def test_a_wait_for_weights_ends_without_any(streams) -> None:
    streams.wait_for_weights(1)


def test_without_a_limit_no_memory_is_in_use(streams) -> None:
    assert streams.memory_share() == 0.0
    limit = 100_000_000
    streams.client.config_set("maxmemory", limit)
    try:
        used = streams.client.info("memory")["used_memory"]
        assert abs(streams.memory_share() - used / limit) < 0.01
    finally:
        streams.client.config_set("maxmemory", 0)
