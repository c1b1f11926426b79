"""`spark eval`: a model or a run against held-out prompts."""

from __future__ import annotations

import json
import os
from pathlib import Path

from cli.commands import Evaluate
from cli.rundir import RunDirectory, open_run
from common import log
from common.errors import SettingsError
from common.settings import Settings
from common.settings_sources import load_settings


def run(command: Evaluate) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported
    settings, model_path = _resolve(command)
    settings = _with_prompts(settings, command)
    log.configure(json=False)  # to stderr: stdout is for the figures

    from rich.console import Console

    from cli.evaluation import build_pool, evaluate, table

    for file in (command.pool, command.json_file):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)  # now, not after an hour of sampling

    draws = settings.eval.draws if command.draws is None else command.draws
    seed = settings.eval_seed if command.seed is None else command.seed
    if command.pool is not None and not command.pool.exists():
        build_pool(settings, model_path, command.pool, draws, seed)
    result = evaluate(
        settings,
        model_path,
        pool_path=command.pool,
        draws=draws,
        seed=seed,
        rounds=settings.eval.rounds,
        votes=settings.eval.votes,
    )
    Console().print(table([(command.model, result)]))
    if command.json_file is not None:
        command.json_file.write_text(result.to_json(), encoding="utf-8")


def _resolve(command: Evaluate) -> tuple[Settings, str]:
    """Settings and model path of a run directory (its export, brought up to date), or of a plain model."""
    path = Path(command.model)
    if (path / "config.toml").is_file():
        run_directory = open_run(path, command.overrides)
        return run_directory.settings, str(_exported(run_directory))
    overrides = [*command.overrides, f"model.path={json.dumps(command.model)}"]
    return load_settings(command.config, overrides), command.model


def _exported(run_directory: RunDirectory) -> Path:
    """The export of a run, written anew unless it is at least as new as the newest checkpoint."""
    from cli.export import export, exported_version, newest_checkpoint

    version = exported_version(run_directory.export)
    saved = newest_checkpoint(run_directory)
    if version is None or (saved is not None and saved.state.policy_version > version):
        export(run_directory.path, None)
    return run_directory.export


def _with_prompts(settings: Settings, command: Evaluate) -> Settings:
    if not (command.prompts or settings.eval.prompts):
        raise SettingsError("no held-out prompts: give PROMPTS, or set eval.prompts in the run file")
    if not command.prompts:
        return settings
    held_out = settings.eval.model_copy(update={"prompts": command.prompts, "args": {}})
    return settings.model_copy(update={"eval": held_out})
