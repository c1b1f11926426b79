"""What a run may not change once it has begun: its prompts and the model that it starts from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import SettingsError
from common.settings import Model, Settings
from learner.prompts import PromptSource

READ: Final = (".json", ".jinja", ".model", ".txt", ".safetensors", ".bin")
"""Files of a model directory that a model, its tokenizer and its chat template are read from."""
SHOWN_BYTES: Final = 1 << 16
"""Looked at of each end of a file: other weights differ everywhere, and they may be many gigabytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Fingerprints. Empty ones are of a checkpoint that does not tell."""

    prompts: str = ""
    model: str = ""


UNKNOWN: Final = Identity()


def identity_of(settings: Settings, prompts: PromptSource) -> Identity:
    return Identity(prompts=prompts.fingerprint(), model=model_fingerprint(settings.model))


def refuse_other(now: Identity, saved: Identity, checkpoint: str) -> None:
    """Raises SettingsError when a run that has such a checkpoint cannot go on like this."""
    if saved.prompts and now.prompts != saved.prompts:
        raise SettingsError(
            f"the prompts are not those of checkpoint {checkpoint}: prompts, their verifiers, their order and run.seed "
            "are fixed for a run, since each is trained once; restore them, or start under a new run.name"
        )
    if saved.model and now.model != saved.model:
        raise SettingsError(
            f"the model is not the one that checkpoint {checkpoint} began with: its files (or model.revision) have "
            "changed; name the one the run was started with, or start under a new run.name"
        )


def model_fingerprint(model: Model) -> str:
    """Of a directory what is in it, wherever it lies; of the hub the name and the revision."""
    folder, digest = Path(model.path), hashlib.blake2b(digest_size=16)
    if not (model.path and folder.is_dir()):
        digest.update(repr((model.path, model.revision)).encode())
        return digest.hexdigest()
    for path in sorted(folder.iterdir()):
        if path.suffix in READ and path.is_file():
            digest.update(repr((path.name, path.stat().st_size)).encode())
            with path.open("rb") as file:
                digest.update(file.read(SHOWN_BYTES))
                file.seek(max(0, path.stat().st_size - SHOWN_BYTES))
                digest.update(file.read())
    return digest.hexdigest()
