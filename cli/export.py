"""`spark export`: the newest checkpoint of a run as a Hugging Face directory."""

from __future__ import annotations

import json
from pathlib import Path

from cli.rundir import RunDirectory, open_run
from common.errors import SettingsError
from learner.checkpoint import Checkpoint, CheckpointStore


def export(run: Path, to: Path | None) -> None:
    """Write model, tokenizer and chat template; ``AutoModelForCausalLM.from_pretrained`` loads the directory."""
    run_directory = open_run(run)
    if to is not None:
        refuse_foreign(to)
    saved = newest_checkpoint(run_directory)
    if saved is None:
        raise SettingsError(
            f"{run_directory.path} has no valid checkpoint yet; the first comes after checkpoint_every steps"
        )

    from learner.torch_engine import TorchEngine

    engine = TorchEngine(run_directory.settings)
    engine.read_checkpoint(saved.folder, saved.state.policy_version)
    folder = to or run_directory.export
    engine.export(folder)
    print(f"policy version {saved.state.policy_version} written to {folder}")


def refuse_foreign(folder: Path) -> None:
    """Raises SettingsError for a folder with something in it that is no export: files of two models would mix."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and exported_version(folder) is None)):
        raise SettingsError(f"--to {folder} is neither empty nor an earlier export; name a new folder")


def newest_checkpoint(run: RunDirectory) -> Checkpoint | None:
    return CheckpointStore(run.path / "checkpoints", run.settings.learner.checkpoints_kept).newest()


def exported_version(folder: Path) -> int | None:
    """Policy version of an export; None when there is none, or one that was cut off."""
    from learner.torch_engine import EXPORTED_FILE

    path = folder / EXPORTED_FILE
    return int(json.loads(path.read_text(encoding="utf-8"))["policy_version"]) if path.is_file() else None
