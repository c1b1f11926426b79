"""Loading from a Hugging Face directory or hub id, with one clear sentence when that fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any, Final, TypeVar

from common.errors import SettingsError
from common.settings import Model

T = TypeVar("T")
REASON_CHARACTERS: Final = 400


def pretrained(load: Callable[..., T], model: Model, **options: Any) -> T:
    """Call ``load`` (some ``from_pretrained``) for the model of the settings. Raises SettingsError."""
    if not model.path:
        raise SettingsError("model.path is empty; set it to a Hugging Face directory or hub id")
    looks_local = model.path.startswith((".", "/", "~"))
    if looks_local and not Path(model.path).is_dir():
        raise SettingsError(f"model.path={model.path!r} is no directory")
    try:
        return load(model.path, revision=model.revision, trust_remote_code=model.trust_remote_code, **options)
    except (OSError, ValueError) as error:
        reason = shorten(str(error), REASON_CHARACTERS)
        raise SettingsError(f"model.path={model.path!r} cannot be loaded: {reason}") from error
