"""A small run of all processes on one GPU: `spark up` with actors of either engine and a learner in bf16.

The same run on a CPU, in float32, is part of the ordinary suite, so that this file cannot rot.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from run_harness import spark, steps_of
from safetensors import safe_open
from tiny_models import save_tiny_model

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed (extra `vllm`)")
RUN = """
preset = "grpo"
[run]
name = "small"
[model]
path = "model"
[prompts]
source = "prompts.jsonl"
verifier = "python:reward:even"
[sampling]
group_size = 4
max_new_tokens = 12
[actor]
count = 1
groups_in_flight = 4
[vllm]
max_model_len = 64
kv_cache_gib = 0.05
gpu_memory_utilization = 0.2
enforce_eager = true
[learner]
groups_per_step = 4
max_steps = 4
checkpoint_every = 2
lr = 1e-3
"""
REWARD = "def even(completion, answer):\n    return float(len(completion) % 2 == 0)\n"
ON_GPU = ("model.dtype=bfloat16", "learner.device=cuda", "learner.precision=bfloat16")
PLACES = [
    pytest.param(("actor.device=cpu", "learner.device=cpu"), id="cpu"),
    pytest.param(("actor.device=cuda", *ON_GPU), id="transformers", marks=[pytest.mark.gpu, needs_cuda]),
    pytest.param(("actor.engine=vllm", *ON_GPU), id="vllm", marks=[pytest.mark.gpu, needs_cuda, needs_vllm]),
]


@pytest.mark.parametrize("settings", PLACES)
def test_a_run_trains_to_its_end_and_its_ledger_balances(
    settings: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("run_harness.DEADLINE_S", 280.0)  # processes that find a GPU for the first time start slowly
    save_tiny_model("qwen3", tmp_path / "model")
    (tmp_path / "run.toml").write_text(RUN, encoding="utf-8")
    (tmp_path / "reward.py").write_text(REWARD, encoding="utf-8")
    prompts = [f'{{"prompt": "w{3 + i % 20} w{3 + i % 7}", "answer": "w3"}}\n' for i in range(40)]
    (tmp_path / "prompts.jsonl").write_text("".join(prompts), encoding="utf-8")
    overrides = [part for setting in settings for part in ("--set", setting)]

    ended = spark("up", "run.toml", *overrides, cwd=tmp_path)

    run = tmp_path / "runs" / "small"
    assert ended.returncode == 0, ended.stdout + ended.stderr + said_by(run)
    assert steps_of(run) == [1, 2, 3, 4]
    assert json.loads((run / "summary.json").read_text(encoding="utf-8"))["ledger"]["balanced"] is True
    audited = spark("audit", str(run), cwd=tmp_path)
    assert audited.returncode == 0, audited.stdout + audited.stderr
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(0.5 < step["ess"] <= 1.0 for step in metrics), "actor and learner disagree about log-probs"
    before, after = (tensors(folder) for folder in (tmp_path / "model", run / "export"))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """In float32."""
    with safe_open(folder / "model.safetensors", framework="pt") as opened:
        return {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118 - no mapping


def said_by(run: Path) -> str:
    """The logs of its processes."""
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((run / "logs").glob("*")))
