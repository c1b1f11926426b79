"""`spark pause|resume|drain|set` without a run: arguments, values, and what is said."""

from __future__ import annotations

import getpass
from contextlib import nullcontext
from pathlib import Path

import pytest
from pydantic_settings import CliApp

from cli import steer
from cli.__main__ import keep_overrides_whole
from cli.commands import Spark
from cli.progress import held
from cli.rundir import RunDirectory
from common.errors import InvalidMessage, ServerAway, SettingsError
from common.settings import Settings
from common.steering import Command, Live, Steering


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text('[run]\nname = "r"\n[learner]\nlr = 1e-4\nmax_steps = 100\n', encoding="utf-8")
    return path


def assignments(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[list[str], float]:
    monkeypatch.setattr(CliApp, "run_subcommand", lambda _spark: None)
    command = CliApp.run(Spark, cli_args=keep_overrides_whole(["set", *arguments])).set
    return command.assignments, command.wait


def test_values_reach_the_command_whole(monkeypatch) -> None:
    given = ["learner.lr=1e-4", "recycler.mix={pointwise=0.5, reflect=0.2}"]
    assert assignments(monkeypatch, "runs/r", *given, "--wait", "3") == (given, 3.0)
    assert assignments(monkeypatch, "runs/r", "--wait=3", *given) == (given, 3.0)
    assert assignments(monkeypatch, "--wait", "3", "runs/r", *given) == (given, 3.0)
    assert assignments(monkeypatch, "runs/r", given[0], "--wait", "3", given[1]) == (given, 3.0)
    assert assignments(monkeypatch, "runs/a=b") == ([], 10.0)
    assert keep_overrides_whole(["set", "runs/a=b", "x=1 2"]) == ["set", "runs/a=b", "x%3D1%202"]


def test_values_are_typed_and_checked_as_in_a_run_file(config: Path) -> None:
    found = steer.parsed(config, ["learner.max_steps=50", "recycler.mix={pointwise=1, reflect=0.5}"])
    assert found == {"learner.max_steps": 50, "recycler.mix.pointwise": 1.0, "recycler.mix.reflect": 0.5}
    assert type(found["recycler.mix.pointwise"]) is float


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("learner.lr=fast", "learner.lr='fast': input should be a valid number"),
        ("learner.lr", "'learner.lr': write section.key=value"),
        ("learner.learning_rate=1", "unknown setting learner.learning_rate"),
        ("learner.lr=inf", "learner.lr=inf: input should be a finite number"),
        ("learner.lr=nan", "learner.lr=nan: input should be a finite number"),
        ("learner.judge_share=1.5", "learner.judge_share=1.5: input should be less than 1"),
    ],
)
def test_a_bad_value_is_one_sentence(config: Path, given: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as error:
        steer.parsed(config, [given])
    assert "\n" not in str(error.value)


def test_values_that_do_not_go_together_with_live_ones_are_refused() -> None:
    settings = Settings(learner={"max_steps": 100, "updates_per_batch": 4})
    with pytest.raises(SettingsError, match="is no multiple of"):
        steer.check(settings, Steering(), {"learner.max_steps": 50})
    live = Live(value=0.3, of_file=0.5, by="ann", at=0.0, policy_version=3)
    steer.check(settings, Steering(live={"learner.judge_share": live}), {"learner.max_steps": 48})


def test_an_objective_without_a_template_cannot_be_mixed_in(tmp_path: Path) -> None:
    text = (Path(steer.__file__).parents[1] / "examples" / "arithmetic" / "templates.toml").read_text()
    kept = "\n[[".join(part for part in text.split("\n[[") if not part.startswith("pairwise"))
    path = tmp_path / "templates.toml"
    path.write_text(kept, encoding="utf-8")
    settings = Settings(templates={"path": str(path)}, recycler={"mix": {"pairwise": 0.0}})
    steer.check(settings, Steering(), {"recycler.mix.reflect": 0.2})
    with pytest.raises(SettingsError, match="has no pairwise template"):
        steer.check(settings, Steering(), {"recycler.mix.pairwise": 0.2})


def test_a_user_without_a_name_has_a_number(monkeypatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert steer.who().startswith("uid-")


def test_what_holds_is_said_in_words(tmp_path: Path) -> None:
    run = RunDirectory(Settings(run={"dir": tmp_path, "name": "r"}))
    assert steer.in_words(run, Steering()) == []
    live = Live(value=3e-4, of_file=1e-4, by="bob\x1b[2J", at=0.0, policy_version=3)
    lines = steer.in_words(run, Steering(mode="paused", by="ann", since=0.0, live={"learner.lr": live}))
    assert lines == [
        f"paused by ann since 1970-01-01 00:00:00 UTC; `spark resume {run.path}` goes on",
        "learner.lr = 0.0003, set by bob\\x1b[2J at step 3, 1970-01-01 00:00:00 UTC (run file: 0.0001)",
    ]


def test_the_display_names_a_pause_once_and_by_the_learner() -> None:
    state = "paused by ann since 12:00"
    assert held({"learner": state, "actor-0": state}) == {"learner": state}
    assert held({"learner": "updating", "recycler": "paused: the server is full"}) == {}


class Deaf:
    """Streams that take a command, and whose answer cannot be read."""

    def __init__(self, error: Exception) -> None:
        self.sent: list[Command] = []
        self._error = error
        self.control = lambda before: []

    def conservation(self) -> None: ...

    def members(self) -> dict[str, dict[str, str]]:
        return {"learner": {"state": "updating"}}

    def steer(self, command: Command) -> None:
        self.sent.append(command)

    def steering(self) -> Steering:
        raise self._error


@pytest.mark.parametrize("error", [InvalidMessage("not a steering: odd"), ServerAway("no server answers")])
def test_what_was_sent_is_no_failure_whatever_comes_back(monkeypatch, tmp_path: Path, capsys, error) -> None:
    run = RunDirectory(Settings(run={"dir": tmp_path, "name": "r"}))
    run.create()
    deaf = Deaf(error)
    monkeypatch.setattr(steer, "streams_of", lambda _run: nullcontext(deaf))
    steer.set_values(run.path, ["learner.lr=1e-4"], wait_s=1.0)
    assert [command.values for command in deaf.sent] == [{"learner.lr": 1e-4}]
    assert capsys.readouterr().out == f"sent; what the learner makes of it is not known: {error}\n"
