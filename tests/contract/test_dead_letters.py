"""`spark dead` on the real server: hostile letters are shown harmlessly, and a retried one is worked on again."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgpack
import numpy as np
import pytest

from actors.actor import Actor
from actors.engine import Generated, Request
from actors.verifiers.pool import InlineVerifier
from cli import dead
from cli.audit import audit
from cli.dead import drop_letters, list_letters, retry_letters, show_letter
from cli.rundir import RunDirectory
from common.codec import encode
from common.errors import SettingsError, TaskError
from common.keys import ACTORS, LEARNER, RECYCLER
from common.messages import ChatMessage, Completion, Rollout, RolloutGroup, Task, Verdict
from common.records import DeadLetter
from common.settings_sources import load_settings
from common.streams import Product, Streams
from common.weights import WeightStore
from learner.checkpoint import CheckpointStore

ROOT = Path(__file__).parents[2]
UIDS = [f"{number:032x}" for number in range(4)]
HOSTILE = "\x1b[2J\x1b]0;owned\x07[bold red]:bomb:[/] \u202ereversed\r\n\x9b31m"


@pytest.fixture
def path(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run directory whose server is that of the test."""
    overrides = [f"run.dir={json.dumps(str(tmp_path))}", "run.name=test"]
    directory = RunDirectory(load_settings(ROOT / "examples" / "arithmetic" / "run.toml", overrides))
    directory.create()
    monkeypatch.setattr(dead, "streams_of", lambda _: contextlib.nullcontext(run.streams))
    return directory.path


def bury(run, stream: str, group: str, uid: str, payload: bytes, *, kind: str | None, reason: str = "it broke") -> str:
    """Put an entry on a stream and bury it; the id of its letter."""
    run.streams.client.xadd(stream, {"uid": uid, "m": payload})
    [delivery] = run.streams.read_new(group, "c", [stream], 1, None)
    run.streams.bury(delivery, group, reason, kind)
    return letters(run)[-1].id


def letters(run) -> list[DeadLetter]:
    return run.streams.dead_letters()


def group_of(task: Task) -> RolloutGroup:
    completion = Completion(
        token_ids=np.array([7, 2], dtype=np.int32),
        logprobs=np.array([-1.0, -0.5], dtype=np.float32),
        spans=((3, 0),),
        finish_reason="stop",
        text=HOSTILE,
    )
    verdict = Verdict(status="ok", reward=1.0, verifier="exact@1")
    return RolloutGroup(
        task=task,
        prompt_token_ids=np.array([1, 5, 6], dtype=np.int32),
        rollouts=(Rollout(completion=completion, verdict=verdict),) * 2,
        actor=HOSTILE,
        weights_epoch=1,
        generated_at=0.0,
    )


def harmless(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


# -- looking ----------------------------------------------------------------------------------------------------


def test_the_list_has_the_newest_last_and_says_why_each_died(run, path, make_task, capsys) -> None:
    ids = [
        bury(run, run.tasks, ACTORS, UIDS[0], encode(make_task(UIDS[0])), kind="policy", reason="far too long"),
        bury(run, run.judge_tasks, ACTORS, UIDS[1], b"\xc1", kind="judge", reason="not a Task"),
        bury(run, run.rollouts, LEARNER, UIDS[2], encode(group_of(make_task(UIDS[2]))), kind="policy", reason="no"),
    ]
    list_letters(path, most=10, as_json=False)
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.partition(" ")[0] in ids]
    assert [row.split()[0] for row in rows] == ids
    assert [("policy solve" in row, "judge unreadable" in row) for row in rows] == [
        (True, False),
        (False, True),
        (True, False),
    ]
    assert all(uid in row and "deliveries 1" in row for uid, row in zip(UIDS, rows, strict=False))
    assert printed.index("far too long") < printed.index("not a Task")


def test_only_as_many_as_wanted_are_listed_and_the_rest_is_counted(run, path, capsys) -> None:
    ids = [bury(run, run.tasks, ACTORS, uid, b"", kind="policy") for uid in UIDS]
    list_letters(path, most=3, as_json=False)
    printed = capsys.readouterr().out
    assert [ids[0] in printed, ids[1] in printed] == [False, True]
    assert "1 older ones; -n 4 shows them" in printed
    list_letters(path, most=2, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert [(row["id"], row["reason"], row["deliveries"]) for row in told] == [(i, "it broke", 1) for i in ids[2:]]
    assert told[0]["died_at_ms"] == int(ids[2].split("-")[0])


def test_more_letters_than_fit_one_page_are_all_there(run, path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(dead, "PAGE", 2)
    ids = [bury(run, run.tasks, ACTORS, f"{number:032x}", b"", kind="policy") for number in range(7)]
    list_letters(path, most=50, as_json=True)
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == ids


def test_what_a_task_and_a_group_hold_is_told_in_words(run, path, make_task, capsys) -> None:
    task = bury(run, run.tasks, ACTORS, UIDS[0], encode(make_task(UIDS[0])), kind="policy")
    group = bury(run, run.rollouts, LEARNER, UIDS[1], encode(group_of(make_task(UIDS[1]))), kind="policy")
    show_letter(path, task, as_json=False)
    printed = capsys.readouterr().out
    for words in (UIDS[0], run.tasks, "it broke", "solve", "1+1", "exact", "2 completions of up to 4 tokens"):
        assert words in printed
    assert "will die again" not in printed
    show_letter(path, group, as_json=False)
    printed = capsys.readouterr().out
    for words in ("oldest policy version 3", "3 of the prompt, 4 of 2 completions", "2 ok", "will die again unless"):
        assert words in printed
    show_letter(path, group, as_json=True)
    assert json.loads(capsys.readouterr().out)["payload"]["verdicts"] == "2 ok"


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc1", b"\x91" * 5000, msgpack.packb({"uid": HOSTILE}), msgpack.packb(HOSTILE), b"\xdf\xff\xff\xff\xff"],
)
def test_a_payload_that_is_none_is_told_by_its_size_and_its_error(run, path, payload, capsys) -> None:
    letter = bury(run, run.tasks, ACTORS, UIDS[0], payload, kind="policy")
    show_letter(path, letter, as_json=False)
    printed = capsys.readouterr().out
    assert f"{len(payload)} bytes" in printed
    assert "decode error:" in printed
    assert harmless(printed)


def test_hostile_text_never_reaches_the_terminal(run, path, make_task, capsys) -> None:
    task = replace(
        make_task(UIDS[0]),
        question=HOSTILE,
        messages=(ChatMessage.user(HOSTILE),),
        template=HOSTILE,
        verifier=HOSTILE,
        answer=HOSTILE,
    )
    ids = [
        bury(run, run.tasks, ACTORS, HOSTILE, encode(task), kind="policy", reason=HOSTILE),
        bury(run, run.rollouts, LEARNER, UIDS[0], encode(group_of(task)), kind="policy", reason=HOSTILE),
    ]
    for as_json in (False, True):
        list_letters(path, most=9, as_json=as_json)
        for letter in ids:
            show_letter(path, letter, as_json=as_json)
    printed = capsys.readouterr().out
    assert harmless(printed)
    assert "\\x1b[2J" in printed  # shown, not swallowed
    assert "[bold red]:bomb:[/]" in printed


@pytest.mark.parametrize("letter", ["5-0", "x", "", "5", "-", "(5-0", "99999999999999999999999-0", "\x1b[2J"])
@pytest.mark.parametrize(
    "action",
    [
        lambda path, _, letter: show_letter(path, letter, as_json=False),
        lambda path, known, letter: retry_letters(path, [known, letter], every=False),
        lambda path, known, letter: drop_letters(path, [known, letter], every=False),
    ],
    ids=["show", "retry", "drop"],
)
def test_an_id_that_is_none_is_one_sentence_and_changes_nothing(run, path, letter, action) -> None:
    known = bury(run, run.tasks, ACTORS, UIDS[0], b"", kind="policy")
    with pytest.raises(SettingsError, match="has no dead letter") as error:
        action(path, known, letter)
    assert harmless(str(error.value))
    assert [left.id for left in letters(run)] == [known]


@pytest.mark.parametrize("action", [retry_letters, drop_letters])
@pytest.mark.parametrize(("ids", "every"), [([], False), (["5-0"], True)])
def test_either_ids_or_all_of_them(path, action: Callable[..., None], ids, every) -> None:
    with pytest.raises(SettingsError, match="--all"):
        action(path, ids, every=every)


# -- acting -------------------------------------------------------------------------------------------------------


class Engine:
    """Answers every task at once; refuses all of them while ``broken``."""

    policy_version = -1
    broken = True

    def __init__(self) -> None:
        self._added: list[Request] = []

    @property
    def groups_in_flight(self) -> int:
        return len(self._added)

    def tokenize(self, messages) -> np.ndarray:
        return np.array([1, 5], dtype=np.int32)

    def add(self, request: Request) -> None:
        if self.broken:
            raise TaskError("the chat template is broken")
        self._added.append(request)

    def step(self) -> list[Generated]:
        done, self._added = self._added, []
        completion = Completion(
            token_ids=np.array([7], dtype=np.int32),
            logprobs=np.array([-1.0], dtype=np.float32),
            spans=((self.policy_version, 0),),
            finish_reason="stop",
            text="\\boxed{2}",
        )
        return [Generated(request=one, completions=(completion,) * one.sampling.n) for one in done]

    def forget(self) -> None:
        self._added.clear()

    def apply(self, files, policy_version: int) -> None:
        self.policy_version = policy_version


@pytest.fixture
def actor(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Actor, Engine]:
    monkeypatch.setattr("actors.actor.IDLE_BLOCK_MS", 0)
    monkeypatch.setattr(Streams, "wait_for_weights", lambda self, block_ms: None)
    run.streams.publish(WeightStore(tmp_path / "weights").publish(1, 0, -1, lambda folder: (folder / "m").touch()))
    engine = Engine()
    options = {"max_staleness": 1, "groups_in_flight": 4, "lease_s": 40.0, "max_deliveries": 3}
    return Actor("actor-0", run.streams, engine, InlineVerifier(), **options), engine


@pytest.mark.parametrize("every", [True, False])
def test_what_is_retried_is_worked_on_and_the_ledger_balances(run, path, actor, every, capsys) -> None:
    loop, engine = actor
    run.issue(*UIDS)
    for _ in range(4):
        loop.tick()
    assert [letter.reason for letter in letters(run)] == ["the chat template is broken"] * 4
    assert run.streams.conservation().kinds["policy"]["dead"] == 4
    engine.broken = False
    chosen = letters(run) if every else letters(run)[1:3]
    retry_letters(path, [] if every else [letter.id for letter in chosen], every=every)
    assert f"retried: {len(chosen)}" in capsys.readouterr().out
    assert run.streams.conservation().kinds["policy"]["in_flight"] == len(chosen)
    for _ in range(4):
        loop.tick()
    assert sorted(run.uids(run.rollouts)) == sorted(letter.uid for letter in chosen)
    ledger = run.streams.conservation()
    assert ledger.balanced
    assert ledger.kinds["policy"]["dead"] == len(letters(run)) == 4 - len(chosen)
    assert audit(run.streams, path / "events", CheckpointStore(path / "checkpoints", 2)).violations == ()


def test_the_deliveries_of_a_retried_task_are_counted_anew(run, path) -> None:
    run.issue(UIDS[0])
    [first] = run.streams.read_new(ACTORS, "c", [run.tasks], 1, None)
    run.streams.bury(replace(first, deliveries=5), ACTORS, "it broke", "policy")
    retry_letters(path, [], every=True)
    [again] = run.streams.read_new(ACTORS, "c", [run.tasks], 1, None)
    assert (again.uid, again.payload, again.deliveries) == (first.uid, first.payload, 1)


def copy_of_the_recycler(run, make_task) -> str:
    run.issue(UIDS[0])
    [task] = run.streams.read_new(ACTORS, "c", [run.tasks], 1, None)
    group = Product.of(UIDS[0], group_of(make_task(UIDS[0])))
    run.streams.transfer(run.tasks, ACTORS, run.rollouts, [(task.id, [group])])
    [copy] = run.streams.read_new(RECYCLER, "recycler", [run.rollouts], 1, None)
    run.streams.bury(copy, RECYCLER, "it broke", None)
    return letters(run)[-1].id


def test_the_recyclers_copy_cannot_be_retried_because_its_task_goes_on(run, path, make_task, capsys) -> None:
    """Put back, it would reach the learner a second time."""
    copy = copy_of_the_recycler(run, make_task)
    with pytest.raises(SettingsError, match="lives on at the learner"):
        retry_letters(path, [copy], every=False)
    assert run.uids(run.rollouts) == [UIDS[0]]
    dead_task = bury(run, run.tasks, ACTORS, UIDS[1], encode(make_task(UIDS[1])), kind="policy")
    retry_letters(path, [], every=True)
    printed = capsys.readouterr().out
    assert "retried: 1" in printed
    assert f"{copy}: cannot be retried" in printed
    assert [letter.id for letter in letters(run)] == [copy]
    assert dead_task not in printed
    show_letter(path, copy, as_json=False)
    assert "cannot be retried" in capsys.readouterr().out


def test_a_group_that_the_learner_refused_goes_back_with_a_warning(run, path, capsys) -> None:
    letter = bury(run, run.rollouts, LEARNER, UIDS[0], b"\xc1", kind="policy")
    retry_letters(path, [letter], every=False)
    assert "will die again unless the code has changed" in capsys.readouterr().out
    [back] = run.streams.read_new(LEARNER, "learner", [run.rollouts], 1, None)
    assert (back.uid, back.payload) == (UIDS[0], b"\xc1")


def test_a_letter_that_somebody_else_retries_meanwhile_goes_back_once(run, path, capsys, monkeypatch) -> None:
    ids = [bury(run, run.tasks, ACTORS, uid, b"x", kind="policy") for uid in UIDS[:2]]
    revive = Streams.revive

    def both(streams: Streams, letter: DeadLetter) -> bool:
        revive(streams, letter)
        streams.drop([ids[1]])
        return revive(streams, letter)

    monkeypatch.setattr(Streams, "revive", both)
    before = len(run.uids(run.tasks))
    retry_letters(path, ids, every=False)
    printed = capsys.readouterr().out
    assert printed.count("is gone") == 2
    assert "retried: 0" in printed
    assert len(run.uids(run.tasks)) == before + 1


def test_what_is_dropped_is_gone_and_its_task_stays_dead(run, path, actor, capsys) -> None:
    loop, _ = actor
    run.issue(*UIDS)
    for _ in range(4):
        loop.tick()
    capsys.readouterr()
    drop_letters(path, [letters(run)[0].id] * 2, every=False)
    drop_letters(path, [], every=True)
    assert capsys.readouterr().out == "dropped: 1\ndropped: 3\n"
    assert letters(run) == []
    ledger = run.streams.conservation()
    assert (ledger.balanced, ledger.kinds["policy"]["dead"]) == (True, 4)
    assert audit(run.streams, path / "events", CheckpointStore(path / "checkpoints", 2)).ok
