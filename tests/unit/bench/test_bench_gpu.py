"""The benchmark of GPUs, as far as a CPU can try it: its measurements on a tiny model, its decisions, its words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from bench.gpu import describe, failed, largest_for, lines_of, run_part, tiny
from bench.gpu_parts import PARTS, Job, check_spans, learner_steps
from bench.random_llama import SHAPES, config_like
from common.messages import Completion


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """With its model made."""
    job = tiny(Job(folder=tmp_path_factory.mktemp("gpu"), shape="tiny", device="cpu", repeats=2))
    made = PARTS["model"](job)
    assert made["published_bytes"] > 4 * made["parameters"]
    return job


def test_a_job_travels_through_its_file(job: Job, tmp_path: Path) -> None:
    job.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == job


@pytest.mark.parametrize("name", SHAPES)
def test_the_parameters_of_a_shape_are_those_of_its_model(name: str) -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(config_like(name))
    assert model.num_parameters() == SHAPES[name].parameters


def test_generation_and_its_updates_are_measured(job: Job) -> None:
    figures = PARTS["transformers"](job)
    assert figures["tokens_per_s"] > 0
    for kv in ("recompute", "keep"):
        update = figures["update"][kv]
        assert update["updates"] > 0
        assert 0 < update["apply_s"] < update["first_token_s"]
        assert update["of_no_update"] == pytest.approx(update["tokens_per_s"] / figures["tokens_per_s"])


def test_the_learner_is_measured(job: Job) -> None:
    figures = learner_steps(job, gradient_checkpointing=True)
    assert figures["tokens"] >= job.learner_tokens
    assert figures["tokens_per_s"] > 0
    assert list((job.folder / "trained").glob("*.safetensors"))


def completion(*spans: tuple[int, int]) -> Completion:
    return Completion(
        token_ids=np.arange(8, dtype=np.int32),
        logprobs=np.zeros(8, dtype=np.float32),
        spans=spans,
        finish_reason="length",
        text="",
    )


def test_spans_must_tell_of_every_update() -> None:
    check_spans([completion((0, 0), (1, 3)), completion((1, 0), (2, 5))], versions=2)
    with pytest.raises(RuntimeError, match=r"2 updates were made, but spans name the versions \[0, 1\]"):
        check_spans([completion((0, 0), (1, 3))], versions=2)


def test_without_a_gpu_it_leaves_with_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a CUDA device and torch finds none") as left:
        describe("cuda")
    assert isinstance(left.value.code, str)  # to standard error, with exit code 1


def test_the_model_is_the_largest_that_can_be_trained() -> None:
    assert largest_for(80 * 10**9) == "1b"
    assert largest_for(24 * 10**9) == "500m"
    assert largest_for(0) == "tiny"


def test_a_part_that_fails_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    broken = run_part("learner", tmp_path)  # there is no job.json
    assert "job.json" in broken["error"]
    update = {"updates": 4, "apply_s": 0.5, "first_token_s": 0.75, "tokens_per_s": 900.0, "of_no_update": 0.9}
    results = {
        "shape": "1b",
        "tests": {"exit_code": 0, "summary": "5 passed"},
        "model": {"parameters": 10**9, "published_bytes": 2 * 10**9, "publish_s": 1.5},
        "parts": {"vllm": {"tokens_per_s": 1000.0, "verify_s": 1.0, "update": {"keep": update}}},
    }
    assert not failed(results)
    results["parts"]["learner"] = broken
    assert failed(results)
    lines = "\n".join(lines_of(results))
    assert "tests: 5 passed" in lines
    assert "model: 1b, 1.00 billion parameters, 2.00 GB published in 1.50 s" in lines
    assert "vllm, KV cache keep: 4 updates, apply 0.50 s, first token 0.75 s, 900 tokens/s (0.90)" in lines
    assert "learner: FAILED: FileNotFoundError" in lines
    assert failed({**results, "parts": {}, "tests": {"exit_code": 1, "summary": "1 failed"}})
