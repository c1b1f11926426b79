"""The learner's step on a GPU: bfloat16 against float32 on the CPU, packed against padded, with torch's own kernel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, save_tiny_model

from common.messages import OBJECTIVES
from common.settings import Settings
from learner import attention
from learner.packing import Microbatch, pack
from learner.samples import Sample
from learner.torch_engine import TorchEngine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]
VOCABULARY = 512


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = request.param
    return save_tiny_model(family, tmp_path_factory.mktemp(family), vocabulary=VOCABULARY, initializer_range=0.05)


@pytest.fixture(scope="module")
def batches() -> list[Microbatch]:
    """Sequences shorter and longer than the sliding window of 8."""
    rng = np.random.default_rng(0)
    samples = [
        Sample(
            objective=OBJECTIVES[index % len(OBJECTIVES)],
            prompt_token_ids=rng.integers(3, VOCABULARY, prompt).astype(np.int32),
            token_ids=rng.integers(3, VOCABULARY, tokens).astype(np.int32),
            behaviour_logprobs=np.full(tokens, -np.log(VOCABULARY), dtype=np.float32),
            advantage=float(rng.normal()),
            staleness=index % 2,
        )
        for index, (prompt, tokens) in enumerate([(4, 60), (30, 7), (2, 5), (12, 100), (4, 60), (8, 33)])
    ]
    return pack(samples, 192)


def engine(folder: Path, **learner: object) -> TorchEngine:
    fields = {"lr": 1e-3, "warmup_steps": 0, "tokens_per_microbatch": 192, **learner}
    return TorchEngine(Settings(model={"path": str(folder)}, learner=fields))


def by_sequence(trained: TorchEngine, batches: list[Microbatch]) -> torch.Tensor:
    """Log-probs of all completion tokens, sorted by their sequence: forms differ in the order of samples."""
    found = {}
    for batch, logprobs in zip(trained._scorer.arrange(batches), trained.old_logprobs(batches), strict=True):
        for segment in range(len(batch.advantages_S)):
            key = batch.token_ids_T[slice(*batch.starts_S1[segment : segment + 2])].tobytes()
            found[key] = logprobs.cpu()[torch.from_numpy(batch.segment_of_N == segment)]
    return torch.cat([found[key] for key in sorted(found)])


def stepped(
    folder: Path, batches: list[Microbatch], **learner: object
) -> tuple[dict[str, float], torch.Tensor, torch.Tensor]:
    """The report of one step, the log-probs before it, and the gradient it was given; both on the host."""
    trained, gradients = engine(folder, **learner), []
    logprobs = by_sequence(trained, batches)

    def keep(*_: object) -> None:
        gradients.extend(parameter.grad.flatten().cpu() for parameter in trained.model.parameters())

    trained._optimizer.register_step_pre_hook(keep)
    return trained.step(batches), logprobs, torch.cat(gradients)


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(one, other, dim=0).item()


def test_float32_on_the_gpu_is_float32_on_the_cpu(folder: Path, batches: list[Microbatch]) -> None:
    expected, found = (stepped(folder, batches, device=device) for device in ("cpu", "cuda"))
    torch.testing.assert_close(found[1], expected[1], atol=2e-4, rtol=1e-4)
    assert found[0]["loss"] == pytest.approx(expected[0]["loss"], rel=1e-3, abs=1e-5)
    assert cosine(found[2], expected[2]) > 0.9999


@pytest.mark.parametrize("changes", [{}, {"packing": False}, {"gradient_checkpointing": True}], ids=str)
def test_bfloat16_on_the_gpu_is_near_float32_on_the_cpu(
    folder: Path, batches: list[Microbatch], changes: dict[str, bool]
) -> None:
    expected = stepped(folder, batches, device="cpu")
    found = stepped(folder, batches, device="cuda", precision="bfloat16", **changes)
    assert (found[1] - expected[1]).abs().mean() < 0.05
    assert found[0]["loss"] == pytest.approx(expected[0]["loss"], rel=0.05, abs=5e-3)
    assert cosine(found[2], expected[2]) > 0.98


def test_packed_is_padded(folder: Path, batches: list[Microbatch]) -> None:
    packed, padded = (engine(folder, device="cuda", packing=packing) for packing in (True, False))
    assert packed._scorer.form.packs
    torch.testing.assert_close(by_sequence(packed, batches), by_sequence(padded, batches), atol=2e-4, rtol=1e-4)


def test_the_kernel_of_variable_lengths_is_what_runs(
    folder: Path, batches: list[Microbatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not attention.KERNEL_COMPLETE:
        pytest.skip("torch's varlen_attn has no grouped queries before 2.12")
    calls, kernel = [], attention.varlen_attn
    monkeypatch.setattr(attention, "varlen_attn", lambda *a, **k: calls.append(k) or kernel(*a, **k))
    trained = engine(folder, device="cuda", precision="bfloat16")
    calls.clear()
    trained.step(batches)
    assert len(calls) == 2 * len(batches)


def test_a_step_on_the_gpu_resumes_from_its_checkpoint(folder: Path, batches: list[Microbatch], tmp_path: Path) -> None:
    first, second = (engine(folder, device="cuda", precision="bfloat16") for _ in range(2))
    first.step(batches)
    first.write_checkpoint(tmp_path)
    second.read_checkpoint(tmp_path, 1)
    assert second.step(batches)["loss"] == pytest.approx(first.step(batches)["loss"], rel=1e-3, abs=1e-5)
