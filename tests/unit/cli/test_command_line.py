"""The command line: overrides reach the settings byte for byte, whatever they contain."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_settings import CliApp

from cli.__main__ import keep_overrides_whole, main
from cli.commands import Spark


def parsed(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> Spark:
    """The command as parsed, not run."""
    monkeypatch.setattr(CliApp, "run_subcommand", lambda _spark: None)
    return CliApp.run(Spark, cli_args=keep_overrides_whole(arguments))


def test_overrides_may_be_repeated_and_keep_commas_quotes_and_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    values = ['eval.prompts=""', "learner.adam_betas=[0.8, 0.99]", "run.name=a,b", "prompts.args={size=3}", "x=100%"]
    arguments = [part for value in values for part in ("--set", value)]
    assert parsed(["up", "run.toml", *arguments], monkeypatch).up.overrides == values


def test_override_with_an_equals_sign_between(monkeypatch: pytest.MonkeyPatch) -> None:
    up = parsed(["up", "run.toml", "--set=learner.lr=1e-3", "-s", "run.seed=2", "--actors", "3"], monkeypatch).up
    assert up.overrides == ["learner.lr=1e-3", "run.seed=2"]
    assert up.actors == 3


@given(st.lists(st.text(min_size=1, max_size=20), max_size=4))
def test_encoding_leaves_no_character_that_the_parser_would_split_at(values: list[str]) -> None:
    encoded = keep_overrides_whole([part for value in values for part in ("--set", value)])
    assert [argument for argument in encoded if set(argument) & set(",\"'[]{} ")] == []


def test_other_arguments_are_left_alone() -> None:
    arguments = ["eval", "runs/a,b", "--draws", "3", "--json", "x y.json"]
    assert keep_overrides_whole(arguments) == arguments


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("set runs/r learner.lr=1e-4 --waits=3", "unrecognized arguments: --waits=3; `spark set --help`"),
        ("status runs/r --set a=[1,2]", "unrecognized arguments: --set a=[1,2]; `spark status --help`"),
        ("set runs/r --wait=x learner.lr=1e-4", "set.wait: Input should be a valid number"),
        ("nonsense", "; `spark --help` tells"),
        ("", "CLI subcommand is required"),
    ],
)
def test_a_mistake_is_told_as_it_was_typed(monkeypatch: pytest.MonkeyPatch, capsys, typed: str, said: str) -> None:
    monkeypatch.setattr(sys, "argv", ["spark", *typed.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in told
    assert "%" not in told
    assert told.startswith("spark: ")
    assert told.count("\n") == 1
