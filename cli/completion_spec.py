"""What can follow what on the command line of ``spark``, read off its parser: the same for every shell."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import BaseModel
from pydantic_settings import BaseSettings, CliSettingsSource

from common.settings import Settings

Kind = Literal["run", "toml", "file", "setting", "live", "words", "nothing"]
"""What completes a value: a run directory, a TOML file, any file, ``section.key=`` of all settings or of those that
can change in a running run, given words; or nothing can."""
SHELLS: Final = ("bash", "zsh", "fish")
POSITIONALS: Final[dict[str, Kind]] = {
    "run": "run",
    "run_file": "toml",
    "model": "run",
    "assignments": "live",
}
"""By the name of the argument; those that are in none of these have no completion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    kind: Kind = "nothing"
    words: tuple[str, ...] = ()
    """Of kind ``words``."""
    many: bool = False
    """This one and all that follow."""
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    flags: tuple[str, ...]
    about: str
    value: Value | None
    """None for a flag that takes none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    path: tuple[str, ...]
    """From ``spark`` on."""
    about: str
    options: tuple[Option, ...]
    positionals: tuple[Value, ...]
    commands: tuple[tuple[str, str], ...]
    """Name and purpose of each command below it."""


def commands(spark: type[BaseSettings], words: dict[str, tuple[str, ...]]) -> list[Command]:
    """Every command, ``spark`` itself first. ``words``: what some positional arguments may be, by their names."""
    parser: argparse.ArgumentParser = CliSettingsSource[argparse.ArgumentParser](
        spark, cli_parse_args=False
    ).root_parser
    return list(_walk(parser, ("spark",), "", words))


def settings() -> list[str]:
    """``section.key`` of every setting."""
    return sorted(_settings(Settings, ""))


def _settings(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _settings(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _walk(
    parser: argparse.ArgumentParser, path: tuple[str, ...], about: str, words: dict[str, tuple[str, ...]]
) -> Iterator[Command]:
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    others = [action for action in parser._actions if action not in below]
    names = {choice.dest: choice.help or "" for action in below for choice in action._choices_actions}
    yield Command(
        path=path,
        about=about,
        options=tuple(_option(action) for action in others if action.option_strings),
        positionals=tuple(_positional(action, words) for action in others if not action.option_strings),
        commands=tuple(names.items()),
    )
    for action in below:
        for name, child in action.choices.items():
            yield from _walk(child, (*path, name), names.get(name, ""), words)


def _option(action: argparse.Action) -> Option:
    about = (action.help or "").partition(" (default")[0]
    value = None if action.nargs == 0 else _value(action)
    return Option(flags=tuple(action.option_strings), about=about, value=value)


def _value(action: argparse.Action) -> Value:
    name = action.dest.rpartition(".")[2]
    if name == "set":
        return Value(kind="setting", name=name)
    if words := _choices(action):
        return Value(kind="words", words=words, name=name)
    return Value(kind="file" if action.metavar == "Path" else "nothing", name=name)


def _choices(action: argparse.Action) -> tuple[str, ...]:
    """Of a Literal, which pydantic-settings writes as ``{a,b}``."""
    metavar = str(action.metavar or "")
    return tuple(metavar.strip("{}").split(",")) if metavar.startswith("{") else ()


def _positional(action: argparse.Action, words: dict[str, tuple[str, ...]]) -> Value:
    name = action.dest.rpartition(".")[2]
    many = action.nargs in ("*", "+")
    if known := SHELLS if name == "shell" else words.get(name):
        return Value(kind="words", words=known, many=many, name=name)
    return Value(kind=POSITIONALS.get(name, "nothing"), many=many, name=name)
