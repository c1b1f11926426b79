"""Groups, the fence, and a server that lost them."""

from __future__ import annotations

import pytest
import redis

from common.consumer import Consumer
from common.errors import Fenced, ServerError
from common.keys import ACTORS, LEARNER, RECYCLER
from common.server import Client, load_functions
from common.streams import Streams


def test_a_group_sees_entries_that_came_before_it(client: Client) -> None:
    streams = Streams(client, "test")
    stream = streams.keys.rollouts("policy")
    client.xadd(stream, {"uid": "early", "m": b""})
    streams.create_groups()
    for group in (LEARNER, RECYCLER):
        assert [entry.uid for entry in streams.read_new(group, "c", [stream], 10, None)] == ["early"]


def test_creating_groups_again_keeps_their_positions(run) -> None:
    run.issue("a")
    assert len(run.streams.read_new(ACTORS, "c", [run.tasks], 10, None)) == 1
    run.streams.create_groups()
    assert run.streams.read_new(ACTORS, "c", [run.tasks], 10, None) == []
    assert len(run.pending(run.tasks, ACTORS)) == 1


def test_the_fence_goes_to_higher_epochs_only(streams: Streams) -> None:
    assert streams.take_fence(9, "9:a")
    assert streams.take_fence(9, "9:a")  # a repeat, after a lost reply
    assert not streams.take_fence(8, "8:b")
    assert streams.take_fence(10, "10:c")  # as a number: "10" sorts before "9"
    assert streams.client.get(streams.keys.fence) == b"10:c"


def test_one_epoch_cannot_be_held_by_two_learners(streams: Streams) -> None:
    assert streams.take_fence(1, "1:here")
    assert not streams.take_fence(1, "1:elsewhere")
    assert streams.issue("1:here", 0, []) == 0
    with pytest.raises(Fenced):
        streams.issue("1:elsewhere", 0, [])


def test_a_lost_group_is_made_again_and_read_from_the_start(run) -> None:
    run.issue("a")
    consumer = Consumer(run.streams, ACTORS, "c", [run.judge_tasks, run.tasks])
    run.streams.client.xgroup_destroy(run.tasks, ACTORS)
    assert consumer.claim(1) == []
    assert [entry.uid for entry in consumer.claim(1)] == ["a"]


def test_what_was_claimed_before_the_error_is_not_forgotten(run) -> None:
    """The first source answered, the second failed: the first one's entry is ours although claim returned nothing."""
    run.issue("a")
    consumer = Consumer(run.streams, ACTORS, "c", [run.tasks, run.judge_tasks])
    run.streams.client.xgroup_destroy(run.judge_tasks, ACTORS)
    assert consumer.claim(2) == []
    assert [entry.uid for entry in consumer.claim(2)] == ["a"]


@pytest.mark.parametrize("wipe", ["group", "everything"])
def test_every_call_mends_a_lost_group(run, wipe: str) -> None:
    client, streams = run.streams.client, run.streams
    calls = [
        lambda: streams.trim(run.rollouts),
        lambda: streams.adopt(run.rollouts, LEARNER, "c"),
        lambda: streams.backlog(run.rollouts, LEARNER).total,
        lambda: len(streams.renew(run.rollouts, LEARNER, "c", ["1-1"])),
    ]
    for call in calls:
        if wipe == "group":
            client.xgroup_destroy(run.rollouts, LEARNER)
        else:
            client.flushall()
        assert call() == 0
        groups = {info["name"].decode() for info in client.xinfo_groups(run.rollouts)}
        assert LEARNER in groups


def test_a_server_without_the_functions_is_one_sentence(run) -> None:
    run.streams.client.function_flush()
    with pytest.raises(ServerError, match="has lost the stream functions"):
        run.issue("a")
    load_functions(run.streams.client)
    run.issue("a")


def test_a_stream_that_is_flushed_while_its_groups_are_made_is_made_again(client: Client, monkeypatch) -> None:
    """A full server refuses to say that the group exists; and then, when asked for it, the stream is gone."""
    streams, refused = Streams(client, "test", sleep=lambda _: None), []
    create = client.xgroup_create

    def full_at_first(*args: object, **options: object) -> object:
        if not refused:
            refused.append(args)
            raise redis.OutOfMemoryError("OOM command not allowed when used memory > 'maxmemory'")
        return create(*args, **options)

    monkeypatch.setattr(client, "xgroup_create", full_at_first)
    streams.create_groups()
    assert all(client.xinfo_groups(stream) for stream in streams.keys.groups())
