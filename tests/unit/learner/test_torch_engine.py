"""The training engine against a plain reference: gradients, packing, checkpoints, export."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import FAMILIES, save_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.errors import SettingsError
from common.live import with_values
from common.messages import OBJECTIVES
from common.settings import Settings
from learner.packing import Microbatch, empty_microbatch, pack, tokens_by_objective
from learner.tensor_files import read_tensors, write_tensors
from learner.torch_engine import TorchEngine

WEIGHTS = {"solve": 1.0, "pointwise": 0.25, "pairwise": 0.25, "reflect": 0.5}


@pytest.fixture
def make_engine(tiny_model):
    def make(loss=None, folder=tiny_model, model=None, **learner) -> TorchEngine:
        fields = {"lr": 1e-2, "warmup_steps": 0, "max_steps": 10, "grad_clip": 1e9, "device": "cpu", **learner}
        return TorchEngine(Settings(model={"path": str(folder), **(model or {})}, learner=fields, loss=loss or {}))

    return make


@pytest.fixture(scope="session", params=FAMILIES)
def family(request, tmp_path_factory):
    return save_tiny_model(request.param, tmp_path_factory.mktemp(request.param))


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


@pytest.mark.parametrize("learner", [{}, {"packing": False}, {"gradient_checkpointing": True}], ids=str)
def test_packed_padded_and_checkpointed_gradients_are_those_of_one_at_a_time(
    make_engine, family, make_sample, learner
) -> None:
    """Sequences longer and shorter than the window of 8 that two of the families slide."""
    rng = np.random.default_rng(1)
    shapes = [(4, 5), (3, 17), (9, 31), (2, 2), (4, 5), (6, 12)]
    samples = [make_sample(rng, prompt=p, tokens=t, objective=OBJECTIVES[i % 4]) for i, (p, t) in enumerate(shapes)]
    loss, expected = plain_gradient(family, samples)
    engine = make_engine(folder=family, tokens_per_microbatch=64, **learner)
    assert engine._scorer.form.packs == learner.get("packing", True)
    found = capture_gradient(engine, pack(samples, 64))
    assert max(g.abs().max() for g in expected.values()) > 1e-3
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)
    assert make_engine(folder=family, **learner).step(pack(samples, 64))["loss"] == pytest.approx(loss, rel=1e-4)


def test_an_empty_microbatch_reaches_every_parameter_and_changes_none(make_engine, joint_batch) -> None:
    alone = make_engine()
    part = alone._loss(empty_microbatch(), tokens_by_objective(pack(joint_batch, 60)))
    part.loss.backward()
    assert part.loss.item() == 0
    assert all((p.grad == 0).all() for p in alone.model.parameters())
    batches = pack(joint_batch, 60)
    with_it = make_engine().step([*batches, empty_microbatch()])
    without = make_engine().step(batches)
    assert with_it == without


def test_a_microbatch_that_was_sent_as_bytes_can_be_trained_on(make_engine, joint_batch) -> None:
    """What arrives is read-only."""
    batches = pack(joint_batch, 60)
    sent = [
        {name: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape) for name, a in batch.arrays().items()}
        for batch in batches
    ]
    assert make_engine().step([Microbatch.from_arrays(arrays) for arrays in sent]) == make_engine().step(batches)


def test_parts_of_a_batch_sum_to_its_loss(make_engine, joint_batch) -> None:
    """However the microbatches are dealt out to ranks, as long as the counts are those of all."""
    engine, batches = make_engine(), pack(joint_batch, 30)
    counts = tokens_by_objective(batches)
    parts = [engine._loss(batch, counts).loss.item() for batch in batches]
    assert sum(parts) == pytest.approx(make_engine().step(batches)["loss"], rel=1e-5)
    assert min(map(abs, parts)) > 0


def test_a_wrapped_model_is_run_in_place_of_the_bare_one(make_engine, joint_batch) -> None:
    engine, [batch] = make_engine(), pack(joint_batch, 1000)
    calls = []

    def wrapper(**arguments):
        calls.append(arguments)
        return engine.model(**arguments)

    bare = engine._loss(batch, tokens_by_objective([batch])).loss
    assert engine._loss(batch, tokens_by_objective([batch]), model=wrapper).loss.item() == bare.item()
    assert len(calls) == 1


def test_a_step_raises_what_was_good_and_lowers_what_was_bad(make_engine, make_sample) -> None:
    """The update itself, not only its gradient: a positive advantage makes its completion likelier."""
    engine = make_engine()
    samples = [make_sample(np.random.default_rng(seed), prompt=3, tokens=4) for seed in (1, 2)]
    good, bad = pack(samples, 1)
    good.advantages_S[:], bad.advantages_S[:] = 1.0, -1.0
    before = [logprobs.sum().item() for logprobs in engine.old_logprobs([good, bad])]
    for batch, logprobs in zip((good, bad), engine.old_logprobs([good, bad]), strict=True):
        batch.behaviour_logprobs_T[batch.is_target_T] = logprobs.numpy()
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
    first, without = held.step(batches), plain.step(batches)
    assert first["loss"] == pytest.approx(without["loss"], abs=1e-5)
    assert first["kl_reference"] == pytest.approx(0.0, abs=1e-6)
    assert "kl_reference" not in without
    second = held.step(batches)
    drifted = second["loss"] - plain.step(batches)["loss"]
    assert drifted > 1e-3
    assert second["kl_reference"] > 1e-4
    assert second["kl_reference/pointwise"] > 0
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


def test_settings_that_change_live_take_effect_in_the_next_step(make_engine, joint_batch) -> None:
    """As if the engine had been opened with them."""
    batches = pack(joint_batch, 1000)
    steered, plain = make_engine(), make_engine(lr=2e-3, loss={"reflect_weight": 3.0, "clip_high": 0.01})
    before = steered.step(batches)
    plain.step(batches)
    steered.model.load_state_dict(plain.model.state_dict())
    steered._optimizer.load_state_dict(copy.deepcopy(plain._optimizer.state_dict()))  # it would share its tensors
    changes = {"learner.lr": 2e-3, "loss.reflect_weight": 3.0, "loss.clip_high": 0.01}
    steered.use(with_values(steered._settings, changes))
    found, expected = steered.step(batches), plain.step(batches)
    assert found == expected
    assert found["lr"] == 2e-3
    assert before["lr"] == 1e-2
    assert torch.equal(steered.model.lm_head.weight, plain.model.lm_head.weight)


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


def test_weights_are_of_the_actors_dtype_and_checkpoints_of_the_learners(make_engine, tmp_path) -> None:
    engine = make_engine(model={"dtype": "bfloat16"})
    for name, dtype in (("weights", torch.bfloat16), ("checkpoint", torch.float32)):
        folder = tmp_path / name
        folder.mkdir()
        (engine.write_weights if name == "weights" else engine.write_checkpoint)(folder)
        written = dict(read_tensors(folder, "model"))
        assert {tensor.dtype for tensor in written.values()} == {dtype}
        assert all(torch.equal(value.to(dtype), written[key]) for key, value in parameters(engine).items())


def test_big_weights_are_several_files(tmp_path) -> None:
    tensors = {f"t{index}": torch.full((100,), float(index)) for index in range(7)}
    tensors["big"] = torch.zeros(1000)
    write_tensors(tensors, tmp_path, "model", torch.bfloat16, most=500)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [
        f"model-{index}-of-00005.safetensors" for index in ("00001", "00002", "00003", "00004", "00005")
    ]
    assert [len(load_file(file)) for file in files] == [2, 2, 2, 1, 1]
    assert dict(read_tensors(tmp_path, "model")).keys() == tensors.keys()
    with pytest.raises(FileNotFoundError, match="holds no optimizer"):
        next(read_tensors(tmp_path, "optimizer"))


# -- device, precision, memory ------------------------------------------------------------------------------


def test_a_gpu_that_is_not_there_is_a_settings_error(make_engine, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match=r"learner\.device='cuda'"):
        make_engine(device="cuda")
    assert make_engine(device="auto")._scorer.device.type == "cpu"


def test_bfloat16_trains_float32_weights_near_to_float32(make_engine, joint_batch) -> None:
    """Autocast in the forward pass; log-probs and everything that follows stay float32."""
    full, half = make_engine(), make_engine(precision="bfloat16")
    assert half._scorer.form.packs
    batches = pack(joint_batch, 60)
    exact, rounded = (torch.cat(engine.old_logprobs(batches)) for engine in (full, half))
    assert rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().mean() < 0.05
    assert not torch.equal(rounded, rounded.bfloat16().float())
    expected, found = capture_gradient(full, batches), capture_gradient(half, batches)
    assert {p.dtype for p in half.model.parameters()} == {torch.float32} == {g.dtype for g in found.values()}
    one, other = (torch.cat([g.flatten() for g in gradient.values()]) for gradient in (expected, found))
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.99


def test_gradient_checkpointing_recomputes_the_layers_without_dropout(make_engine, tmp_path, joint_batch) -> None:
    folder = save_tiny_model("llama", tmp_path, attention_dropout=0.9)
    engine = make_engine(folder=folder, gradient_checkpointing=True)
    counted = [0]
    engine.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: counted.__setitem__(0, counted[0] + 1))
    [batch] = pack(joint_batch, 1000)
    first = engine._loss(batch, tokens_by_objective([batch])).loss
    first.backward()
    assert counted == [2]
    assert engine._loss(batch, tokens_by_objective([batch])).loss.item() == first.item()


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
