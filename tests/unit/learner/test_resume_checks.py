"""A run goes on only with the prompts and the model it was started with; a bad gradient changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import SettingsError
from common.messages import ChatMessage
from common.settings import Learner, Model, Settings
from common.templates import load_templates
from learner.checkpoint import CheckpointStore, State
from learner.identity import identity_of, model_fingerprint
from learner.model import finite_in
from learner.packing import pack
from learner.prompts import Prompt, PromptSource
from learner.start import take_over
from learner.torch_engine import TorchEngine
from learner.uid_ledger import UidLedger

BASE = Path(__file__).resolve().parents[3] / "examples" / "arithmetic" / "base"


def source(questions: list[str], seed: int = 0, shuffle: bool = True) -> PromptSource:
    prompts = [
        Prompt(index=i, question=q, messages=(ChatMessage.user(q),), answer="1", verifier="exact")
        for i, q in enumerate(questions)
    ]
    return PromptSource(prompts, seed=seed, shuffle=shuffle)


def test_fingerprint_changes_with_order_and_content_only() -> None:
    questions = [f"q{i}" for i in range(40)]
    same = source(questions).fingerprint()
    assert same == source(list(questions)).fingerprint()
    others = [
        source([*questions, "more"]),
        source(["other", *questions[1:]]),
        source(questions, seed=1),
        source(questions, shuffle=False),
    ]
    assert same not in [other.fingerprint() for other in others]
    assert len({other.fingerprint() for other in others}) == len(others)


def test_other_prompts_than_those_of_the_checkpoint_are_refused(streams, tmp_path: Path) -> None:
    store, these, templates = CheckpointStore(tmp_path, 2), source(["a", "b"]), load_templates("default")
    taken = take_over(streams, store, these, templates, Settings())
    state = State(
        epoch=1, policy_version=2, cursor=0, endings=(), ended=UidLedger(), identity=identity_of(Settings(), these)
    )
    store.save(state, lambda folder: None)
    with pytest.raises(SettingsError, match="prompts are not those of checkpoint e000001-s00000002"):
        take_over(streams, store, source(["a", "other"]), templates, Settings())
    again = take_over(streams, store, these, templates, Settings())
    assert (again.saved.state, again.fence.generation) == (state, taken.fence.generation)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BASE, tmp_path / "base"))


def swap_heads(folder: Path) -> None:
    """Same shapes, another model."""
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"num_attention_heads": 4', '"num_attention_heads": 2'))


def swap_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")


def swap_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("other")


@pytest.mark.parametrize("swap", [swap_heads, swap_weights, swap_template])
def test_another_model_of_the_same_shapes_is_refused(base: Path, tmp_path: Path, swap: Callable[[Path], None]) -> None:
    store, these = CheckpointStore(tmp_path / "checkpoints", 2), source(["a", "b"])
    now = Settings(model=Model(path=str(base)))
    state = State(epoch=1, policy_version=2, cursor=0, endings=(), ended=UidLedger(), identity=identity_of(now, these))
    store.save(state, lambda folder: None)
    store.check(identity_of(now, these))
    moved = Settings(model=Model(path=str(base.rename(tmp_path / "moved"))))
    store.check(identity_of(moved, these))
    swap(tmp_path / "moved")
    with pytest.raises(SettingsError, match="the model is not the one that checkpoint e000001-s00000002 began with"):
        store.check(identity_of(moved, these))


def test_another_verifier_of_the_same_prompts_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 2)
    state = State(epoch=1, policy_version=2, cursor=0, endings=(), ended=UidLedger())
    store.save(replace(state, identity=identity_of(Settings(), source(["a"]))), lambda folder: None)
    one = source(["a"])[0]
    other = PromptSource([replace(one, verifier="math")], seed=0)
    with pytest.raises(SettingsError, match="their verifiers"):
        store.check(identity_of(Settings(), other))


def test_what_a_hub_model_is_known_by() -> None:
    one, two, other = (Model(path="org/x", revision=r) for r in ("a", "b", "a"))
    assert model_fingerprint(one) == model_fingerprint(other) != model_fingerprint(two)


def engine(**learner: object) -> TorchEngine:
    return TorchEngine(Settings(model=Model(path=str(BASE), dtype="bfloat16"), learner=Learner(**learner)))


def test_the_learner_trains_in_float32_whatever_the_actors_use() -> None:
    assert {parameter.dtype for parameter in engine().model.parameters()} == {torch.float32}


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(make_sample) -> None:
    trained = engine(warmup_steps=0, lr=1e-3)
    before = {name: p.detach().clone() for name, p in trained.model.named_parameters()}
    sample = make_sample(np.random.default_rng(0), prompt=4, tokens=3)
    report = trained.step(pack([replace(sample, advantage=float("inf"))], 1000))
    assert report["skipped"] == 1.0
    assert trained.policy_version == 1
    assert all(torch.equal(before[name], p) for name, p in trained.model.named_parameters())
    assert trained.step(pack([replace(sample, advantage=1.0)], 1000))["skipped"] == 0.0
    assert not all(torch.equal(before[name], p) for name, p in trained.model.named_parameters())


@pytest.mark.parametrize(("lr", "dtype"), [(1e60, "bfloat16"), (1e6, "float16")])
def test_a_step_that_leaves_weights_that_are_not_finite_ends_the_run(make_sample, lr: float, dtype: str) -> None:
    """Its gradient is finite. In float16 the actors would get inf where the learner itself has a million."""
    settings = Settings(model=Model(path=str(BASE), dtype=dtype), learner=Learner(warmup_steps=0, lr=lr))
    batch = pack([make_sample(np.random.default_rng(0), prompt=4, tokens=3)], 1000)
    with pytest.raises(SettingsError, match=rf"after step 1 are not finite in torch.{dtype} .*lower learner.lr"):
        TorchEngine(settings).step(batch)


def test_weights_are_finite_in_the_dtype_that_actors_get() -> None:
    good = [torch.ones(2, 3), torch.tensor([-1e5]), torch.empty(0)]
    assert finite_in(good, torch.float32)
    assert not finite_in(good, torch.float16)
    for odd in ("nan", "inf", "-inf"):
        assert not finite_in([*good, torch.tensor([0.0, float(odd)])], torch.float32)
    assert finite_in([], torch.float32)


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    trained = engine()
    trained.write_checkpoint(tmp_path)
    save_file({"other.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(SettingsError, match="another model"):
        trained.read_checkpoint(tmp_path, 3)
