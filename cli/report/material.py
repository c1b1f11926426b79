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
from cli.report.archive import FOLDER, Related, newest, related
from cli.report.deaths import deaths
from cli.report.history import STEP, History, read_history
from cli.report.samples import Chosen, choose
from cli.starts import Start, read_starts
from common.settings import Learner, Model, Prompts, Run, Staleness
from common.steering import Change
from learner.checkpoint import CheckpointStore
from learner.journal import Journal

Interval = tuple[float, float]


class Config(BaseModel):
    """config.toml, as far as the report reads it; all of it is shown as it stands, keys of other versions included."""

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
    policy_version: int | None = None
    """The last step when it was written."""


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
    starts: tuple[Start, ...] = ()
    """Of `spark up` and of learners, in their order."""
    resumed: tuple[int, ...] = ()
    """Policy versions that a learner went on from after the first one."""
    learner_starts: int = 0
    deaths: tuple[tuple[str, str, int], ...] = ()
    """Kind, reason and number of tasks that died."""
    steered: tuple[Change, ...] = ()
    """What users changed while it ran, in its order; refused commands are left out."""
    chosen: Chosen = field(default_factory=Chosen)
    related: Related = field(default_factory=lambda: Related(sources={}, judged={}))
    notes: tuple[str, ...] = ()
    """What is missing, in whole sentences."""


def read_material(run_path: Path) -> Material:
    notes: list[str] = []
    settings, config = _settings(run_path / "config.toml", notes)
    metrics = run_path / "metrics.jsonl"
    history = read_history(metrics)
    notes += _notes_on(history, metrics)
    chosen, relatives = _samples(run_path / FOLDER)
    epochs = CheckpointStore(run_path / "checkpoints", kept=1).starts()
    return Material(
        name=config.run.name if config else run_path.resolve().name,
        config=config,
        settings=settings,
        history=history,
        summary=_still_true(_summary(run_path / "summary.json", notes), history, notes),
        evaluations=_evaluations(run_path / "eval", notes),
        starts=tuple(read_starts(run_path)),
        resumed=tuple(start.policy_version for _, start in sorted(epochs.items())[1:]),
        learner_starts=len(epochs),
        deaths=tuple(deaths(run_path / "events")),
        steered=tuple(change for change in Journal(run_path / "checkpoints").read() if not change.refused),
        chosen=chosen,
        related=relatives,
        last_metrics_at=datetime.fromtimestamp(metrics.stat().st_mtime, UTC) if metrics.is_file() else None,
        notes=tuple(notes),
    )


def _settings(path: Path, notes: list[str]) -> tuple[dict[str, Any], Config | None]:
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
        return settings, Config.model_validate(_known(settings))
    except FileNotFoundError:
        notes.append("config.toml is missing: no settings, and no bounds in the plots.")
    except (OSError, ValueError) as error:  # TOML, encoding and validation errors are all ValueErrors
        notes.append(f"config.toml cannot be read ({_first_line(error)}): no settings, and no bounds in the plots.")
    return {}, None


def _known(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without the keys that another version of SPARK had in the sections that are read."""
    sections: dict[str, type[BaseModel]] = {
        "run": Run,
        "model": Model,
        "prompts": Prompts,
        "staleness": Staleness,
        "learner": Learner,
    }
    return {
        name: {key: value for key, value in table.items() if key in sections[name].model_fields}
        if name in sections and isinstance(table, dict)
        else table
        for name, table in settings.items()
    }


def _samples(folder: Path) -> tuple[Chosen, Related]:
    chosen = choose(newest(folder))
    groups = [pick.record.group for pick in chosen.picks]
    sources = {ref.uid for group in groups for ref in group.task.sources}
    return chosen, related(folder, sources, {group.uid for group in groups if not group.task.sources})


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


def _still_true(summary: Summary, history: History, notes: list[str]) -> Summary:
    """What a run that went on after its summary may still say: what was measured then, not how the run stands."""
    written, last = summary.policy_version, history.rows[-1][STEP] if history.rows else 0
    if written is None or written == last:
        return summary
    table = f", and the table is of step {written:,}" if summary.after else ""
    notes.append(f"The run has gone on since summary.json was written: its ledger is left out{table}.")
    return summary.model_copy(update={"ledger": None, "finished": None, "wall_s": None})


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
