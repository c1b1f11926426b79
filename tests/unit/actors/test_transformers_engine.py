"""What is particular to the transformers engine: static batches, and a sampling rule that is defined exactly.

What it has in common with every engine: tests/contract/test_engines.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from engine_shelf import request, run, tokens
from tiny_llama import EOS, tiny_llama, tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from actors.engine import Request
from actors.transformers_engine import TransformersEngine, device_of
from common.errors import SettingsError

PROMPTS = [(1, 5, 9), (1, 4, 4, 8, 20, 3, 17), (1,), (1, 12, 6, 6)]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer("<bos> {% for m in messages %}{{ m['content'] }} {% endfor %}")


@pytest.fixture
def make_engine(tokenizer) -> Callable[..., TransformersEngine]:
    def make(groups_per_batch: int = 16) -> TransformersEngine:
        engine = TransformersEngine(tiny_llama(1), tokenizer, groups_per_batch=groups_per_batch, max_prompt_tokens=32)
        engine.policy_version = 0
        return engine

    return make


@torch.inference_mode()
def sampled_alone(one: Request, sample: int) -> list[int]:
    """The definition: invert the distribution at the sibling's uniforms. No batch, no padding, no cache."""
    model, ids = tiny_llama(1), one.prompt_token_ids.tolist()
    drawn: list[int] = []
    for uniform in np.random.default_rng((one.sampling.seed, sample)).random(one.sampling.max_new_tokens):
        logits = model(input_ids=torch.tensor([ids + drawn])).logits[0, -1].float()
        cdf = torch.softmax(logits, dim=-1).double().cumsum(0)
        drawn.append(int((cdf <= uniform * cdf[-1]).sum()))
        if drawn[-1] == EOS:
            break
    return drawn


def test_finished_rows_leave_without_a_trace(make_engine) -> None:
    """Rows are dropped when half of them have finished; the others must not notice."""
    one, engine = request(n=64, max_new_tokens=24), make_engine()
    rows: list[int] = []
    forward = engine.model.forward

    def watched(**inputs):
        rows.append(len(inputs["input_ids"]))
        return forward(**inputs)

    engine.model.forward = watched
    found = run(engine, one)["r"]
    assert rows[0] == 1  # the shared prompt
    assert rows[1] == 64
    assert rows[-1] <= 32
    longest = sorted(range(64), key=lambda sample: -len(found[sample].token_ids))[:6]
    for sample in (*longest, 0):
        assert found[sample].token_ids.tolist() == sampled_alone(one, sample)


def test_a_completion_does_not_depend_on_the_size_of_its_batch(make_engine) -> None:
    others = [request(str(i), prompt, seed=i, max_new_tokens=20) for i, prompt in enumerate(PROMPTS)]
    alone = tokens(run(make_engine(), request("me"))["me"])
    for size in (1, 3):
        assert tokens(run(make_engine(groups_per_batch=size), *others, request("me"))["me"]) == alone


def test_groups_in_flight_counts_waiting_and_running(make_engine) -> None:
    engine = make_engine(groups_per_batch=2)
    for index in range(3):
        engine.add(request(str(index), max_new_tokens=1 + 5 * index))
    assert engine.groups_in_flight == 3
    assert [generated.request.key for generated in engine.step()] == ["0"]
    assert engine.groups_in_flight == 2


def test_a_model_without_an_end_is_refused(tokenizer) -> None:
    model = tiny_llama(1)
    model.generation_config.eos_token_id = None
    endless = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>")
    with pytest.raises(SettingsError, match="eos_token_id"):
        TransformersEngine(model, endless, groups_per_batch=1, max_prompt_tokens=8)


def test_a_gpu_that_is_not_there_is_refused_and_never_chosen(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto").type == device_of("cpu").type == "cpu"
    with pytest.raises(SettingsError, match=r"actor\.device='cuda'"):
        device_of("cuda")
