"""`spark tail` on the real server: what is on the streams is shown harmlessly, and nobody's work is disturbed."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli import tail as module
from cli.rundir import RunDirectory
from cli.tail import Printer, Wanted, tail
from cli.tail_rows import archived_row
from cli.tail_sources import StreamSource
from common.archive import ArchivedGroup
from common.codec import encode
from common.errors import SettingsError
from common.keys import ACTORS, LEARNER
from common.messages import Completion, Rollout, RolloutGroup, SourceRef, Task, Verdict, WeightFile, WeightManifest
from common.settings_sources import load_settings
from common.streams import Streams

ROOT = Path(__file__).parents[2]
UIDS = [f"{number:x}" * 32 for number in range(1, 6)]
HOSTILE = "\x1b[2J\x1b]0;owned\x07[bold red]:bomb:[/] ‮reversed\r\n\x9b31m"


@pytest.fixture
def path(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run directory whose server is that of the test."""
    overrides = [f"run.dir={json.dumps(str(tmp_path))}", "run.name=test"]
    directory = RunDirectory(load_settings(ROOT / "examples" / "arithmetic" / "run.toml", overrides))
    directory.create()
    monkeypatch.setattr(module, "streams_of", lambda _: contextlib.nullcontext(run.streams))
    monkeypatch.setattr(module, "server_of", lambda _: "unix:///there")
    return directory.path


def group_of(task: Task, text: str = "so 2", actor: str = "actor-0") -> RolloutGroup:
    completion = Completion(
        token_ids=np.array([7, 123456], dtype=np.int32),
        logprobs=np.array([-1.0, -0.5], dtype=np.float32),
        spans=((3, 0), (4, 1)),
        finish_reason="stop",
        text=text,
    )
    verdicts = (
        Verdict(status="ok", reward=1.0, verifier="exact@1", answer="2"),
        Verdict(status="no_answer", reward=0.0, verifier="exact@1"),
    )
    return RolloutGroup(
        task=task,
        prompt_token_ids=np.array([1, 5, 6], dtype=np.int32),
        rollouts=tuple(Rollout(completion=completion, verdict=verdict) for verdict in verdicts),
        actor=actor,
        weights_epoch=1,
        generated_at=0.0,
    )


def judge(task: Task, source: str) -> Task:
    ref = SourceRef(
        uid=source, sample=1, answer_hash="h", policy_version=3, weights_epoch=1, correct=False, verifier="exact@1"
    )
    return replace(task, objective="pointwise", sources=(ref,), positive=False)


def add(run, stream: str, uid: str, message: object) -> None:
    payload = message if isinstance(message, bytes) else encode(message)
    run.streams.client.xadd(stream, {"uid": uid, "m": payload})


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def show(path: Path, what: str, *, most: int = 20, as_json: bool = False, **wanted: Any) -> None:
    tail(path, what, most=most, follow=False, as_json=as_json, wanted=Wanted(**wanted))


def test_tasks_and_groups_have_a_line_each_in_the_order_they_came(run, path, make_task, capsys) -> None:
    add(run, run.tasks, UIDS[0], make_task(UIDS[0]))
    add(run, run.rollouts, UIDS[1], group_of(make_task(UIDS[1])))
    add(run, run.judge_rollouts, UIDS[2], group_of(judge(make_task(UIDS[2]), UIDS[1]), actor="actor-1"))
    show(path, "tasks")
    [task] = lines(capsys)
    assert all(word in task for word in ("11111111", "solve", "issued at v0", '"1+1"'))
    show(path, "rollouts")
    policy, judged = sorted(lines(capsys), key=lambda line: "pointwise" in line)  # of two streams in one millisecond
    assert all(word in policy for word in ("22222222", "solve", "actor-0", "v3-4", "1-", "4 tokens", '"so 2"'))
    assert all(word in judged for word in ("33333333", "pointwise", "actor-1", "of 22222222#1 wrong"))


def test_the_full_record_is_one_json_object_a_line(run, path, make_task, capsys) -> None:
    add(run, run.rollouts, UIDS[1], group_of(make_task(UIDS[1]), HOSTILE))
    show(path, "rp", as_json=True)
    [line] = lines(capsys)
    told = json.loads(line)
    assert told["stream"].endswith("rollouts:policy")
    assert told["message"]["rollouts"][0]["completion"]["token_ids"] == [7, 123456]
    assert told["message"]["rollouts"][0]["completion"]["logprobs"] == [-1.0, -0.5]
    assert told["message"]["rollouts"][0]["completion"]["text"] == HOSTILE
    assert told["message"]["task"]["uid"] == UIDS[1]


def test_foreign_text_is_harmless_on_every_stream(run, path, make_task, capsys) -> None:
    nasty = replace(make_task(UIDS[0]), question=HOSTILE, template=HOSTILE, answer=HOSTILE)
    add(run, run.tasks, UIDS[0], nasty)
    add(run, run.rollouts, UIDS[0], group_of(nasty, HOSTILE, actor=HOSTILE))
    add(run, run.rollouts, HOSTILE, b"\xc1")
    manifest = WeightManifest(epoch=1, version=1, parent=0, uri=HOSTILE, files=())
    run.streams.client.xadd(run.streams.keys.weights, {"m": encode(manifest)})
    run.streams.client.xadd(run.streams.keys.events, {"event": HOSTILE, HOSTILE: HOSTILE, "uids": HOSTILE})
    [delivery] = run.streams.read_new(ACTORS, "c", [run.tasks], 1, None)
    run.streams.bury(delivery, ACTORS, HOSTILE, "policy")
    for what, number in (("tasks", 1), ("rollouts", 2), ("weights", 1), ("events", 2), ("dead", 1)):
        show(path, what)
        printed = capsys.readouterr().out
        assert len(printed.splitlines()) == number, what
        assert all(character.isprintable() or character == "\n" for character in printed), what


def test_an_entry_that_cannot_be_decoded_is_shown_as_that(run, path, capsys) -> None:
    add(run, run.tasks, UIDS[0], b"\xc1")
    show(path, "tasks:policy")
    show(path, "tasks:policy", as_json=True)
    line, full = lines(capsys)
    assert "11111111" in line
    assert "unreadable" in line
    assert json.loads(full)["bytes"] == 1


def test_lines_are_chosen_by_objective_actor_and_uid(run, path, make_task, capsys) -> None:
    add(run, run.rollouts, UIDS[0], group_of(make_task(UIDS[0]), actor="actor-0"))
    add(run, run.rollouts, UIDS[1], group_of(make_task(UIDS[1]), actor="actor-1"))
    add(run, run.judge_rollouts, UIDS[2], group_of(judge(make_task(UIDS[2]), UIDS[0]), actor="actor-1"))

    def shown(**wanted: str) -> list[str]:
        show(path, "rollouts", as_json=True, **wanted)
        return sorted(json.loads(line)["message"]["task"]["uid"] for line in lines(capsys))  # all of one millisecond

    assert shown() == UIDS[:3]
    assert shown(objective="solve") == UIDS[:2]
    assert shown(actor="actor-1") == UIDS[1:3]
    assert shown(uid=UIDS[0][:6]) == [UIDS[0], UIDS[2]]  # the judge task shows its answer
    assert shown(objective="solve", actor="actor-1") == [UIDS[1]]
    assert shown(uid="f") == []


def test_the_newest_of_many_pages_are_shown(run, path, make_task, capsys) -> None:
    uids = [f"{number:032x}" for number in range(70)]
    for uid in uids:
        add(run, run.tasks, uid, make_task(uid))
    show(path, "tasks", most=45, as_json=True)
    assert [json.loads(line)["message"]["uid"] for line in lines(capsys)] == uids[-45:]
    show(path, "tasks", most=0)
    assert lines(capsys) == []


def test_weights_are_whole_or_a_difference(run, path, capsys) -> None:
    file = WeightFile(name="model.safetensors", sha256="0" * 64, size=3 * 2**20)
    manifest = WeightManifest(epoch=2, version=7, parent=6, uri="/weights", files=(file,))
    run.streams.publish(manifest)
    show(path, "weights")
    [line] = lines(capsys)
    assert all(word in line for word in ("v7", "epoch 2", "after v6", "whole, 3.0 MiB in 1 files", "/weights"))


def test_events_come_from_the_server_and_from_the_disk_each_once(run, path, capsys) -> None:
    run.issue(*UIDS[:3])
    [event] = run.streams.events()
    (path / "events").mkdir()
    older = {"generation": "g", "id": "5-0", "event": "issued", "kind": "policy", "uids": UIDS[4]}
    moved = {"generation": "g", "id": event.id, **event.fields}
    text = "".join(json.dumps(line) + "\n" for line in (older, moved))
    (path / "events" / "e000001.jsonl").write_text(text)
    show(path, "events", as_json=True)
    assert [json.loads(line)["uids"].split() for line in lines(capsys)] == [[UIDS[4]], UIDS[:3]]
    show(path, "events", uid="555")
    [line] = lines(capsys)
    assert "issued" in line
    assert "55555555" in line


# -- nobody is disturbed -------------------------------------------------------------------------------------------


def state(streams: Streams) -> Any:
    """All that a consumer group knows, and what is pending for whom."""
    client, keys = streams.client, streams.keys
    found: dict[str, Any] = {}
    for stream, groups in keys.groups().items():
        infos: Any = client.xinfo_groups(stream)
        rows = [client.xpending_range(stream, group, "-", "+", 100) for group in groups]
        pending = [(row["message_id"], row["consumer"], row["times_delivered"]) for some in rows for row in some]
        found[stream] = (infos, pending)
    return found


@pytest.mark.parametrize("what", ["tasks", "rollouts", "returned", "weights", "dead", "events"])
def test_groups_and_pending_entries_are_as_before(run, path, make_task, capsys, what: str) -> None:
    for uid in UIDS[:4]:
        add(run, run.tasks, uid, make_task(uid))
        add(run, run.rollouts, uid, group_of(make_task(uid)))
    run.streams.read_new(ACTORS, "a", [run.tasks], 2, None)
    run.streams.read_new(LEARNER, "l", [run.rollouts], 3, None)
    before, keys = state(run.streams), sorted(run.streams.client.keys())
    show(path, what)
    show(path, what, as_json=True, uid=None)
    assert state(run.streams) == before
    assert sorted(run.streams.client.keys()) == keys


# -- following -----------------------------------------------------------------------------------------------------


class Recorder(io.StringIO):
    """Standard output that ends the tail after ``most`` lines, as Ctrl-C or a closed pipe would."""

    def __init__(self, most: int, how: type[BaseException]) -> None:
        super().__init__()
        self._most = most
        self._how = how

    def flush(self) -> None:
        if len(self.getvalue().splitlines()) >= self._most:
            self._most = sys.maxsize
            raise self._how


@pytest.mark.parametrize("how", [KeyboardInterrupt, BrokenPipeError])
def test_following_shows_what_comes_and_ends_in_peace(
    run, path, make_task, monkeypatch: pytest.MonkeyPatch, how: type[BaseException]
) -> None:
    add(run, run.tasks, UIDS[0], make_task(UIDS[0]))
    more: Callable[..., Any] = StreamSource.more
    coming = [(run.judge_tasks, UIDS[1]), (run.tasks, UIDS[2])]

    def and_meanwhile(self: StreamSource, wait_s: float) -> Any:
        if coming:
            stream, uid = coming.pop(0)
            add(run, stream, uid, make_task(uid))
        return more(self, wait_s)

    monkeypatch.setattr(StreamSource, "more", and_meanwhile)
    monkeypatch.setattr(Printer, "reader_left", lambda _: False)
    output = Recorder(3, how)
    monkeypatch.setattr(sys, "stdout", output)
    tail(path, "tasks", most=5, follow=True, as_json=True, wanted=Wanted())
    told = [json.loads(line)["message"]["uid"] for line in output.getvalue().splitlines()]
    assert told == UIDS[:3]


def test_a_run_whose_server_is_down_is_not_followed(path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "server_of", lambda _: None)
    with pytest.raises(SettingsError, match="is not up"):
        tail(path, "tasks", most=5, follow=True, as_json=False, wanted=Wanted())


# -- what cannot be asked ------------------------------------------------------------------------------------------


def test_an_unknown_name_is_told_the_nearest(path) -> None:
    with pytest.raises(SettingsError, match="did you mean 'rollouts'"):
        show(path, "rolouts")


def test_the_run_comes_first(path) -> None:
    with pytest.raises(SettingsError, match="RUN comes first: `spark tail runs/a rollouts`"):
        show(Path("rollouts"), "runs/a")
    with pytest.raises(SettingsError, match="nothing is called 'nonsense'; `spark tail` knows tasks"):
        show(path, "nonsense")


def test_an_actor_that_nobody_knows_is_told(run, path, make_task, capsys) -> None:
    run.streams.heartbeat("actor-0", {"role": "actor"}, ttl_s=60)
    run.streams.heartbeat("learner", {"role": "learner"}, ttl_s=60)
    show(path, "rollouts", actor="actor-9")
    assert "nothing to show of rollouts: no 'actor-9' is known; there are actor-0" in capsys.readouterr().err
    show(path, "rollouts", actor="actor-0")
    assert "`groups` shows" in capsys.readouterr().err
    (path / "logs").mkdir()
    (path / "logs" / "actor-1.log").touch()
    show(path, "groups", actor="actor-9")
    assert "no 'actor-9' is known; there are actor-1" in capsys.readouterr().err


def test_a_narrow_terminal_has_outcome_rewards_and_text(make_task) -> None:
    text = "the answer is 2, since one and one make two"
    record = ArchivedGroup(
        group=group_of(make_task(UIDS[1]), text),
        outcome="trained",
        policy_version=12,
        staleness=1,
        content_staleness=None,
        advantages=(1.0, -1.0),
        loss=(-0.25, 0.125),
        at=time.time(),
    )

    def shown(width: int | None) -> str:
        return "  ".join(words for words, _ in module._cells(archived_row(record), width))

    narrow = shown(80)[:80]
    assert all(word in narrow for word in ("trained in step 12", "22222222", "solve", "1-", '"the answer is 2'))
    assert "actor-0" not in narrow
    everything = ("staleness 1", "loss -0.125", "actor-0", "v3-4", "4 tokens", text)
    assert all(word in shown(None) and word in shown(160)[:160] for word in everything)
    assert "staleness 1" in shown(110)  # as much as there is room for


@pytest.mark.parametrize(("what", "wanted"), [("weights", "objective"), ("metrics", "uid"), ("events", "actor")])
def test_a_choice_that_its_lines_do_not_have_is_refused(path, what: str, wanted: str) -> None:
    with pytest.raises(SettingsError, match=f"--{wanted} chooses nothing from {what}"):
        show(path, what, **{wanted: "solve"})


def test_nothing_to_show_is_said_aside(path, capsys) -> None:
    show(path, "rollouts")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "`groups` shows what the learner consumed" in captured.err


def test_metrics_and_logs_are_read_from_the_run_directory(path, capsys) -> None:
    (path / "metrics.jsonl").write_text(
        '{"policy_version": 1, "elapsed_s": 3.2, "loss": 0.5}\n{"policy_version": 2, "loss": 0.25}\n{"policy_ver'
    )
    show(path, "metrics", most=1)
    assert lines(capsys) == ["step 2  loss 0.25"]
    (path / "logs").mkdir()
    said = {"event": "actor.lost", "level": "warning", "member": "actor-1", "uid": UIDS[0], "reason": HOSTILE}
    first = {**said, "timestamp": "2026-01-01T00:00:01Z"}
    second = {**said, "member": "learner", "timestamp": "2026-01-01T00:00:00Z", "uid": UIDS[1]}
    (path / "logs" / "actor-1.log").write_text(json.dumps(first) + "\n")
    (path / "logs" / "learner.log").write_text(json.dumps(second) + "\nno JSON\n")
    show(path, "logs", as_json=True)
    assert [json.loads(line)["member"] for line in lines(capsys)] == ["learner", "actor-1"]
    show(path, "logs", actor="actor-1")
    [line] = lines(capsys)
    assert all(word in line for word in ("warning", "actor-1", "actor.lost", r"reason=\x1b[2J"))
    show(path, "logs", uid=UIDS[1][:8])
    assert "learner" in lines(capsys)[0]
