"""Which settings may change in a running run, and what a change makes of the settings (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from common.errors import SettingsError
from common.settings import Settings
from common.settings_sources import known_keys, nearest_setting
from common.steering import Change, Command, Steering, Value

LIVE: Final[Mapping[str, str]] = {
    "learner.max_steps": "the run ends there; so does the schedule of lr",
    "learner.lr": "from the next step on, as the peak of its schedule",
    "learner.judge_share": "from the next batch on; not to or from 0",
    "learner.judge_wait_s": "at once",
    "learner.straggler_wait_s": "at once",
    "learner.refill": "from the next batch on",
    "learner.checkpoint_every": "counted from the last checkpoint",
    "loss.solve_weight": "from the next step on",
    "loss.pointwise_weight": "from the next step on",
    "loss.pairwise_weight": "from the next step on",
    "loss.reflect_weight": "from the next step on",
    "loss.clip_low": "from the next step on",
    "loss.clip_high": "from the next step on",
    "loss.cap": "from the next step on",
    "loss.kl_coef": "from the next step on; not from 0",
    "recycler.mix.pointwise": "for new judge tasks, and from the next batch on",
    "recycler.mix.pairwise": "for new judge tasks, and from the next batch on",
    "recycler.mix.reflect": "for new judge tasks, and from the next batch on",
    "recycler.correct_share": "for new judge tasks",
    "recycler.told_wrong_share": "for new judge tasks",
    "recycler.max_tasks_per_group": "for new judge tasks",
}
"""Setting -> from when on a new value holds. What is not here is read once, or would break a promise of the run."""

FIXED: Final[Mapping[str, str]] = {
    "prompts": "is fixed for a run, since each prompt is trained once; start under a new run.name",
    "run.seed": "is fixed for a run; start under a new run.name",
    "run.name": "is fixed for a run; start under a new run.name",
    "model": "is what the run trains; start under a new run.name",
    "lora": "is what the run trains; start under a new run.name",
    "sampling": "is part of every task in flight",
    "staleness": "is a promise that actors and learner must hold together",
}
"""Why a section, or a setting, is not live, where there is more to say than that its process reads it once."""

MOST_NAME: Final = 80
"""Characters of the name that a command gives: it is shown on many screens."""
RESTART: Final = "stop the run, change it in the run file, and `spark up` again"


def value_of(settings: BaseModel, key: str) -> Any:
    """The value of ``section.key``."""
    value: Any = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value


def with_values(settings: Settings, values: Mapping[str, Value]) -> Settings:
    """These settings with other values, validated as the run file is. Raises SettingsError."""
    sections = {key.partition(".")[0] for key in values}
    changed = {section: getattr(settings, section).model_dump() for section in sections}
    for key, value in values.items():
        *tables, name = key.split(".")
        table = changed
        for part in tables:
            table = table[part]
        table[name] = value
    validated = {section: _validated(settings, section, table) for section, table in changed.items()}
    found = settings.model_copy(update=validated)
    try:
        found.check()
    except ValueError as error:
        raise SettingsError(str(error)) from None
    return found


def _validated(settings: Settings, section: str, table: Mapping[str, Any]) -> BaseModel:
    model: type[BaseModel] = type(getattr(settings, section))
    try:
        return model.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in (section, *first["loc"]))
        raise SettingsError(f"{key}={first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def steered(settings: Settings, values: Mapping[str, Value]) -> Settings:
    """The settings of the run file with live values. Raises SettingsError where one cannot be had without a restart."""
    for key, value in values.items():
        if why := not_live(settings, key, value):
            raise SettingsError(why)
    return with_values(settings, values)


def not_live(settings: Settings, key: str, value: Value) -> str:
    """Why this value cannot be set in a run that was started with ``settings``; empty when it can."""
    if key not in LIVE:
        return _not_in_the_list(key)
    recycler, learner = settings.recycler, settings.learner
    if key == "learner.judge_share":
        if learner.judge_share == 0 or value == 0:
            return (
                f"{key}={value!r}: judging is switched on and off with its processes and streams, at a start; {RESTART}"
            )
        if learner.mixing == "alternate":
            return (
                f"{key}={value!r} would change nothing: with learner.mixing='alternate' a judge batch is a whole batch"
            )
    if key == "loss.kl_coef" and settings.loss.kl_coef == 0 and value > 0:
        return f"{key}={value!r}: the frozen model was not loaded, since the run started with 0; {RESTART}"
    if key in ("recycler.correct_share", "recycler.max_tasks_per_group") and recycler.recipe == "original":
        return f"{key}={value!r} would change nothing: recycler.recipe='original' has a fixed table"
    return ""


def _not_in_the_list(key: str) -> str:
    if key not in known_keys():
        parts = [live for live in LIVE if live.startswith(f"{key}.")]
        return (
            f"{key} is a table; set its parts: {', '.join(parts)}"
            if parts
            else f"unknown setting {key}; {nearest_setting(key)}"
        )
    section = key.partition(".")[0]
    why = FIXED.get(key) or FIXED.get(section, "is read once, when its process starts")
    return f"{key} cannot change in a running run: it {why}" + ("" if "run.name" in why else f"; {RESTART}")


def decide(command: Command, steering: Steering, file: Settings, *, policy_version: int, epoch: int) -> Change:
    """What a command does to a run whose run file says ``file``. A bad one is refused, with the reason."""
    change = Change(
        nonce=command.nonce,
        action=command.action,
        by="".join(filter(str.isprintable, command.by))[:MOST_NAME],
        at=command.at,
        policy_version=policy_version,
        epoch=epoch,
    )
    if command.action != "set":
        return change
    before = with_values(file, steering.values)
    try:
        after = steered(file, {**steering.values, **command.values})
    except SettingsError as error:
        return replace(change, refused=str(error))
    return replace(
        change,
        changes={key: (value_of(before, key), value_of(after, key)) for key in command.values},
        of_file={key: value_of(file, key) for key in command.values},
    )


def of_the_file(steering: Steering, file: Settings) -> dict[str, tuple[Value, Value]]:
    """Live values that the run file has overtaken, with what it says: it was changed since, or excludes them now."""
    kept: dict[str, Value] = {}
    given_up: dict[str, tuple[Value, Value]] = {}
    for key, live in steering.live.items():
        says = value_of(file, key)
        try:
            steered(file, {**kept, key: live.value})
        except SettingsError:
            given_up[key] = (live.value, says)
            continue
        if says != live.of_file:
            given_up[key] = (live.value, says)
        else:
            kept[key] = live.value
    return given_up
