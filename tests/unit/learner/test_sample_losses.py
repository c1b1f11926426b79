"""What each sample adds to the loss of a step: whatever the microbatches, the form of the pass and the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from common.messages import OBJECTIVES
from common.settings import Settings
from learner.packing import count_samples, pack
from learner.torch_engine import TorchEngine

SHAPES = [(4, 5, "solve"), (2, 9, "solve"), (7, 1, "pointwise"), (3, 2, "pairwise"), (6, 6, "reflect")] * 2


@pytest.fixture
def samples(make_sample):
    rng = np.random.default_rng(0)
    return [make_sample(rng, prompt=p, tokens=t, objective=o) for p, t, o in SHAPES]


def stepped(tiny_model, samples, *, budget: int = 1000, packing: bool = True, **loss) -> tuple[np.ndarray, float]:
    settings = Settings(
        model={"path": str(tiny_model)},
        learner={"device": "cpu", "packing": packing, "tokens_per_microbatch": budget},
        loss=loss,
    )
    engine = TorchEngine(settings)
    assert engine.sample_losses is None
    batches = pack(samples, budget)
    report = engine.step(batches)
    assert engine.sample_losses is not None
    assert len(engine.sample_losses) == len(samples) == count_samples(batches)
    return engine.sample_losses, report["loss"]


@pytest.mark.parametrize("loss", [{}, {"kind": "cispo"}, {"normalise": "token"}, {"kl_coef": 0.1}], ids=str)
def test_they_sum_to_the_loss_of_the_step(tiny_model, samples, loss) -> None:
    losses, total = stepped(tiny_model, samples, budget=30, **loss)
    assert losses.sum() == pytest.approx(total, rel=1e-5, abs=1e-6)
    assert len(set(losses.round(9))) == len(samples)


@pytest.mark.parametrize("form", [{"budget": 17}, {"budget": 40}, {"budget": 40, "packing": False}], ids=str)
def test_each_is_its_own_however_they_are_packed(tiny_model, samples, form) -> None:
    assert stepped(tiny_model, samples, **form)[0] == pytest.approx(stepped(tiny_model, samples)[0], rel=1e-4, abs=1e-6)


def test_one_of_them_by_hand(tiny_model, samples) -> None:
    """The clipped surrogate of the third sample, which is one verdict token."""
    model, third = AutoModelForCausalLM.from_pretrained(tiny_model), samples[2]
    ids = np.concatenate([third.prompt_token_ids, third.token_ids])
    with torch.no_grad():
        logits = model(torch.from_numpy(ids[None].astype(np.int64))).logits[0, -2].double()
    ratio = float((logits.log_softmax(-1)[int(ids[-1])] - float(third.behaviour_logprobs[0])).exp())
    surrogate = min(ratio * third.advantage, float(np.clip(ratio, 0.8, 1.2)) * third.advantage)
    weights = {"solve": 1.0, "pointwise": 0.25, "pairwise": 0.25, "reflect": 0.5}
    assert set(weights) == set(OBJECTIVES)
    share = weights["pointwise"] / sum(weights.values()) / 2  # of two verdict tokens in the batch
    assert stepped(tiny_model, samples)[0][2] == pytest.approx(-surrogate * share, rel=1e-4)
