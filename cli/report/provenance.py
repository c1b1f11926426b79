"""What the run was: the settings that make it this run, what it ran on, and how to run it again. Pure."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import tomli_w

from cli.report.history import paused_s
from cli.report.material import Material
from cli.report.words import count, number, seconds, training_time, when
from cli.starts import Start
from common.settings import CONFIGS, Settings
from common.steering import Change

NOT_SHOWN: Final = ("run.name", "run.dir", "run.python_path", "preset")
"""Of the settings that differ: the name stands above the report, and folders are of one machine."""
MOST_CHANGES: Final = 100
MOST_TOML: Final = 60_000
"""Characters of config.toml that the report holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    key: str
    value: str
    preset: str
    """Empty where the preset says nothing."""


def differences(material: Material) -> list[Difference]:
    """The settings of the run that are not those of its preset, in the order of config.toml."""
    usual = dict(flat(preset_values(str(material.settings.get("preset", "")))))
    return [
        Difference(key=key, value=text_of(value), preset=text_of(usual[key]) if key in usual else "")
        for key, value in flat(without_secrets(material.settings))
        if key not in NOT_SHOWN and usual.get(key) != value
    ]


def preset_values(preset: str) -> dict[str, Any]:
    """All defaults under a preset; of an unknown one those that no preset changes."""
    values = Settings.model_construct().model_dump(mode="json", exclude_none=True)
    path = CONFIGS / f"{Path(preset).name}.toml"
    for section, table in (tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}).items():
        values[section] = {**values[section], **table} if isinstance(table, dict) else table
    return {**values, "preset": preset}


def without_secrets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A report is passed on, and a server's URL may hold its password."""
    redis = settings.get("redis")
    if not isinstance(redis, Mapping):
        return dict(settings)
    return {**settings, "redis": {key: value for key, value in redis.items() if key != "url"}}


def flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``section.key`` and value, at any depth."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def text_of(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(text_of(item) for item in value) or "(none)"
    return str(value) if value != "" else "(empty)"


def shortened(text: str, folder: str) -> str:
    """Paths below the run's working directory without it: they are of one machine, and may name its user."""
    return text.replace(folder.rstrip("/") + "/", "") if len(folder) > 1 else text


def run_file(material: Material) -> str:
    """The resolved settings as a run file, for whoever has only the report."""
    text = tomli_w.dumps(without_secrets(material.settings)) if material.settings else ""
    rest = f"# {len(text) - MOST_TOML:,} more characters are left out\n" if len(text) > MOST_TOML else ""
    return text[:MOST_TOML] + rest


def steered(material: Material) -> list[tuple[str, str]]:
    """Step and deed of what users did while the run went on. Without their names: a report is passed on."""
    return [
        (f"after step {number(change.policy_version)}", _deed(change))
        for change in material.steered[:MOST_CHANGES]
        if change.action != "drained"
    ]


def _deed(change: Change) -> str:
    if change.action not in ("set", "file"):
        return change.action
    values = ", ".join(f"{key} = {new} (was {old})" for key, (old, new) in change.changes.items())
    return f"{'set' if change.action == 'set' else 'back to the run file:'} {values}"


def command(material: Material) -> str:
    """What was typed to start the run the first time; empty when nobody wrote it down."""
    first = next((start for start in material.starts if start.role == "up"), None)
    return shlex.join(first.command) if first else ""


def commands_after(material: Material) -> list[str]:
    """Later commands that differ from the first: they may have changed settings."""
    later = [shlex.join(start.command) for start in material.starts if start.role == "up"][1:]
    return [text for text in dict.fromkeys(later) if text != command(material)]


def folder_of(material: Material) -> str:
    return next((start.folder for start in material.starts), "")


def facts(material: Material) -> list[tuple[str, str]]:
    """The head of the report: what ran, and how far."""
    config, history, wall_s = material.config, material.history, material.summary.wall_s
    found: list[tuple[str, str | None]] = [
        ("Preset", config.preset if config else None),
        ("Model", config.model.path if config else None),
        ("Prompts", config.prompts.source if config else None),
        ("Optimizer steps", _steps(material)),
        ("Samples", number(sum(history.total("samples"))) if history.rows else None),
        ("Training time", None if wall_s is None else training_time(wall_s, paused_s(history.rows))),
        ("Started", _started(material)) if material.starts else ("Last step", _last_step(material)),
    ]
    return [(name, shortened(str(value), folder_of(material))) for name, value in found if value]


def _steps(material: Material) -> str | None:
    if not material.history.rows:
        return None
    done = number(material.history.steps[-1])
    return f"{done} of {number(material.config.learner.max_steps)}" if material.config else done


def circumstances(material: Material) -> list[tuple[str, str]]:
    """Seed, duration, resumes, versions and hardware, as far as they are known."""
    found: list[tuple[str, str | None]] = [
        ("Seed", str(material.config.run.seed) if material.config else None),
        ("Learner's time", _learner_time(material)),
        ("Learner starts", _learner_starts(material)),
    ]
    if material.starts:
        found += _machine(material.starts[-1])
    return [(name, value) for name, value in found if value]


def _started(material: Material) -> str | None:
    return when(datetime.fromtimestamp(material.starts[0].at, UTC)) if material.starts else None


def _last_step(material: Material) -> str | None:
    """When metrics.jsonl was last written, for runs that nobody noted the start of."""
    return None if material.last_metrics_at is None else when(material.last_metrics_at)


def _learner_time(material: Material) -> str | None:
    elapsed = [value for value in material.history.column("elapsed_s") if value == value]
    busy = elapsed[-1] - paused_s(material.history.rows) if elapsed else 0.0
    return f"{seconds(busy)} of steps, publishing and waiting" if elapsed else None


def _learner_starts(material: Material) -> str | None:
    if not material.learner_starts:
        return None
    if not material.resumed:
        return "1, so the run was never interrupted"
    places = ", ".join(number(version) for version in material.resumed[:20])
    return f"{material.learner_starts}; resumed after {count(len(material.resumed), 'interruption')}, at step {places}"


def _machine(start: Start) -> list[tuple[str, str | None]]:
    hardware = [start.processor, start.cores and count(start.cores, "core")]
    memory = f"{start.memory_gib} GiB of memory" if start.memory_gib else None
    return [
        ("Machine", ", ".join(str(part) for part in (*hardware, memory) if part) or None),
        ("GPUs", ", ".join(start.gpus) or "none"),
        ("System", start.system),
        ("SPARK", f"commit {start.commit.rstrip('+')[:12]}{_changed(start)}" if start.commit else None),
        ("Python", start.python),
        ("Packages", ", ".join(f"{name} {version}" for name, version in start.packages.items()) or None),
    ]


def _changed(start: Start) -> str:
    return ", with changed files" if start.commit.endswith("+") else ""
