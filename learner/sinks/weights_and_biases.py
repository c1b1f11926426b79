"""Weights & Biases: one run there for one run here, also when it is resumed, and also offline."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from common.settings import Settings
from learner.sinks.base import Metrics

FOLDER: Final = "wandb"
STATE_FILE: Final = "spark.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a resumed run must know, in ``runs/NAME/wandb/spark.json``."""

    run_id: str
    policy_version: int
    """The last step that was given to Weights & Biases."""


class WeightsAndBiases:
    """Its history cannot be rewritten: of a step that is trained again it keeps what it was told first.

    Mode, key and server come from its own environment variables. Offline runs lie in ``runs/NAME/wandb``; `wandb sync`
    uploads them. Neither our source nor the settings of the server (``redis``) are sent.
    """

    def __init__(self, settings: Settings, policy_version: int) -> None:
        import wandb

        folder = settings.run.directory / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self._state_file = folder / STATE_FILE
        self._state = _read(self._state_file)
        self._write_state()
        self._run: Any = wandb.init(
            project=settings.metrics.wandb_project,
            name=settings.run.name,
            id=self._state.run_id,
            resume="allow",
            dir=str(settings.run.directory),
            config=settings.model_dump(mode="json", exclude={"redis"}),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
        )

    def record(self, metrics: Metrics) -> None:
        step = metrics["policy_version"]
        if step <= self._state.policy_version:
            return
        self._run.log({name: value for name, value in metrics.items() if name != "policy_version"}, step=step)
        self._state = State(run_id=self._state.run_id, policy_version=step)
        self._write_state()

    def close(self) -> None:
        self._run.finish()

    def _write_state(self) -> None:
        unfinished = self._state_file.with_name(f"{STATE_FILE}.tmp")
        unfinished.write_text(json.dumps(asdict(self._state)) + "\n", encoding="utf-8")
        os.replace(unfinished, self._state_file)


def _read(file: Path) -> State:
    """The state of a run that was here before, else that of a new one."""
    if file.is_file():
        return State(**json.loads(file.read_text(encoding="utf-8")))
    return State(run_id=secrets.token_hex(4), policy_version=0)
