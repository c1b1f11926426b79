"""One contract for the engines of the learner: plain torch in this process, DeepSpeed's ZeRO 2 and 3 on two ranks.

The ranks of a stage are started once and run all experiments of ``engine_lab``; what they leave is compared here. Each
goes on from the checkpoint of the one before: torch on one process, ZeRO 2 on two, ZeRO 3 on two, ZeRO 2 on one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_lab import BUDGET, VARIANTS, WARNINGS, batch, experiment, settings_of
from run_harness import ROOT, environment
from safetensors.torch import load_file
from tiny_models import save_tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.transformers_engine import TransformersEngine
from learner.ranks.deal import deal, passes
from learner.torch_engine import TorchEngine

DEADLINE_S = 240.0
ON_ALL = [variant for variant in VARIANTS if variant not in ("strange", "exploded")]


@dataclass(frozen=True)
class Found:
    """What the experiments of one engine left."""

    folder: Path

    def reports(self, variant: str) -> list[dict[str, float]]:
        return list(json.loads((self.folder / variant / "reports.json").read_text()))

    def json(self, variant: str, name: str) -> Any:
        return json.loads((self.folder / variant / name).read_text())

    def tensors(self, variant: str, folder: str, stem: str = "model") -> dict[str, Tensor]:
        return dict(load_file(self.folder / variant / folder / f"{stem}.safetensors"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of two families: one whose output head is the embedding, one with a head of its own."""
    folder = tmp_path_factory.mktemp("models")
    families = {"tied": "llama", "untied": "qwen3"}
    return {name: str(save_tiny_model(family, folder / name)) for name, family in families.items()}  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def on_torch(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Found:
    out = tmp_path_factory.mktemp("torch")
    for variant in ON_ALL:
        experiment(variant, TorchEngine(settings_of(variant, models)), out, out / "train" / "checkpoint-2")
    return Found(out)


@pytest.fixture(scope="module")
def run_lab(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Found]:
    def run(stage: int, processes: int, variants: list[str], given: Path) -> Found:
        out = tmp_path_factory.mktemp(f"zero-{stage}-on-{processes}")
        job = {"out": str(out), "processes": processes, "variants": variants, "models": models, "given": str(given)}
        (out / "job.json").write_text(json.dumps({**job, "learner": {"zero_stage": stage}}))
        paths = os.pathsep.join(str(ROOT / part) for part in (".", "tests", "tests/helpers"))
        ended = subprocess.run(
            [sys.executable, *WARNINGS, "-m", "engine_lab", str(out / "job.json")],
            env={**environment(), "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr + (out / "lab.log").read_text()
        return Found(out)

    return run


@pytest.fixture(scope="module")
def on_zero_2(run_lab: Callable[..., Found], on_torch: Found) -> Found:
    return run_lab(2, 2, ON_ALL, on_torch.folder / "train" / "checkpoint-2")


@pytest.fixture(scope="module")
def on_zero_3(run_lab: Callable[..., Found], on_zero_2: Found) -> Found:
    return run_lab(3, 2, ON_ALL, on_zero_2.folder / "train" / "checkpoint-2")


@pytest.fixture(scope="module")
def alone(run_lab: Callable[..., Found], on_zero_3: Found) -> Found:
    """ZeRO 2 on a single rank."""
    return run_lab(2, 1, ["resume", "strange", "exploded"], on_zero_3.folder / "train" / "checkpoint-2")


@pytest.fixture(params=["on_zero_2", "on_zero_3"])
def found(request: pytest.FixtureRequest) -> Found:
    """Each of the two in turn."""
    answer: Found = request.getfixturevalue(request.param)
    return answer


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], atol: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        torch.testing.assert_close(found[name], tensor, atol=atol, rtol=0, msg=lambda why, name=name: f"{name}: {why}")


def assert_same_reports(found: Found, expected: Found, variant: str) -> None:
    pairs = list(zip(found.reports(variant), expected.reports(variant), strict=True))
    for mine, reference in pairs:
        assert mine.keys() == reference.keys()
        assert mine == pytest.approx(reference, rel=1e-3, abs=1e-5)


def test_the_batches_leave_ranks_with_nothing_to_do() -> None:
    """Guards all that follows: uneven hands, and fewer microbatches than ranks."""
    counts = [len(batch(number)) for number in (0, 1, 2)]
    hands = [deal([len(b.token_ids_T) for b in batch(number)], 2) for number in (0, 1, 2)]
    assert counts[1] == 1
    assert any(len(set(map(len, dealt))) > 1 for dealt in (hands[0], hands[2]))
    assert all(passes(dealt) > 1 for dealt in (hands[0], hands[2]))
    assert max(len(b.token_ids_T) for b in batch(0)) <= BUDGET


def test_several_steps_are_those_of_one_process(found: Found, on_torch: Found) -> None:
    assert_same_reports(found, on_torch, "train")
    assert [report["lr"] for report in found.reports("train")] == pytest.approx([0.005, 0.01, 0.008875, 0.008875])
    assert len({report["loss"] for report in found.reports("train")}) >= 3
    assert_close(found.tensors("train", "weights-3"), on_torch.tensors("train", "weights-3"), 1e-4)
    moved = (found.tensors("train", "weights-3")[name] - t for name, t in found.tensors("train", "weights-0").items())
    assert min(change.abs().max().item() for change in moved) > 1e-3


def test_old_logprobs_come_back_by_microbatch_from_whoever_computed_them(found: Found, on_torch: Found) -> None:
    mine, reference = (engine.json("train", "logprobs.json") for engine in (found, on_torch))
    assert list(map(len, mine)) == list(map(len, reference))
    for logprobs, expected in zip(mine, reference, strict=True):
        assert logprobs == pytest.approx(expected, abs=1e-5)


def test_recomputed_logprobs_and_the_reference_take_part(found: Found, on_torch: Found) -> None:
    """Truncated importance sampling, KL to the base model, two updates with one set of old log-probs."""
    assert_same_reports(found, on_torch, "recompute")
    first, second = found.reports("recompute")
    assert second["loss"] > first["loss"] + 1.0  # the KL of weights that have moved
    assert_close(found.tensors("recompute", "weights"), on_torch.tensors("recompute", "weights"), 1e-3)


def test_a_gradient_that_is_not_finite_is_skipped_on_all_ranks(found: Found, on_torch: Found) -> None:
    reports = found.reports("skip")
    assert [report["skipped"] for report in reports] == [0.0, 1.0, 0.0]
    for stem in ("model", "optimizer"):
        before, after = (found.tensors("skip", folder, stem) for folder in ("before", "after"))
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        assert before.keys() == after.keys()
    assert reports[2] == pytest.approx(on_torch.reports("skip")[2], rel=1e-3, abs=1e-5)
    assert_close(found.tensors("skip", "weights"), on_torch.tensors("skip", "weights"), 1e-4)


def test_gradients_are_clipped_by_the_norm_of_all_ranks(found: Found, on_torch: Found) -> None:
    """The first momentum is a tenth of the clipped gradient, whose norm was to be 0.01."""
    assert found.reports("clip")[0]["grad_norm"] == pytest.approx(on_torch.reports("clip")[0]["grad_norm"], rel=1e-4)
    assert found.reports("clip")[0]["grad_norm"] > 0.1
    state = found.tensors("clip", "checkpoint", "optimizer")
    momentum = torch.cat([tensor.flatten() for name, tensor in state.items() if name.endswith("/exp_avg")])
    assert momentum.norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert_close(state, on_torch.tensors("clip", "checkpoint", "optimizer"), 1e-7)


def test_recomputing_activations_changes_nothing(found: Found, on_torch: Found) -> None:
    assert_same_reports(found, on_torch, "recomputed_activations")
    expected = on_torch.tensors("recomputed_activations", "weights")
    assert_close(found.tensors("recomputed_activations", "weights"), expected, 1e-5)


def test_a_head_of_its_own(found: Found, on_torch: Found) -> None:
    assert_same_reports(found, on_torch, "untied")
    assert "lm_head.weight" in found.tensors("untied", "weights")
    assert_close(found.tensors("untied", "weights"), on_torch.tensors("untied", "weights"), 1e-4)


def test_half_precision_stays_close_and_keeps_its_master_weights(found: Found, on_torch: Found) -> None:
    mine, reference = found.reports("half")[0], on_torch.reports("half")[0]
    assert mine["loss"] == pytest.approx(reference["loss"], rel=0.05)
    assert mine["grad_norm"] == pytest.approx(reference["grad_norm"], rel=0.05)
    published = found.tensors("half", "weights")
    assert {tensor.dtype for tensor in published.values()} == {torch.bfloat16}
    master = found.tensors("half", "checkpoint")
    assert_close(published, {name: tensor.bfloat16() for name, tensor in master.items()}, 0.0)
    assert any((tensor != tensor.bfloat16()).any() for tensor in master.values())
    assert_close(found.tensors("half", "fresh"), on_torch.tensors("half", "fresh"), 0.0)  # not what bfloat16 left


# -- files --------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_the_same_whoever_writes_it(found: Found, on_torch: Found) -> None:
    assert_close(found.tensors("train", "checkpoint-0"), on_torch.tensors("train", "checkpoint-0"), 0.0)
    assert found.tensors("train", "checkpoint-0", "optimizer") == {}
    assert_close(found.tensors("train", "checkpoint-2"), on_torch.tensors("train", "checkpoint-2"), 1e-4)
    mine, reference = (engine.tensors("train", "checkpoint-2", "optimizer") for engine in (found, on_torch))
    assert_close(mine, reference, 1e-5)
    assert {float(tensor) for name, tensor in mine.items() if name.endswith("/step")} == {2.0}


def test_an_engine_goes_on_from_its_own_checkpoint(found: Found) -> None:
    third, again = found.reports("train")[2:]
    assert again == third
    assert_close(found.tensors("train", "weights-again"), found.tensors("train", "weights-3"), 0.0)


def test_an_engine_goes_on_from_the_checkpoint_of_another(found: Found, alone: Found, on_torch: Found) -> None:
    """Of other engines, stages and numbers of ranks: see the fixtures."""
    for engine in (found, alone):
        assert engine.reports("resume")[0] == pytest.approx(on_torch.reports("train")[2], rel=1e-3, abs=1e-5)
        assert_close(engine.tensors("resume", "weights"), on_torch.tensors("train", "weights-3"), 1e-4)


def test_torch_goes_on_from_the_checkpoint_of_any(
    found: Found, on_torch: Found, models: dict[str, str], tmp_path: Path
) -> None:
    experiment("resume", TorchEngine(settings_of("resume", models)), tmp_path, found.folder / "train" / "checkpoint-2")
    resumed = Found(tmp_path)
    assert resumed.reports("resume")[0] == pytest.approx(on_torch.reports("train")[2], rel=1e-3, abs=1e-5)
    assert_close(resumed.tensors("resume", "weights"), on_torch.tensors("train", "weights-3"), 1e-4)


def test_a_step_that_leaves_weights_that_are_not_finite_is_refused(alone: Found) -> None:
    [said] = alone.json("exploded", "refusals.json")
    assert said.startswith("SettingsError: the weights after step 1 are not finite in torch.float32")


def test_a_checkpoint_of_another_model_is_refused(alone: Found) -> None:
    [said] = alone.json("strange", "refusals.json")
    assert said.startswith("SettingsError: checkpoint checkpoint-2 is of another model than model.path=")


def test_a_folder_that_takes_no_file_is_an_os_error_and_the_ranks_stay_in_step(found: Found) -> None:
    """A full disk, say; the steps after it are compared above."""
    for said in found.json("train", "refusals.json"):
        assert said.startswith("OSError: ")
        assert "model.safetensors cannot be written" in said


def test_published_weights_are_loaded_by_an_actor(found: Found, models: dict[str, str]) -> None:
    model = AutoModelForCausalLM.from_pretrained(models["tied"])
    tokenizer = AutoTokenizer.from_pretrained(models["tied"])
    actor = TransformersEngine(model, tokenizer, groups_per_batch=1, max_prompt_tokens=10)
    actor.apply([found.folder / "train" / "weights-3" / "model.safetensors"], 3)
    assert actor.policy_version == 3
    assert_close(dict(actor.model.named_parameters()), found.tensors("train", "weights-3"), 0.0)


def test_an_export_loads_with_its_tokenizer(found: Found, models: dict[str, str]) -> None:
    folder = found.folder / "train" / "export"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert_close(dict(model.named_parameters()), found.tensors("train", "weights-3"), 0.0)
    base, exported = (AutoTokenizer.from_pretrained(path) for path in (models["tied"], folder))
    assert exported.chat_template == base.chat_template
    assert json.loads((folder / "spark.json").read_text()) == {"policy_version": 3}


def test_half_precision_exports_its_master_weights(found: Found) -> None:
    """In float32, and config.json says so: it would else name the dtype of the passes."""
    exported = AutoModelForCausalLM.from_pretrained(found.folder / "half" / "export")
    assert_close(dict(exported.named_parameters()), found.tensors("half", "checkpoint"), 0.0)
