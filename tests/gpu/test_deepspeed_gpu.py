"""DeepSpeed on GPUs, with NCCL: the experiments of the contract suite, against plain torch on the same GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from engine_lab import experiment, settings_of
from run_harness import ROOT, environment
from safetensors.torch import load_file
from tiny_models import save_tiny_model

from learner.torch_engine import TorchEngine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed (extra `deepspeed`)"),
]
VARIANTS = ["train", "recompute", "skip", "recomputed_activations", "half"]
DEADLINE_S = 280.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {"tied": str(save_tiny_model("llama", folder / "tied")), "untied": ""}


@pytest.fixture(scope="module")
def on_torch(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("torch")
    for variant in VARIANTS:
        experiment(variant, TorchEngine(settings_of(variant, models, device="cuda")), out, out)
    return out


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("processes", [1, 2])
def test_steps_on_gpus_are_those_of_plain_torch(
    models: dict[str, str], on_torch: Path, tmp_path: Path, stage: int, processes: int
) -> None:
    if torch.cuda.device_count() < processes:
        pytest.skip(f"needs {processes} CUDA devices: NCCL takes one rank on each")
    learner = {"zero_stage": stage, "device": "cuda"}
    job = {"out": str(tmp_path), "processes": processes, "variants": VARIANTS, "models": models, "given": ""}
    (tmp_path / "job.json").write_text(json.dumps({**job, "learner": learner}))
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "tests", "tests/helpers"))
    ended = subprocess.run(
        [sys.executable, "-m", "engine_lab", str(tmp_path / "job.json")],
        env={**environment(), "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr + (tmp_path / "lab.log").read_text()
    for variant in VARIANTS:
        mine, reference = (json.loads((out / variant / "reports.json").read_text()) for out in (tmp_path, on_torch))
        for found, expected in zip(mine, reference, strict=True):
            assert found["loss"] == pytest.approx(
                expected["loss"], rel=0.05 if variant == "half" else 1e-3, nan_ok=True
            )
            assert found["skipped"] == expected["skipped"]
    for stem in ("weights-3", "weights-again"):
        weights, expected = (load_file(out / "train" / stem / "model.safetensors") for out in (tmp_path, on_torch))
        for name, tensor in expected.items():
            torch.testing.assert_close(weights[name], tensor, atol=1e-3, rtol=0)
