"""What a run directory holds for the report. Whatever is missing or broken becomes a note, never an error."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from cli.evaluation.result import Evaluation
from cli.report.history import History, read_history
from common.settings import Learner, Model, Prompts, Run, Staleness

Interval = tuple[float, float]


class Config(BaseModel):
    """config.toml, as far as the report reads it; all of it is shown as it stands."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    preset: str = ""
    run: Run
    model: Model = Model()
    prompts: Prompts = Prompts()
    staleness: Staleness = Staleness()
    learner: Learner = Learner()


class Summary(BaseModel):
    """summary.json, as far as the report shows it."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    before: dict[str, float] | None = None
    after: dict[str, float] | None = None
    intervals: dict[str, dict[str, Interval]] = {}
    ledger: dict[str, dict[str, int] | bool] | None = None
    wall_s: float | None = None
    finished: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    name: str
    config: Config | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Everything in config.toml."""
    history: History = field(default_factory=History)
    summary: Summary = field(default_factory=Summary)
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    """By arm, ``before`` and ``after``: they say how many draws a figure stands on."""
    last_metrics_at: datetime | None = None
    notes: tuple[str, ...] = ()
    """What is missing, in whole sentences."""


def read_material(run_path: Path) -> Material:
    notes: list[str] = []
    settings, config = _settings(run_path / "config.toml", notes)
    metrics = run_path / "metrics.jsonl"
    history = read_history(metrics)
    notes += _notes_on(history, metrics)
    return Material(
        name=config.run.name if config else run_path.resolve().name,
        config=config,
        settings=settings,
        history=history,
        summary=_summary(run_path / "summary.json", notes),
        evaluations=_evaluations(run_path / "eval", notes),
        last_metrics_at=datetime.fromtimestamp(metrics.stat().st_mtime, UTC) if metrics.is_file() else None,
        notes=tuple(notes),
    )


def _settings(path: Path, notes: list[str]) -> tuple[dict[str, Any], Config | None]:
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
        return settings, Config.model_validate(settings)
    except FileNotFoundError:
        notes.append("config.toml is missing: no settings, and no bounds in the plots.")
    except (OSError, ValueError) as error:  # TOML, encoding and validation errors are all ValueErrors
        notes.append(f"config.toml cannot be read ({_first_line(error)}): no settings, and no bounds in the plots.")
    return {}, None


def _summary(path: Path, notes: list[str]) -> Summary:
    try:
        summary = Summary.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        notes.append(
            "summary.json is missing: the run goes on, or it was cut off. Its end writes the table and the ledger."
        )
    except (OSError, ValidationError) as error:
        notes.append(f"summary.json cannot be read ({_first_line(error)}): no table and no ledger.")
    else:
        return summary
    return Summary()


def _evaluations(folder: Path, notes: list[str]) -> dict[str, Evaluation]:
    found = {}
    for arm in ("before", "after"):
        path = folder / f"{arm}.json"
        try:
            found[arm] = Evaluation.from_json(path.read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, ValidationError) as error:
            notes.append(f"eval/{path.name} cannot be read ({_first_line(error)}): its numbers of draws are not shown.")
    return found


def _notes_on(history: History, path: Path) -> list[str]:
    notes = []
    if not path.is_file():
        notes.append("metrics.jsonl is missing: the learner has not finished a step.")
    elif not history.rows:
        notes.append("metrics.jsonl holds no finished step yet.")
    if history.skipped:
        notes.append(f"metrics.jsonl: {history.skipped} torn or unreadable line(s) skipped.")
    if history.repeated:
        notes.append(
            f"The learner resumed from a checkpoint: {history.repeated} line(s) of steps it made again are left out."
        )
    return notes


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg']}" if where else first["msg"]
    return str(error).splitlines()[0] if str(error) else type(error).__name__
