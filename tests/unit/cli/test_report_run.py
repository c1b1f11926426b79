"""What the report says of the run itself: settings, command, machine, interruptions, and the first sentences."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.report import report, write_report
from cli.report.deaths import deaths
from cli.report.history import History
from cli.report.lede import lede
from cli.report.material import Material, Summary, read_material
from cli.report.provenance import (
    MOST_TOML,
    circumstances,
    command,
    commands_after,
    differences,
    facts,
    preset_values,
    run_file,
    shortened,
    steered,
)
from cli.starts import FILE, Start, here, read_starts, record_start, without_secrets
from common.errors import SettingsError
from common.steering import Change
from learner.journal import Journal

STARTED = Start(role="up", at=1.7e9, command=("spark", "up", "my run.toml"), folder="/home/me", commit="abc123+")


def with_settings(**settings: Any) -> Material:
    return Material(name="r", settings=settings)


def test_only_what_differs_from_the_preset_is_listed() -> None:
    usual = preset_values("spark")
    (row,) = differences(with_settings(**{**usual, "learner": {**usual["learner"], "lr": 0.5}}))
    assert (row.key, row.value, row.preset) == ("learner.lr", "0.5", "1e-06")


def test_the_values_of_the_preset_count_not_the_defaults() -> None:
    grpo = preset_values("grpo")
    assert differences(with_settings(**grpo)) == []
    assert [row.key for row in differences(with_settings(**{**grpo, "preset": "spark"}))] != []


def test_a_setting_that_only_the_run_has_is_listed() -> None:
    (row,) = differences(with_settings(prompts={"args": {"size": 3}}))
    assert (row.key, row.value, row.preset) == ("prompts.args.size", "3", "")


def test_the_environment_does_not_change_what_a_preset_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_LEARNER__LR", "0.9")
    assert preset_values("spark")["learner"]["lr"] == 1e-6


def test_a_preset_is_no_path(tmp_path: Path) -> None:
    (tmp_path / "evil.toml").write_text("[learner]\nlr = 7.0\n")
    assert preset_values(str(tmp_path / "evil"))["learner"]["lr"] == 1e-6


def test_the_url_of_a_server_is_not_passed_on() -> None:
    found = with_settings(redis={"url": "redis://me:secret@host", "lease_s": 7.0})
    assert [row.key for row in differences(found)] == ["redis.lease_s"]
    assert "secret" not in run_file(found)


def test_the_run_file_is_bounded() -> None:
    text = run_file(with_settings(prompts={"args": {"text": "x" * 200_000}}))
    assert len(text) < MOST_TOML + 100
    assert "more characters are left out" in text


def test_paths_of_the_working_directory_are_shortened() -> None:
    assert shortened("/home/me/runs/a and /etc/x", "/home/me") == "runs/a and /etc/x"
    assert shortened("/runs/a", "/") == "/runs/a"
    assert shortened("/runs/a", "") == "/runs/a"


def test_the_first_command_is_shown_and_later_ones_that_differ() -> None:
    learner = Start(role="learner", at=1.7e9, command=("spark", "learner", "x"))
    more = STARTED.model_copy(update={"command": ("spark", "up", "my run.toml", "--set", "learner.lr=1")})
    material = Material(name="r", starts=(STARTED, learner, STARTED, more))
    assert command(material) == "spark up 'my run.toml'"
    assert commands_after(material) == ["spark up 'my run.toml' --set learner.lr=1"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["up", "r.toml", "--set", "redis.url=redis://u:secret@h"],
        ["up", "r.toml", "--set=redis.url=redis://u:secret@h"],
        ["up", "r.toml", "-s", "redis.password=secret"],
        ["up", "r.toml", "--set", "weights.url=s3://me:secret@bucket"],
    ],
)
def test_a_command_is_kept_without_its_secrets(arguments: list[str]) -> None:
    kept = without_secrets(arguments)
    assert "secret" not in " ".join(kept)
    assert kept[:2] == ["up", "r.toml"]
    assert kept[-1] not in ("--set", "-s")


def test_a_start_is_written_when_it_happens_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["spark", "up", "r.toml"])
    record_start(tmp_path, "up")
    with (tmp_path / FILE).open("a") as file:
        file.write('{"role": "le')
    (start,) = read_starts(tmp_path)
    assert start.command == ("spark", "up", "r.toml")
    assert start.packages["torch"]
    assert start.cores
    assert start.at > 1.7e9


def test_a_start_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    record_start(tmp_path / "none", "up")
    assert read_starts(tmp_path / "none") == []


def test_the_machine_is_described() -> None:
    start = here("up")
    assert start.memory_gib
    assert start.processor or start.system
    text = dict(circumstances(Material(name="r", starts=(STARTED,))))
    assert text["SPARK"] == "commit abc123, with changed files"
    assert text["GPUs"] == "none"
    assert dict(facts(Material(name="r", starts=(STARTED,))))["Started"] == "14 November 2023, 22:13 UTC"


def epochs(folder: Path, *versions: int) -> None:
    (folder / "checkpoints" / "epochs").mkdir(parents=True)
    for epoch, version in enumerate(versions, start=1):
        start = {"epoch": epoch - 1, "policy_version": version, "generation": "g"}
        (folder / "checkpoints" / "epochs" / f"{epoch:06d}").write_text(json.dumps(start))


def test_interruptions_are_counted_and_placed(tmp_path: Path) -> None:
    epochs(tmp_path, 0, 40, 60)
    material = read_material(tmp_path)
    assert material.resumed == (40, 60)
    assert dict(circumstances(material))["Learner starts"] == "3; resumed after 2 interruptions, at step 40, 60"


def test_what_users_changed_while_it_ran_is_told_without_their_names(tmp_path: Path) -> None:
    told = {"by": "me@home", "at": 1.7e9, "epoch": 1, "policy_version": 12}
    journal = Journal(tmp_path / "checkpoints", epoch=1)
    values = {"learner.lr": (0.5, 0.25)}
    journal.append(Change(nonce="1", action="set", changes=values, of_file={"learner.lr": 0.5}, **told))
    journal.append(Change(nonce="2", action="set", refused="no", **told))
    journal.append(Change(nonce="3", action="pause", **told))
    material = read_material(tmp_path)
    assert steered(material) == [
        ("after step 12", "set learner.lr = 0.25 (was 0.5)"),
        ("after step 12", "pause"),
    ]
    assert "me@home" not in write_report(tmp_path).read_text(encoding="utf-8")


def test_a_run_without_interruption_says_so(tmp_path: Path) -> None:
    epochs(tmp_path, 0)
    assert "never interrupted" in dict(circumstances(read_material(tmp_path)))["Learner starts"]


def test_settings_of_another_version_do_not_hide_the_bounds(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[run]\nname = 'r'\n[learner]\nmax_steps = 7\nolder_key = 1\n")
    config = read_material(tmp_path).config
    assert config is not None
    assert config.learner.max_steps == 7


def test_deaths_are_counted_once_by_reason(tmp_path: Path) -> None:
    line = {
        "generation": "g",
        "id": "1-0",
        "name": "ended",
        "outcome": "dead:policy",
        "reason": "too long",
        "uids": "a",
    }
    other = {**line, "id": "2-0", "uids": "b c"}
    trained = {**line, "id": "3-0", "outcome": "trained"}
    text = "".join(json.dumps(row) + "\n" for row in (line, line, other, trained))
    (tmp_path / "e000001.jsonl").write_text(text)
    assert deaths(tmp_path) == [("policy", "too long", 3)]


def test_the_first_sentences_say_what_changed_and_what_is_wrong() -> None:
    summary = Summary.model_validate(
        {
            "before": {"policy": 0.2, "pairwise": 0.5, "fix": 0.5},
            "after": {"policy": 0.8, "pairwise": 0.1, "fix": 0.5},
            "intervals": {
                "before": {"policy": [0.1, 0.3], "pairwise": [0.4, 0.6], "fix": [0.4, 0.6]},
                "after": {"policy": [0.7, 0.9], "pairwise": [0.0, 0.2], "fix": [0.4, 0.6]},
            },
            "ledger": {"policy": {"issued": 9, "trained": 8}},
            "finished": False,
        }
    )
    rows = ({"policy_version": 1.0, "judge/alarms": 0.0}, {"policy_version": 2.0, "judge/alarms": 2.0})
    text = "\n".join(lede(Material(name="r", summary=summary, history=History(rows=rows)))).replace("\u00a0", " ")
    assert "Better after training: policy accuracy (20.0 % → 80.0 %)." in text
    assert "Worse after training: pairwise judging (50.0 % → 10.0 %)." in text
    assert "Without a clear change: repairing wrong answers" in text
    assert "The run was stopped: 2 optimizer steps" in text
    assert "alarm about the judge stood at 1 of 2 steps" in text
    assert "does not balance" in text


def test_the_command_writes_where_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"policy_version": 1}\n')
    report(tmp_path, tmp_path / "other.html")
    assert capsys.readouterr().out.strip() == str(tmp_path / "other.html")
    assert not (tmp_path / "report.html").exists()
    report(tmp_path, None)
    assert (tmp_path / "report.html").exists()


def test_the_command_refuses_what_is_no_run_and_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is no run directory"):
        report(tmp_path, None)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(SettingsError, match="--to"):
        report(tmp_path, tmp_path / "none" / "r.html")
    with pytest.raises(SettingsError, match="--to"):
        report(tmp_path, tmp_path)
