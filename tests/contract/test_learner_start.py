"""What a learner does about a server that lost something: its last second, everything, or the run itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.codec import decode
from common.consumer import Consumer
from common.errors import Fenced, ServerFull, SettingsError, WipedServer
from common.keys import ACTORS, LEARNER
from common.lineage import Lineage
from common.messages import ChatMessage, Task
from common.settings import Settings
from common.streams import Ending, Product, Streams, position
from common.templates import load_templates
from learner import event_log
from learner.checkpoint import CheckpointStore, State
from learner.event_log import EventLog
from learner.fence import Fence
from learner.identity import Identity
from learner.issuer import Issuer, in_flight
from learner.prompts.records import Prompt
from learner.prompts.source import PromptSource
from learner.start import Takeover, assemble, load, take_over
from learner.uid_ledger import UidLedger

TEMPLATES = load_templates("default")


def prompts(number: int = 40) -> PromptSource:
    records = [
        Prompt(index=i, question=f"q{i}", messages=(ChatMessage.user(f"q{i}"),), answer="2", verifier="exact")
        for i in range(number)
    ]
    return PromptSource(records, seed=0, shuffle=True, epochs=1)


@dataclass
class Learner:
    """A learner that has taken over, and its issuer."""

    streams: Streams
    store: CheckpointStore
    settings: Settings
    taken: Takeover

    def __post_init__(self) -> None:
        keys = self.streams.keys
        name = f"learner-e{self.taken.fence.epoch}"
        returned = Consumer(self.streams, LEARNER, name, [keys.returned])
        returned.adopt()
        self.issuer = Issuer(
            self.streams,
            self.taken.fence,
            prompts(),
            TEMPLATES,
            self.settings,
            cursor=self.taken.cursor,
            returned=returned,
            reached=self.taken.saved.state.cursor if self.taken.saved else 0,
        )

    def save(self, version: int, *uids: str, endings: tuple[Ending, ...] = ()) -> None:
        """A checkpoint that has trained these uids."""
        ended = UidLedger()
        for uid in uids:
            ended.add(uid, "trained", "policy")
        state = State(
            epoch=self.taken.fence.epoch,
            policy_version=version,
            cursor=self.issuer.reached,
            endings=endings,
            ended=ended,
            trained=len(uids),
            identity=Identity(prompts=prompts().fingerprint()),
        )
        self.store.save(state, lambda folder: None)

    def tasks(self) -> list[Task]:
        rows = self.streams.client.xrange(self.streams.keys.tasks("policy"))
        return [decode(Task, fields[b"m"]) for _, fields in rows]


@pytest.fixture
def start(streams: Streams, tmp_path: Path):
    store = CheckpointStore(tmp_path / "checkpoints", 2)

    def start(*, rebuild: bool = False, source: PromptSource | None = None) -> Learner:
        settings = Settings(run={"name": "test", "dir": str(tmp_path)}, redis={"rebuild": rebuild})
        taken = take_over(streams, store, source or prompts(), TEMPLATES, settings)
        return Learner(streams, store, settings, taken)

    return start


def wipe(streams: Streams) -> None:
    for key in streams.client.scan_iter():
        streams.client.delete(key)
    streams.create_groups()


# -- which data set ------------------------------------------------------------------------------------------


def test_epochs_record_what_they_go_on_from(start, streams) -> None:
    start().save(4)
    second = start()
    second.save(9)
    third = start()
    assert {e: (s.epoch, s.policy_version) for e, s in third.store.starts().items()} == {
        1: (0, 0),
        2: (1, 4),
        3: (2, 9),
    }
    assert third.taken.lineage == Lineage.of(3, {1: (0, 0), 2: (1, 4), 3: (2, 9)})
    assert third.taken.fence.generation == second.taken.fence.generation == streams.generation()


def test_the_servers_clock_is_known_before_the_first_lease(start, streams) -> None:
    """Set back before anybody had looked at it, it would keep what a dead actor holds for as long (seed 69500)."""
    client, clock = streams.client, streams.keys.clock
    assert client.get(clock) is None
    learner = start()
    assert client.xlen(streams.keys.tasks("policy")) == 0
    seconds, _ = client.time()
    assert abs(int(client.get(clock)) / 1000 - seconds) < 60
    client.set(clock, (seconds + 3600) * 1000)  # as if it had been an hour on
    learner.issuer.issue(1, 0)
    [entry] = streams.read_new(ACTORS, "dead", [streams.keys.tasks("policy")], 1, None)
    assert streams.mend_leases() == 1
    assert entry.deliveries == 1


def test_an_epoch_whose_record_was_torn_is_nobodys_ancestor(start) -> None:
    start().save(4)
    start()
    (start().store.root / "epochs" / "000002").write_text('{"epoch": 1, "poli')
    assert set(start().store.starts()) == {1, 3, 4}


def test_a_server_that_lost_the_run_is_refused_with_what_to_do(start, streams) -> None:
    start().save(3)
    wipe(streams)
    with pytest.raises(WipedServer, match=r"has lost the data of this run .* --rebuild"):
        start()


def test_the_server_of_another_run_of_this_name_is_refused_even_with_rebuild(start, streams) -> None:
    start().save(3)
    wipe(streams)
    streams.take_fence(1, "1:other")
    streams.begin("1:other", "another")
    for rebuild in (False, True):
        with pytest.raises(WipedServer, match=r"another data set \(another\)"):
            start(rebuild=rebuild)
    assert streams.generation() == "another"


def test_a_run_without_a_checkpoint_begins_anew_on_an_empty_server(start, streams) -> None:
    first = start()
    wipe(streams)
    second = start()
    assert second.taken.fence.generation != first.taken.fence.generation
    assert second.taken.cursor == 0


def test_a_living_learner_notices_that_the_server_was_wiped(start, streams) -> None:
    learner = start()
    learner.issuer.issue(2, 0)
    wipe(streams)
    with pytest.raises(WipedServer):
        learner.issuer.issue(2, 0)
    fence = Fence(streams, learner.store, 1, "1:t", learner.taken.fence.generation)
    with pytest.raises(WipedServer):
        fence.check()  # also when it has nothing to issue


def ending(entry_id: str, uid: str = "") -> Ending:
    return Ending(stream="spark:{test}:rollouts:policy", id=entry_id, uid=uid, outcome="trained", kind="policy")


# -- rebuilding ----------------------------------------------------------------------------------------------


def test_a_rebuilt_run_trains_the_rest_once(start, streams) -> None:
    learner = start()
    learner.issuer.issue(6, 0)
    issued = [task.uid for task in learner.tasks()]
    learner.save(3, *issued[1:3])
    wipe(streams)
    again = start(rebuild=True)
    assert streams.generation() == again.taken.fence.generation != learner.taken.fence.generation
    assert streams.conservation().kinds["policy"] == {
        "issued": 6,
        "trained": 2,
        "filtered": 0,
        "dropped_stale": 0,
        "dead": 0,
        "in_flight": 4,
    }
    again.issuer.take_back()
    again.issuer.issue(5, 3)
    tasks = again.tasks()
    assert [task.uid for task in tasks[:4]] == [issued[0], *issued[3:]]  # in their order, then a new one
    assert {task.issued_version for task in tasks} == {3}
    assert len({task.uid for task in tasks}) == 5
    assert again.issuer.cursor == 7
    assert streams.conservation().balanced


@dataclass
class Saved:
    """An engine at a version; its checkpoint is empty."""

    policy_version: int

    def write_checkpoint(self, folder: Path) -> None:
        pass


def test_what_ended_was_issued_although_the_server_had_forgotten_it(start, streams) -> None:
    """The learner had the third group in hand when the server lost it, trained it, and then the server was wiped.

    A learner in between has never heard of that prompt but by the checkpoint.
    """
    learner = start()
    learner.issuer.issue(3, 0)
    issued = [task.uid for task in learner.tasks()]
    forget_all_but(1, streams)
    assert learner.issuer.issue(1, 0) == 1
    assert learner.issuer.cursor == 2
    learner.save(3, issued[2])
    second = start()
    parts = assemble(second.taken, streams, second.store, prompts(), TEMPLATES, second.settings, stopping=lambda: True)
    assert parts.committer.save(Saved(4))
    wipe(streams)
    start(rebuild=True)
    again = streams.unacked(streams.keys.returned, LEARNER)
    assert again[:2] == issued[:2]
    assert issued[2] not in again
    assert streams.conservation().kinds["policy"]["trained"] == 1
    assert streams.conservation().balanced


def test_a_rebuild_that_was_cut_short_is_begun_again(start, streams, monkeypatch) -> None:
    learner = start()
    learner.issuer.issue(6, 0)
    learner.save(3)
    wipe(streams)
    with monkeypatch.context() as context:
        context.setattr("common.streams.CALL_ENTRIES", 4)
        park, calls = Streams._call, []

        def cut(self, function, keys, args, **options):
            if function == "spark_park":
                calls.append(function)
                if len(calls) == 2:
                    raise ServerFull("no room")
            return park(self, function, keys, args, **options)

        context.setattr(Streams, "_call", cut)
        with pytest.raises(ServerFull):
            start(rebuild=True)
    assert streams.generation() is None
    with pytest.raises(WipedServer):
        start()
    start(rebuild=True)
    assert len(streams.unacked(streams.keys.returned, LEARNER)) == 6
    assert streams.conservation().balanced


@pytest.mark.parametrize("when", ["rebuild", "park", "record_start"])
def test_a_server_that_loses_its_last_second_while_it_is_rebuilt_gets_no_name(
    start, streams, monkeypatch, when
) -> None:
    """Else what it held before the rebuild, or half of it, would go by the new name."""
    learner = start()
    learner.issuer.issue(6, 0)
    learner.save(3)
    wipe(streams)
    monkeypatch.setattr("common.streams.CALL_ENTRIES", 4)
    of = CheckpointStore if when == "record_start" else Streams
    call = getattr(of, when)

    def then_lost(*args):
        answer = call(*args)
        if when == "rebuild":
            streams.client.delete(streams.keys.rebuilt)
        else:
            streams.client.xtrim(streams.keys.returned, maxlen=4, approximate=False)
        return answer

    with monkeypatch.context() as context:
        context.setattr(of, when, then_lost)
        with pytest.raises(WipedServer, match="while this run was rebuilt"):
            start(rebuild=True)
    assert streams.generation() is None
    start(rebuild=True)
    assert len(streams.unacked(streams.keys.returned, LEARNER)) == 6
    assert streams.conservation().balanced


def test_a_chunk_of_a_rebuild_that_was_lost_is_noticed_by_the_next(start, streams, monkeypatch) -> None:
    start()
    monkeypatch.setattr("common.streams.CALL_ENTRIES", 1)
    streams.take_fence(2, "2:t")
    streams.rebuild("2:t", 2, {})

    def chunks():
        yield Product(uid="a", payload=b"m")
        yield Product(uid="b", payload=b"m")

    call = Streams._call

    def lost(self, function, *args, **options):
        answer = call(self, function, *args, **options)
        self.client.xtrim(self.keys.returned, maxlen=0, approximate=False)
        return answer

    monkeypatch.setattr(Streams, "_call", lost)
    with pytest.raises(WipedServer, match="while this run was rebuilt"):
        streams.park("2:t", chunks())


@pytest.mark.parametrize("after", [False, True])
def test_a_learner_killed_when_its_rebuilt_data_get_their_name_goes_on(start, streams, monkeypatch, after) -> None:
    learner = start()
    learner.issuer.issue(6, 0)
    learner.save(3)
    wipe(streams)
    begin = Streams.begin

    def killed(self, token, name, **parked):
        if after:
            begin(self, token, name, **parked)
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(Streams, "begin", killed)
        with pytest.raises(KeyboardInterrupt):
            start(rebuild=True)
    assert start(rebuild=True).taken.fence.generation == streams.generation()
    assert len(streams.unacked(streams.keys.returned, LEARNER)) == 6


def test_only_the_holder_of_the_fence_names_the_data(start, streams) -> None:
    """A learner that was paused in its start wakes up on a server that lost its first second."""
    learner = start()
    streams.client.delete(streams.keys.fence, streams.keys.generation)
    with pytest.raises(Fenced):
        streams.begin(learner.taken.fence.token, "late")
    assert streams.generation() is None


def test_a_learner_overtaken_in_its_start_names_no_data(start, streams, monkeypatch) -> None:
    """The server lost its first second, so nothing on it says that there is a newer one."""
    take_fence = Streams.take_fence

    def overtaken(self, epoch: int, token: str) -> bool:
        CheckpointStore(learner.store.root, 2).new_epoch()
        return take_fence(self, epoch, token)

    learner = start()
    wipe(streams)
    monkeypatch.setattr(Streams, "take_fence", overtaken)
    with pytest.raises(Fenced, match="epoch 3 has taken over from epoch 2"):
        start()
    assert streams.generation() is None


def test_an_overtaken_learner_stops_although_the_server_forgot_the_newer_one(start, streams) -> None:
    learner = start()
    held = streams.client.get(streams.keys.fence)
    start()
    streams.client.set(streams.keys.fence, held)  # the server lost its last second
    with pytest.raises(Fenced, match="epoch 2 has taken over"):
        learner.issuer.issue(2, 0)
    assert learner.tasks() == []


def test_parking_is_safe_to_repeat(start, streams) -> None:
    learner = start()
    learner.issuer.issue(2, 0)
    wipe(streams)
    token = learner.taken.fence.token
    streams.take_fence(1, token)
    streams.rebuild(token, 1, {})
    for _ in range(2):
        assert streams.park(token, [Product(uid="u", payload=b"m")]) == 1
    assert streams.unacked(streams.keys.returned, LEARNER) == ["u"]
    with pytest.raises(Fenced):
        streams.park("0:other", []) or streams.rebuild("0:other", 0, {})


def test_a_learner_whose_checkpoint_a_newer_one_removed_is_fenced(start) -> None:
    class Gone:
        def read_checkpoint(self, folder: Path, policy_version: int) -> None:
            raise FileNotFoundError(folder)

    start().save(3)
    second = start()
    with pytest.raises(FileNotFoundError):
        load(Gone(), second.taken)
    start()
    with pytest.raises(Fenced):
        load(Gone(), second.taken)


# -- a lost last second ----------------------------------------------------------------------------------------


def forget_all_but(issued: int, streams: Streams) -> None:
    """The server lost its last second, and with it the prompts after the first ones."""
    streams.client.set(streams.keys.cursor, issued)
    for entry_id, _ in streams.client.xrange(streams.keys.tasks("policy"))[issued:]:
        streams.client.xdel(streams.keys.tasks("policy"), entry_id)
    streams.client.hset(streams.keys.ledger, "issued:policy", issued)


def test_a_forgotten_fence_is_taken_again(start, streams) -> None:
    learner = start()
    streams.client.delete(streams.keys.fence)
    assert learner.issuer.issue(2, 0) == 2
    assert streams.client.get(streams.keys.fence).decode() == learner.taken.fence.token


def test_a_fence_of_a_younger_learner_is_not(start, streams) -> None:
    learner = start()
    start()
    streams.client.delete(streams.keys.fence)  # also when the server forgot who it was
    with pytest.raises(Fenced, match="epoch 2 has taken over from epoch 1"):
        learner.issuer.issue(2, 0)
    assert learner.tasks() == []


def test_a_fence_of_a_learner_with_another_checkpoint_store_is_not(start, streams) -> None:
    learner = start()
    streams.take_fence(5, "5:elsewhere")
    with pytest.raises(Fenced, match="another learner holds the fence"):
        learner.issuer.issue(2, 0)


def test_prompts_whose_issue_was_lost_are_issued_again_as_the_same_uids(start, streams) -> None:
    learner = start()
    learner.issuer.issue(3, 0)
    issued = [task.uid for task in learner.tasks()]
    forget_all_but(1, streams)
    assert learner.issuer.issue(3, 0) == 3
    assert [task.uid for task in learner.tasks()][:3] == issued
    assert learner.issuer.cursor == 4


def test_the_last_prompts_are_issued_again_too(start, streams) -> None:
    learner = start()
    assert learner.issuer.issue(50, 0) == 40
    assert learner.issuer.exhausted
    issued = [task.uid for task in learner.tasks()]
    forget_all_but(38, streams)
    assert learner.issuer.issue(50, 0) == 2
    assert [task.uid for task in learner.tasks()] == issued


@pytest.mark.parametrize("room", [1, 2, 3])
def test_a_server_that_issued_and_was_full_before_it_could_say_so(start, streams, monkeypatch, room) -> None:
    """The reply was lost, and the repeat refused: the learner does not know that two prompts are out."""
    learner, issue = start(), Streams.issue

    def then_full(*args) -> int:
        issue(*args)
        raise ServerFull("no room")

    with monkeypatch.context() as full:
        full.setattr(Streams, "issue", then_full)
        with pytest.raises(ServerFull):
            learner.issuer.issue(2, 0)
    learner.issuer.issue(room, 0)
    learner.issuer.issue(1, 0)
    uids = [task.uid for task in learner.tasks()]
    assert len(uids) == len(set(uids)) == learner.issuer.cursor == max(2, room) + 1


def test_a_cursor_that_somebody_moved_on_is_a_reason_to_stop(start, streams) -> None:
    learner = start()
    streams.client.set(streams.keys.cursor, 7)
    with pytest.raises(Fenced, match="cursor of this run is at 7, not 2"):
        learner.issuer.issue(2, 0)


def test_new_entries_never_get_the_ids_of_lost_ones(start, streams) -> None:
    """The server lost its newest entries, and its clock was set back."""
    high = f"{position(streams.newest_event())[0] + 10**13}-5"
    start().save(1, "ab" * 16, endings=(ending(high, "ab" * 16),))
    start()
    new = streams.client.xadd(streams.keys.rollouts("policy"), {"uid": "x"}).decode()
    assert position(new) > position(high)


# -- what comes back -------------------------------------------------------------------------------------------


def test_returned_prompts_go_out_before_new_ones_in_their_order(start, streams) -> None:
    learner = start()
    keys = streams.keys
    learner.issuer.issue(4, 7)
    actor = Consumer(streams, ACTORS, "a", [keys.tasks("policy")], lease_s=60.0)
    deliveries = actor.claim(4)
    for delivery in reversed(deliveries[1:]):
        product = Product(uid=delivery.uid, payload=delivery.payload)
        streams.transfer(delivery.stream, ACTORS, keys.returned, [(delivery.id, [product])])
    assert in_flight(streams) == {delivery.uid for delivery in deliveries}
    second = start()
    second.issuer.take_back()
    assert second.issuer.parked == 3
    assert second.issuer.issue(2, 1) == 0  # nothing new
    assert second.issuer.issue(2, 1) == 1
    out = second.tasks()[-4:]
    assert [task.uid for task in second.tasks()[4:]][:3] == [delivery.uid for delivery in deliveries[1:]]
    assert {task.issued_version for task in out} == {1}
    assert streams.conservation().balanced


def test_nothing_is_issued_before_what_was_inherited_is_found(start, streams) -> None:
    learner = start()
    learner.issuer.inherited = {"a", "b"}
    for uid in ("a", "b"):
        assert learner.issuer.issue(2, 0) == 0
        learner.issuer.forget(uid)
    assert learner.issuer.issue(2, 0) == 2


def test_what_is_returned_and_is_no_task_is_dead(start, streams) -> None:
    learner = start()
    streams.client.xadd(streams.keys.returned, {"uid": "u", "m": b"\xc1"})
    learner.issuer.take_back()
    assert [(letter.uid, letter.kind) for letter in streams.dead_letters()] == [("u", "policy")]
    assert learner.issuer.parked == 0


# -- the event log -------------------------------------------------------------------------------------------


def lines(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for path in sorted(folder.glob("*")) for line in path.read_text().splitlines()]


def test_old_events_move_to_disk_and_young_ones_stay(start, streams, tmp_path, monkeypatch) -> None:
    learner = start()
    for _ in range(3):
        learner.issuer.issue(1, 0)
    before = streams.events()
    spooler = EventLog(streams, learner.taken.fence, tmp_path / "events")
    for _ in range(2):
        spooler.spool()
    assert streams.events() == before  # all of them are young
    monkeypatch.setattr(event_log, "SETTLED_S", -1)
    spooler.spool()
    assert streams.events() == []
    found = lines(tmp_path / "events")
    assert [line["id"] for line in found] == [event.id for event in before]
    assert {line["generation"] for line in found} == {streams.generation()}
    assert [line["uids"] for line in found] == [event.fields["uids"] for event in before]


def test_a_full_disk_keeps_the_events_on_the_server(start, streams, tmp_path, monkeypatch) -> None:
    learner = start()
    learner.issuer.issue(1, 0)
    monkeypatch.setattr(event_log, "SETTLED_S", -1)
    (tmp_path / "events").write_text("no folder")  # so that nothing can be written under it
    EventLog(streams, learner.taken.fence, tmp_path / "events").spool()
    assert len(streams.events()) == 1


def test_events_are_as_old_as_the_learner_has_known_them(start, streams, tmp_path) -> None:
    """Their ids are times of the server's clock, which may jump; what it loses is its last second all the same."""
    learner, now = start(), 0.0
    spooler = EventLog(streams, learner.taken.fence, tmp_path / "events", lambda: now)
    learner.issuer.issue(1, 0)
    spooler.spool()
    later = f"{position(streams.newest_event())[0] + 10**8}-0"
    streams.client.xadd(streams.keys.events, {"event": "issued", "kind": "policy", "uids": "x"}, id=later)
    now = 20.0
    spooler.spool()
    assert len(streams.events()) == 2
    now = 31.0
    spooler.spool()
    assert [event.id for event in streams.events()] == [later]


def test_half_a_line_of_a_full_disk_is_cut_off(start, streams, tmp_path, monkeypatch) -> None:
    learner = start()
    monkeypatch.setattr(event_log, "SETTLED_S", -1)
    spooler = EventLog(streams, learner.taken.fence, tmp_path / "events")
    learner.issuer.issue(1, 0)
    with monkeypatch.context() as full:

        def fsync(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        full.setattr(event_log.os, "fsync", fsync)
        spooler.spool()
    assert lines(tmp_path / "events") == []
    assert len(streams.events()) == 1
    spooler.spool()
    assert [line["event"] for line in lines(tmp_path / "events")] == ["issued"]


def test_a_fenced_learner_deletes_no_events(start, streams, tmp_path, monkeypatch) -> None:
    learner = start()
    learner.issuer.issue(1, 0)
    start()
    monkeypatch.setattr(event_log, "SETTLED_S", -1)
    with pytest.raises(Fenced):
        EventLog(streams, learner.taken.fence, tmp_path / "events").spool()
    assert len(streams.events()) == 1


def test_other_prompts_are_refused(start) -> None:
    start().save(1)
    with pytest.raises(SettingsError, match="prompts are not those"):
        start(source=prompts(39))
