"""The training engine against a plain reference: gradients, packing, checkpoints, export."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.messages import OBJECTIVES
from common.settings import Settings
from learner.packing import pack
from learner.torch_engine import TorchEngine

WEIGHTS = {"solve": 1.0, "pointwise": 0.25, "pairwise": 0.25, "reflect": 0.5}


@pytest.fixture
def make_engine(tiny_model):
    def make(loss=None, **learner) -> TorchEngine:
        fields = {"lr": 1e-2, "warmup_steps": 0, "max_steps": 10, "grad_clip": 1e9, **learner}
        return TorchEngine(Settings(model={"path": str(tiny_model)}, learner=fields, loss=loss or {}))

    return make


@pytest.fixture
def joint_batch(make_sample):
    rng = np.random.default_rng(0)
    shapes = [(4, 5, "solve"), (2, 9, "solve"), (7, 1, "pointwise"), (3, 2, "pairwise"), (6, 6, "reflect")] * 2
    return [make_sample(rng, prompt=p, tokens=t, objective=o, staleness=i % 3) for i, (p, t, o) in enumerate(shapes)]


def parameters(engine: TorchEngine) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in engine.model.named_parameters()}


def capture_gradient(engine: TorchEngine, batches, old=None) -> dict[str, torch.Tensor]:
    """The gradient that the optimizer is given."""
    found = {}

    def keep(*_args) -> None:
        found.update({name: p.grad.detach().clone() for name, p in engine.model.named_parameters()})

    handle = engine._optimizer.register_step_pre_hook(keep)
    engine.step(batches, old)
    handle.remove()
    return found


def plain_gradient(folder, samples, kl_coef=0.0) -> tuple[float, dict[str, torch.Tensor]]:
    """One sample at a time, no padding, no packing: PPO with clip 0.2 on the ratio to the behaviour policy."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    counts = {name: sum(len(s.token_ids) for s in samples if s.objective == name) for name in OBJECTIVES}
    present = sum(WEIGHTS[name] for name in OBJECTIVES if counts[name])
    loss = torch.zeros(())
    for sample in samples:
        ids = torch.tensor([*sample.prompt_token_ids.tolist(), *sample.token_ids.tolist()])
        logprobs = torch.log_softmax(model(input_ids=ids[None]).logits[0].float(), dim=-1)
        for place, behaviour in enumerate(sample.behaviour_logprobs.tolist()):
            position = len(sample.prompt_token_ids) + place
            logprob = logprobs[position - 1, ids[position]]
            ratio = torch.exp(logprob - behaviour)
            gain = torch.minimum(ratio * sample.advantage, ratio.clamp(0.8, 1.2) * sample.advantage)
            loss = loss - gain * WEIGHTS[sample.objective] / present / counts[sample.objective]
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


def test_the_gradient_of_a_joint_batch_is_that_of_a_plain_loop(make_engine, tiny_model, joint_batch) -> None:
    loss, expected = plain_gradient(tiny_model, joint_batch)
    engine = make_engine()
    found = capture_gradient(engine, pack(joint_batch, 40))
    assert max(g.abs().max() for g in expected.values()) > 1e-3
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)
    assert make_engine().step(pack(joint_batch, 40))["loss"] == pytest.approx(loss, rel=1e-4)


def test_the_result_does_not_depend_on_the_microbatches(make_engine, joint_batch) -> None:
    one, *others = (capture_gradient(make_engine(), pack(joint_batch, budget)) for budget in (10_000, 60, 24, 1))
    for other in others:
        for name, gradient in one.items():
            torch.testing.assert_close(other[name], gradient, atol=1e-5, rtol=1e-4)


def test_a_step_raises_what_was_good_and_lowers_what_was_bad(make_engine, make_sample) -> None:
    """The update itself, not only its gradient: a positive advantage makes its completion likelier."""
    engine = make_engine()
    samples = [make_sample(np.random.default_rng(seed), prompt=3, tokens=4) for seed in (1, 2)]
    good, bad = pack(samples, 1)
    good.advantages_R[:], bad.advantages_R[:] = 1.0, -1.0
    before = [logprobs.sum().item() for logprobs in engine.old_logprobs([good, bad])]
    for batch, logprobs in zip((good, bad), engine.old_logprobs([good, bad]), strict=True):
        batch.behaviour_logprobs_RL[batch.is_target_RL] = logprobs.numpy()
    engine.step([good, bad])
    after = [logprobs.sum().item() for logprobs in engine.old_logprobs([good, bad])]
    assert after[0] > before[0]
    assert after[1] < before[1]


def test_old_logprobs_are_teacher_forced(make_engine, tiny_model, joint_batch) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    longest = max(joint_batch, key=len)
    [found] = make_engine().old_logprobs(pack([longest], 1))
    ids = torch.tensor([*longest.prompt_token_ids.tolist(), *longest.token_ids.tolist()])
    logprobs = torch.log_softmax(model(input_ids=ids[None]).logits[0], dim=-1)
    start = len(longest.prompt_token_ids)
    expected = [logprobs[position - 1, ids[position]].item() for position in range(start, len(ids))]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_recomputed_old_logprobs_take_the_place_of_the_behaviour(make_engine, joint_batch) -> None:
    """At the first update of a batch the ratio to them is 1, so nothing is clipped."""
    engine = make_engine()
    batches = pack(joint_batch, 60)
    report = engine.step(batches, engine.old_logprobs(batches))
    weighted = 0.0
    for name in OBJECTIVES:
        own = [s for s in joint_batch if s.objective == name]
        mean = sum(len(s.token_ids) * s.advantage for s in own) / sum(len(s.token_ids) for s in own)
        weighted -= WEIGHTS[name] / sum(WEIGHTS.values()) * mean
    assert report["loss"] == pytest.approx(weighted, rel=1e-4)


def test_kl_to_the_reference_is_zero_at_first_and_then_pulls_back(make_engine, joint_batch) -> None:
    batches = pack(joint_batch, 1000)
    plain, held = make_engine(), make_engine(loss={"kl_coef": 5.0})
    assert held.step(batches)["loss"] == pytest.approx(plain.step(batches)["loss"], abs=1e-5)
    drifted = held.step(batches)["loss"] - plain.step(batches)["loss"]
    assert drifted > 1e-3
    frozen = make_engine().model.state_dict()
    assert all(torch.equal(value, frozen[name]) for name, value in held.reference.state_dict().items())


def test_kl_acts_on_the_gradient(make_engine, joint_batch) -> None:
    batches = pack(joint_batch, 1000)
    gradients = []
    for loss in ({}, {"kl_coef": 5.0}):
        engine = make_engine(loss=loss)
        with torch.no_grad():
            for parameter in engine.model.parameters():
                parameter.mul_(1.1)
        gradients.append(capture_gradient(engine, batches))
    name = "model.embed_tokens.weight"
    assert (gradients[0][name] - gradients[1][name]).abs().max() > 1e-3


def test_the_report_follows_the_schedule_and_the_version(make_engine, joint_batch) -> None:
    engine = make_engine(lr_schedule="linear", lr_min_ratio=0.0, max_steps=4)
    reports = [engine.step(pack(joint_batch, 1000)) for _ in range(3)]
    assert [report["lr"] for report in reports] == pytest.approx([0.0075, 0.005, 0.0025])
    assert engine.policy_version == 3
    assert reports[0]["tokens"] == sum(len(sample.token_ids) for sample in joint_batch)
    assert all(math.isfinite(report["grad_norm"]) for report in reports)


def test_gradients_are_clipped(make_engine, joint_batch) -> None:
    engine = make_engine(grad_clip=0.01)
    found = capture_gradient(engine, pack(joint_batch, 1000))
    assert torch.cat([g.flatten() for g in found.values()]).norm() == pytest.approx(0.01, rel=1e-3)


# -- checkpoints and export ---------------------------------------------------------------------------------


def test_a_restored_engine_continues_bit_for_bit(make_engine, joint_batch, tmp_path) -> None:
    batches = [pack(part, 60) for part in (joint_batch[:4], joint_batch[2:7], joint_batch[5:])]
    straight, first, second = make_engine(), make_engine(), make_engine()
    for batch in batches:
        straight.step(batch)
    first.step(batches[0])
    first.write_checkpoint(tmp_path)
    second.read_checkpoint(tmp_path, first.policy_version)
    reports = [second.step(batch) for batch in batches[1:]]
    assert second.policy_version == 3
    assert reports[-1]["lr"] == straight._optimizer.param_groups[0]["lr"]
    expected = parameters(straight)
    assert all(torch.equal(value, expected[name]) for name, value in parameters(second).items())


def test_without_the_optimizer_state_it_would_not(make_engine, joint_batch, tmp_path) -> None:
    """Guards the test above: momentum matters in these three steps."""
    batches = [pack(part, 60) for part in (joint_batch[:4], joint_batch[2:7])]
    straight, amnesiac = make_engine(), make_engine()
    straight.step(batches[0])
    straight.write_checkpoint(tmp_path)
    amnesiac.read_checkpoint(tmp_path, 1)
    amnesiac._optimizer.state.clear()
    straight.step(batches[1])
    amnesiac.step(batches[1])
    expected = parameters(straight)
    assert any(not torch.equal(value, expected[name]) for name, value in parameters(amnesiac).items())


def test_a_checkpoint_before_the_first_step_restores(make_engine, joint_batch, tmp_path) -> None:
    fresh, restored = make_engine(), make_engine()
    fresh.write_checkpoint(tmp_path)
    restored.read_checkpoint(tmp_path, 0)
    for engine in (fresh, restored):
        engine.step(pack(joint_batch, 60))
    assert all(torch.equal(value, parameters(fresh)[name]) for name, value in parameters(restored).items())


def test_weights_hold_every_parameter_once(make_engine, tmp_path) -> None:
    engine = make_engine()
    engine.write_weights(tmp_path)
    [file] = tmp_path.iterdir()
    written = load_file(file)
    assert written.keys() == parameters(engine).keys()
    assert "lm_head.weight" not in written  # tied to the embedding


def test_a_folder_that_takes_no_file_is_an_os_error(make_engine, tmp_path) -> None:
    """A full disk, say. The committer goes on after an OSError, and safetensors raises one of its own."""
    with pytest.raises(OSError, match=r"model\.safetensors cannot be written"):
        make_engine().write_checkpoint(tmp_path / "missing")


def test_the_export_loads_with_tokenizer_and_chat_template(make_engine, joint_batch, tiny_model, tmp_path) -> None:
    engine = make_engine()
    engine.step(pack(joint_batch, 1000))
    engine.export(tmp_path / "export")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert all(torch.equal(p, parameters(engine)[name]) for name, p in model.named_parameters())
    base, exported = (AutoTokenizer.from_pretrained(folder) for folder in (tiny_model, tmp_path / "export"))
    chat = [{"role": "user", "content": "w5 w6"}]
    assert exported.chat_template == base.chat_template
    assert exported.apply_chat_template(chat)["input_ids"] == base.apply_chat_template(chat)["input_ids"]
    assert json.loads((tmp_path / "export" / "config.json").read_text())["eos_token_id"] == 2
