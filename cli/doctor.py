"""`spark doctor`: what this machine can run, and the command that installs what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from typing import Final

from cli.embedded import find_server
from common.errors import SettingsError

EXTRAS: Final = {
    "datasets": ("datasets", "prompts from Hugging Face datasets"),
    "reasoning-gym": ("reasoning-gym", "prompts and scoring of reasoning-gym"),
}
NEEDED: Final = ("torch", "transformers", "redis", "msgpack", "pydantic-settings", "structlog", "pebble", "math-verify")


def doctor() -> None:
    """Print one line per finding; exits with 1 when `spark up` could not run here."""
    broken = False
    print(
        f"ok       python {sys.version.split()[0]}, {os.cpu_count()} cores, "
        f"{shutil.disk_usage('.').free >> 30} GiB of free disk"
    )
    for package in NEEDED:
        version = _version(package)
        broken |= version is None
        print(f"ok       {package} {version}" if version else f"missing  {package}: run `make setup`")
    try:
        print(f"ok       server to embed: {find_server().name}")
    except SettingsError as error:
        broken = True
        print(f"missing  {error}")
    print(f"ok       accelerator: {_accelerator()}" if _version("torch") else "missing  torch")
    for extra, (package, purpose) in EXTRAS.items():
        version = _version(package)
        hint = f"not here {package} ({purpose}): run `pip install -e '.[{extra}]' -c constraints.txt`"
        print(f"ok       {package} {version} ({purpose})" if version else hint)
    sys.exit(1 if broken else 0)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _accelerator() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(0)}, not used yet: the engines of this version run on the CPU"
    return "none; the transformers engine runs on the CPU in float32"
