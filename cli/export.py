"""`spark export`: the newest checkpoint of a run as a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

from cli.rundir import open_run
from common.errors import SettingsError
from learner.checkpoint import CheckpointStore


def export(run: Path, to: Path | None) -> None:
    """Write model, tokenizer and chat template; ``AutoModelForCausalLM.from_pretrained`` loads the directory."""
    run_directory = open_run(run)
    settings = run_directory.settings
    saved = CheckpointStore(run_directory.path / "checkpoints", settings.learner.checkpoints_kept).newest()
    if saved is None:
        raise SettingsError(
            f"{run_directory.path} has no valid checkpoint yet; the first comes after checkpoint_every steps"
        )

    from learner.engine import TorchEngine

    engine = TorchEngine(settings)
    engine.read_checkpoint(saved.folder, saved.state.policy_version)
    folder = to or run_directory.export
    engine.export(folder)
    print(f"policy version {saved.state.policy_version} written to {folder}")
