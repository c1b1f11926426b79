"""`spark status` of a run in which something stands still."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli import status as module
from cli.rundir import RunDirectory
from cli.status import in_words, status
from common.settings import Settings
from common.streams import Streams

WAIT = {"stage": "wait_for_groups", "waits_for": "4 policy groups", "unblocked_by": "actors shipping groups"}


@pytest.fixture
def run_path(tmp_path: Path, streams: Streams, monkeypatch: pytest.MonkeyPatch) -> Path:
    run = RunDirectory(Settings.model_validate({"run": {"name": "test", "dir": str(tmp_path)}}))
    run.create()

    @contextmanager
    def its_streams(_run: RunDirectory) -> Iterator[Streams]:
        yield streams

    monkeypatch.setattr(module, "streams_of", its_streams)
    streams.heartbeat(
        "learner", {"role": "learner", "state": "stalled", "stalled_s": 130.2, "policy_version": 7, **WAIT}, ttl_s=60
    )
    streams.heartbeat("actor-0", {"role": "actor", "state": "generating", "policy_version": 7}, ttl_s=60)
    return run.path


def test_stalls_are_told_in_words(run_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status(run_path, as_json=False)  # the exit code stays 0: the ledger balances
    lines = capsys.readouterr().out.splitlines()
    assert (
        "learner: stalled for 130 s in wait_for_groups; waits for 4 policy groups; unblocked by actors shipping "
        "groups, policy version 7"
    ) in lines
    assert "actor-0: generating, policy version 7" in lines


def test_a_learner_that_finds_nothing_to_train_says_so() -> None:
    beat = {"state": "waiting for policy groups", "no_contrast": {"groups": 2939, "reward": 0.0}}
    assert in_words(beat) == (
        "finds nothing to train; 2,939 groups without contrast in a row, none trained: all answers are wrong"
    )


def test_before_the_first_weights_a_member_has_no_version(
    run_path: Path, streams: Streams, capsys: pytest.CaptureFixture[str]
) -> None:
    streams.heartbeat("actor-0", {"role": "actor", "state": "waiting for weights", "policy_version": -1}, ttl_s=60)
    status(run_path, as_json=False)
    assert "actor-0: waiting for weights, policy version none" in capsys.readouterr().out.splitlines()


def test_programs_get_the_words_and_the_figures(run_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status(run_path, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert list(said["stalls"]) == ["learner"]
    assert said["stalls"]["learner"].startswith("stalled for 130 s")
    assert said["members"]["learner"]["stalled_s"] == 130.2


def test_a_run_in_which_all_is_well_has_no_stalls(
    run_path: Path, streams: Streams, capsys: pytest.CaptureFixture[str]
) -> None:
    streams.heartbeat("learner", {"role": "learner", "state": "updating"}, ttl_s=60)
    status(run_path, as_json=True)
    assert json.loads(capsys.readouterr().out)["stalls"] == {}
