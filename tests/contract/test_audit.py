"""The audit on the real server: a clean run, every kind of violation planted, and a run that goes on meanwhile."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cli import audit as audit_module
from cli.audit import audit, audit_run
from cli.audit_judge import Findings
from cli.embedded import EmbeddedServer
from cli.rundir import RunDirectory
from common.consumer import Consumer
from common.errors import ServerError
from common.keys import ACTORS, LEARNER, RECYCLER
from common.messages import Kind, Outcome
from common.server import connect, load_functions
from common.settings_sources import load_settings
from common.streams import Ending, Product, Streams
from learner.checkpoint import CheckpointStore, State
from learner.event_log import EventLog
from learner.fence import Fence
from learner.uid_ledger import UidLedger

ROOT = Path(__file__).parents[2]


def uid(number: int) -> str:
    return f"{number:032x}"


UIDS = [uid(number) for number in range(6)]


@dataclass
class Loop:
    """Actor, recycler and learner of one hand-driven run, and where it keeps its checkpoints and events."""

    streams: Streams
    folder: Path
    make_task: Callable
    token: str = "1:test"
    ended: UidLedger = field(default_factory=UidLedger)
    trained: int = 0

    def __post_init__(self) -> None:
        self.keys = self.streams.keys
        self.checkpoints = CheckpointStore(self.folder / "checkpoints", 2)
        self.events = self.folder / "events"
        self.kinds: dict[str, Kind] = {}
        for kind in ("policy", "judge"):
            self.kinds |= {self.keys.tasks(kind): kind, self.keys.rollouts(kind): kind}
        tasks, rollouts = ([stream for stream in self.kinds if f":{what}:" in stream] for what in ("tasks", "rollouts"))
        self.actor = Consumer(self.streams, ACTORS, "actor", tasks)
        self.recycler = Consumer(self.streams, RECYCLER, "recycler", [self.keys.rollouts("policy")])
        self.learner = Consumer(self.streams, LEARNER, "learner", rollouts)

    def issue(self, *uids: str) -> None:
        self.streams.issue(self.token, self.streams.cursor() or 0, [self.make_task(one) for one in uids])

    def act(self, count: int = 100) -> None:
        """Claim tasks and ship groups."""
        for task in self.actor.claim(count):
            target = self.keys.rollouts(self.kinds[task.stream])
            self.streams.transfer(task.stream, ACTORS, target, [(task.id, [Product(uid=task.uid, payload=b"")])])
            self.actor.done(task)

    def recycle(self, *made: str) -> None:
        """Everything that arrived is decided; the first group gives the judge tasks."""
        products = [Product(uid=one, payload=b"") for one in made]
        for group in self.recycler.claim(100):
            moves = [(group.id, products)]
            self.streams.transfer(group.stream, RECYCLER, self.keys.tasks("judge"), moves, issues="judge")
            self.recycler.done(group)
            products = []

    def learn(self, *outcomes: Outcome, count: int = 100) -> list[Ending]:
        """Claim groups and end them, in turn as ``outcomes`` say; a checkpoint has it then, the server not yet."""
        endings = []
        for index, group in enumerate(self.learner.claim(count)):
            outcome, kind = outcomes[index % len(outcomes)], self.kinds[group.stream]
            self.ended.add(group.uid, outcome, kind)
            self.trained += outcome == "trained"
            endings.append(Ending(stream=group.stream, id=group.id, uid=group.uid, outcome=outcome, kind=kind))
        return endings

    def save(self) -> None:
        cursor = self.streams.cursor() or 0
        state = State(epoch=1, policy_version=1, cursor=cursor, endings=(), ended=self.ended, trained=self.trained)
        self.checkpoints.save(state, lambda folder: None)

    def settle(self, endings: list[Ending]) -> None:
        self.streams.settle(self.token, LEARNER, 1, endings)

    def step(self, *outcomes: Outcome) -> None:
        endings = self.learn(*outcomes)
        self.save()
        self.settle(endings)

    def audit(self) -> Findings:
        return audit(self.streams, self.events, self.checkpoints)

    def rows(self, stream: str) -> list[tuple[str, str]]:
        """(id, uid) of every entry."""
        return [(entry.decode(), fields[b"uid"].decode()) for entry, fields in self.streams.client.xrange(stream)]


@pytest.fixture
def loop(run, make_task, tmp_path) -> Loop:
    run.streams.begin(run.token, "g1")
    return Loop(run.streams, tmp_path, make_task)


@pytest.fixture
def worked(loop: Loop) -> Loop:
    """Four tasks ended, one more is a task and one a group; a judge task was trained and one is under way."""
    loop.issue(*UIDS[:5])
    loop.act(4)
    loop.recycle(uid(100), uid(101))
    loop.act(1)
    bad = loop.learner.claim(1)[0]
    loop.streams.bury(bad, LEARNER, "it broke", "policy" if ":policy" in bad.stream else "judge")
    loop.step("trained", "filtered", "dropped_stale")
    loop.issue(UIDS[5])
    loop.act(1)
    assert loop.audit().violations == ()
    return loop


@pytest.mark.parametrize("backend", ["memory", "redis"])
def test_a_clean_run_has_no_violation_and_its_counts_are_those_of_the_ledger(worked: Loop) -> None:
    found = worked.audit()
    assert found.ok
    for kind, counts in worked.streams.conservation().kinds.items():
        assert {name: found.kinds[kind][name] for name in counts} == counts
    assert found.kinds["policy"]["issued"] == 6
    assert found.kinds["policy"]["dead"] + found.kinds["judge"]["dead"] == 1


def test_a_run_that_has_not_begun_has_no_violation(loop: Loop) -> None:
    assert loop.audit().ok


# -- planted -------------------------------------------------------------------------------------------------


def entry_in_flight(loop: Loop, stream: str, group: str) -> tuple[str, str]:
    """(id, uid) of an entry of a stream that its group has not acknowledged."""
    here = set(loop.streams.unacked(stream, group))
    return next(row for row in loop.rows(stream) if row[1] in here)


@pytest.mark.parametrize(("what", "group"), [("tasks", ACTORS), ("rollouts", LEARNER)])
@pytest.mark.parametrize("claimed", [True, False])
def test_an_entry_that_somebody_deletes_is_lost(loop: Loop, what, group, claimed) -> None:
    loop.issue(*UIDS[:3])
    if what == "rollouts":
        loop.act()
    stream = getattr(loop.keys, what)("policy")
    if claimed:
        (loop.actor if group == ACTORS else loop.learner).claim(2)
    entry_id, gone = entry_in_flight(loop, stream, group)
    loop.streams.client.xdel(stream, entry_id)
    found = loop.audit()
    assert (found.lost, found.kinds["policy"]["lost"], found.kinds["policy"]["in_flight"]) == ({gone}, 1, 2)
    assert {v.what for v in found.violations} == {"lost"}


def test_an_entry_acknowledged_without_its_product_is_lost(loop: Loop) -> None:
    """XACK, and killed before the XADD."""
    loop.issue(*UIDS[:2])
    [task] = loop.actor.claim(1)
    loop.streams.client.xack(task.stream, ACTORS, task.id)
    assert loop.audit().lost == {task.uid}


def test_a_product_appended_before_the_acknowledgement_is_in_two_places(loop: Loop) -> None:
    """XADD, and killed before the XACK."""
    loop.issue(*UIDS[:2])
    [task] = loop.actor.claim(1)
    loop.streams.client.xadd(loop.keys.rollouts("policy"), {"uid": task.uid, "m": b""})
    assert [(v.what, v.uid) for v in loop.audit().violations] == [("two_places", task.uid)]
    loop.act()
    loop.step("trained")
    loop.streams.client.xadd(loop.keys.returned, {"uid": task.uid, "m": b""})
    assert ("two_places", task.uid) in [(v.what, v.uid) for v in loop.audit().violations]


def test_a_uid_whose_end_is_told_twice_ended_twice(worked: Loop) -> None:
    [event] = [e for e in worked.streams.events() if e.fields.get("outcome") == "filtered:policy"]
    again = event.fields["uids"].split()[0]
    worked.streams.client.xadd(worked.keys.events, {**event.fields, "uids": again})
    found = worked.audit()
    assert found.twice == found.uids("twice") == {again}
    assert found.kinds["policy"]["twice"] == 1


def test_two_groups_of_one_task_that_are_both_trained_ended_twice(loop: Loop) -> None:
    """A learner that knows entries by their ids only."""
    loop.issue(UIDS[0])
    loop.act()
    loop.streams.client.xadd(loop.keys.rollouts("policy"), {"uid": UIDS[0], "m": b""})
    loop.step("trained")
    found = loop.audit()
    assert found.uids("twice") == {UIDS[0]}
    assert [v.detail for v in found.of("retrained")] == ["2 groups went into the weights, of 1 uids"]


def test_acknowledging_before_the_checkpoint_is_loss(worked: Loop) -> None:
    worked.settle(worked.learn("trained"))
    found = worked.audit()
    assert {v.what for v in found.violations} == {"undurable"}
    assert found.uids("undurable") == {event_uid(worked, "trained:policy")}
    worked.save()
    assert worked.audit().ok


def event_uid(loop: Loop, outcome: str) -> str:
    """The uid that ended last in this way."""
    return [e.fields["uids"] for e in loop.streams.events() if e.fields.get("outcome") == outcome][-1]


def test_without_any_valid_checkpoint_everything_acknowledged_is_lost(worked: Loop) -> None:
    for file in (worked.folder / "checkpoints").glob("e*-s*/ended.bin"):
        file.write_bytes(b"\0" * 17)
    acknowledged = {
        one
        for event in worked.streams.events()
        if event.fields["event"] == "ended" and not event.fields["outcome"].startswith("dead")
        for one in event.fields["uids"].split()
    }
    assert worked.audit().uids("undurable") == acknowledged
    assert len(acknowledged) == 4


def test_a_uid_that_nobody_issued_is_found(worked: Loop) -> None:
    worked.streams.client.xadd(worked.keys.tasks("judge"), {"uid": uid(7), "m": b""})
    worked.streams.client.xadd(worked.keys.tasks("policy"), {"uid": "\x1b[2J", "m": b""})
    assert worked.audit().uids("unissued") == {uid(7), "\x1b[2J"}


def test_a_ledger_that_was_tampered_with_disagrees(worked: Loop) -> None:
    worked.streams.client.hincrby(worked.keys.ledger, "trained:policy", 1)
    [violation] = worked.audit().violations
    assert (violation.what, violation.kind, violation.uid) == ("counter", "policy", "trained:policy")


def test_tasks_issued_twice_are_found(worked: Loop) -> None:
    worked.streams.client.xadd(worked.keys.events, {"event": "issued", "kind": "judge", "uids": uid(100)})
    assert worked.audit().uids("twice") == {uid(100)}


# -- what is no violation ---------------------------------------------------------------------------------------


def test_a_dead_letter_that_was_retried_and_trained_ended_once(loop: Loop) -> None:
    loop.issue(UIDS[0])
    [task] = loop.actor.claim(1)
    loop.streams.bury(task, ACTORS, "it broke", "policy")
    [letter] = loop.streams.dead_letters()
    assert loop.streams.revive(letter)
    assert loop.audit().kinds["policy"]["in_flight"] == 1
    loop.actor.done(task)
    loop.act()
    loop.step("trained")
    assert (loop.audit().ok, loop.audit().kinds["policy"]["trained"]) == (True, 1)


def test_a_checkpoint_ahead_of_its_acknowledgement_is_in_order(loop: Loop) -> None:
    loop.issue(*UIDS[:2])
    loop.act()
    loop.learn("trained")
    loop.save()
    assert (loop.audit().ok, loop.audit().kinds["policy"]["in_flight"]) == (True, 2)


def test_the_part_of_the_log_that_is_on_disk_counts(loop: Loop) -> None:
    """As the learner puts it there: what is old is taken off the server."""
    fence = Fence(loop.streams, loop.checkpoints, 1, loop.token, "g1")
    loop.issue(*UIDS[:3])
    loop.act()
    loop.step("trained", "filtered")
    seconds = iter([0.0, 60.0])
    spooler = EventLog(loop.streams, fence, loop.events, lambda: next(seconds))
    spooler.spool()
    spooler.spool()
    assert loop.streams.events() == []
    assert (loop.audit().ok, loop.audit().kinds["policy"]["issued"]) == (True, 3)
    (loop.events / "e000001.jsonl").unlink()
    assert {v.what for v in loop.audit().violations} == {"counter"}


def test_a_run_that_was_rebuilt_after_its_server_lost_it(worked: Loop) -> None:
    """The learner's own order: save, spool, (the server is emptied,) fence, rebuild, park, begin."""
    on_disk = worked.events / "e000001.jsonl"
    on_disk.parent.mkdir()
    lines = [{"generation": "g1", "id": e.id, **e.fields} for e in worked.streams.events()]
    on_disk.write_text("".join(json.dumps(line) + "\n" for line in lines))
    in_flight = worked.audit().kinds["judge"]["in_flight"] + worked.audit().kinds["judge"]["dead"]
    streams = worked.streams
    worked.save()
    cursor = streams.cursor()
    streams.client.flushdb()
    with pytest.raises(ServerError, match="knows nothing of run"):
        worked.audit()
    assert streams.client.keys() == []  # looking did not make the streams anew

    streams.take_fence(2, "2:b")
    ended = worked.ended.counts()
    counts = {f"{outcome}:{kind}": number for (outcome, kind), number in ended.items()}
    counts |= {"issued:policy": cursor, "issued:judge": sum(n for (_, kind), n in ended.items() if kind == "judge")}
    streams.rebuild("2:b", cursor, counts)
    streams.begin("2:b", "g2")
    missing = {one for one in UIDS if one not in worked.ended}
    assert worked.audit().lost == missing
    streams.park("2:b", [Product.of(one, worked.make_task(one)) for one in sorted(missing)])
    found = worked.audit()
    assert found.violations == ()
    assert (found.kinds["judge"]["forgotten"], found.kinds["policy"]["in_flight"]) == (in_flight, len(missing))


# -- a run that goes on -------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_while_it_is_read_gives_no_false_alarm(loop: Loop, server_url: str, clients) -> None:
    """And the one task that is really lost is found among all that moves."""
    loop.issue(UIDS[0])
    [(entry_id, _)] = loop.rows(loop.keys.tasks("policy"))
    loop.streams.client.xdel(loop.keys.tasks("policy"), entry_id)
    other = Loop(Streams(clients(server_url), "test"), loop.folder, loop.make_task)
    stop = threading.Event()

    def work() -> None:
        rng, number, judged = random.Random(0), 1000, 50_000
        while not stop.is_set():
            other.issue(*(uid(number + index) for index in range(5)))
            number += 5
            other.act(rng.randint(1, 8))
            other.recycle(uid(judged), uid(judged + 1))
            judged += 2
            other.act(rng.randint(1, 8))
            other.step("trained", "filtered", "trained")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(30):
            assert [(v.what, v.uid) for v in loop.audit().violations] == [("lost", UIDS[0])]
    finally:
        stop.set()
        thread.join(30)
    assert loop.audit().kinds["policy"]["trained"] > 0


class Moving(Streams):
    """A task is issued again while the places are read: from the last of them to the first."""

    moves = 1

    def unacked(self, stream: str, group: str, page: int = 500) -> list[str]:
        found = super().unacked(stream, group, page)
        if self.moves:
            self.moves -= 1
            [(entry_id, fields)] = self.client.xrange(self.keys.returned)
            product = Product(uid=fields[b"uid"].decode(), payload=b"")
            self.transfer(self.keys.returned, LEARNER, self.keys.tasks("policy"), [(entry_id.decode(), [product])])
        return found


@pytest.mark.parametrize("times", [1, 3])
def test_an_entry_that_hides_from_one_look_is_found_by_the_next(loop: Loop, monkeypatch, times) -> None:
    loop.issue(*UIDS[:2])
    [task, _] = loop.actor.claim(2)
    move = (task.id, [Product(uid=task.uid, payload=b"")])
    loop.streams.transfer(task.stream, ACTORS, loop.keys.returned, [move])
    loop.streams.read_new(LEARNER, "learner", [loop.keys.returned], 1, None)
    monkeypatch.setattr(audit_module, "PASSES", times)
    moving = Moving(loop.streams.client, "test")
    found = audit(moving, loop.events, loop.checkpoints)
    assert moving.moves == 0
    assert found.lost == ({task.uid} if times == 1 else set())
    assert found.ok == (times > 1)


# -- the command ------------------------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    folder = f"run.dir={json.dumps(str(tmp_path / 'runs'))}"
    run = RunDirectory(load_settings(ROOT / "examples" / "arithmetic" / "run.toml", [folder]))
    run.create()
    return run


def test_the_command_starts_a_server_that_is_down_and_tells_by_its_exit_code(
    directory: RunDirectory, make_task, capsys
) -> None:
    with EmbeddedServer(directory.server_data) as server, connect(server.url) as client:
        load_functions(client)
        streams = Streams(client, directory.settings.run.name)
        streams.create_groups()
        streams.take_fence(1, "1:test")
        loop = Loop(streams, directory.path, make_task)
        loop.issue(*(uid(number) for number in range(30)))
        loop.act(5)
        loop.step("trained")
    audit_run(directory.path, as_json=False)
    assert "every issued uid ends exactly once or is in flight" in capsys.readouterr().out

    with EmbeddedServer(directory.server_data) as server, connect(server.url) as client:
        streams = Streams(client, directory.settings.run.name)
        for entry_id, _ in streams.client.xrange(streams.keys.tasks("policy")):
            client.xdel(streams.keys.tasks("policy"), entry_id)
    with pytest.raises(SystemExit, match="1"):
        audit_run(directory.path, as_json=False)
    printed = capsys.readouterr().out
    assert "lost (issued, but neither ended nor in any stream): 25" in printed
    assert printed.count(f"  policy {'0' * 20}") == audit_module.SHOWN
    assert "and 5 more" in printed
    with pytest.raises(SystemExit, match="1"):
        audit_run(directory.path, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert [v["uid"] for v in told["violations"]["lost"]] == [uid(number) for number in range(5, 30)]
    assert (told["ok"], told["policy"]["lost"], told["policy"]["trained"]) == (False, 25, 5)
