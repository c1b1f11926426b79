"""The self-check: models that packing, chunks or picking tokens would make silently wrong are run another way."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from tiny_models import FAMILIES, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2Config, GptOssConfig

from common.settings import Settings
from learner import head as head_module
from learner import scorer as scorer_module
from learner import self_check
from learner.attention import PACKED, Segments, packed_attention
from learner.head import TargetHead
from learner.layout import packed
from learner.scorer import Scorer
from learner.self_check import Trial, choose_form, random_batch

DEVICE = torch.device("cpu")


def chosen(model, packing=True):
    """The form, and the warnings."""
    with capture_logs() as logs:
        form = choose_form(model, TargetHead(model), packing=packing, half=False)
    return form, [entry for entry in logs if entry["log_level"] == "warning"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_packed_and_in_chunks(family) -> None:
    form, warnings = chosen(model := tiny_model(family))
    assert (form.packs, form.way, warnings) == (True, "chunked", [])
    assert model.config._attn_implementation == PACKED


def test_packing_can_be_switched_off() -> None:
    form, warnings = chosen(model := tiny_model("llama"), packing=False)
    assert (form.packs, form.way, warnings) == (False, "chunked", [])
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("initializer_range", [0.02, 0.2])
@pytest.mark.parametrize("family", FAMILIES)
def test_position_ids_alone_would_be_caught(family, initializer_range, monkeypatch) -> None:
    """The known silent error: with a cache, transformers makes no mask from position ids that start again."""

    def position_ids_alone(batch, device):
        given = packed(batch, device)
        del given.arguments["segments"]
        given.arguments["use_cache"] = True
        return given

    model = tiny_model(family, initializer_range=initializer_range)
    monkeypatch.setattr(self_check, "packed", position_ids_alone)
    monkeypatch.setattr(self_check, "PACKED", "sdpa")
    monkeypatch.setattr(self_check, "_refuse_unseen_attention", lambda *_: None)
    form, [warning] = chosen(model)
    assert not form.packs
    assert warning["event"] == "learner.runs_padded"
    assert all("log-probs differ by" in reason for reason in warning["reasons"])


def test_without_segments_the_attention_refuses(monkeypatch) -> None:
    def forgetful(batch, device):
        given = packed(batch, device)
        del given.arguments["segments"]
        return given

    monkeypatch.setattr(self_check, "packed", forgetful)
    form, [warning] = chosen(tiny_model("llama"))
    assert not form.packs
    assert "does not hand its keyword arguments on" in warning["reasons"][0]


SHAPE = {
    "vocab_size": 24,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def from_config(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()


def test_soft_caps_and_attention_sinks_are_refused_and_run_padded() -> None:
    sinks = GptOssConfig(**SHAPE, num_local_experts=2, num_experts_per_tok=1)
    for config, name in ((Gemma2Config(**SHAPE), "softcap"), (sinks, "s_aux")):
        form, [warning] = chosen(model := from_config(config))
        assert not form.packs
        assert f"its attention asks for {name}" in warning["reasons"][0]
        assert model.config._attn_implementation == "eager"


def test_a_cap_on_the_logits_is_seen_and_the_models_own_logits_are_taken() -> None:
    """Capped after the head: log-probs from the head's weights alone would be others."""
    config = Gemma2Config(**SHAPE, final_logit_softcapping=3.0, attn_logit_softcapping=None)
    form, warnings = chosen(from_config(config))
    assert (form.packs, form.way, warnings) == (True, "selected", [])


class Scaled(nn.Linear):
    def forward(self, hidden):
        return 0.5 * super().forward(hidden)


def test_a_head_of_its_own_is_asked_itself() -> None:
    model = tiny_model("qwen3")
    own = Scaled(64, 24, bias=False)
    own.load_state_dict(model.lm_head.state_dict())
    model.lm_head = own
    assert chosen(model)[0].way == "selected"


def test_a_model_that_never_calls_its_head_gives_all_logits() -> None:
    model = tiny_model("qwen3")
    weight = model.lm_head.weight
    inner = model.model

    def forward(input_ids, **arguments):
        hidden = inner(input_ids=input_ids, **arguments).last_hidden_state
        return type("Output", (), {"logits": hidden @ weight.T})()

    model.forward = forward
    form, warnings = chosen(model)
    assert (form.packs, form.way, warnings) == (True, "all", [])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layer_types": ["full_attention", "linear_attention"]}, "layers of type linear_attention"),
        ({"attention_chunk_size": 16}, "its attention is in chunks"),
        ({"sliding_window": 4096}, "slides a window of 4096, but is not told so"),
    ],
)
def test_what_short_sequences_cannot_show_is_read_from_the_config(changes, reason) -> None:
    model = tiny_model("llama")
    for name, value in changes.items():
        setattr(model.config, name, value)
    form, [warning] = chosen(model)
    assert not form.packs
    assert reason in warning["reasons"][0]


def test_a_model_whose_rows_change_each_other_is_named() -> None:
    model = tiny_model("llama")
    plain = model.model.forward

    def forward(input_ids, **arguments):
        output = plain(input_ids=input_ids, **arguments)
        output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.mean((0, 1)) * len(input_ids)
        return output

    model.model.forward = forward
    form, [warning] = chosen(model)
    assert (form.packs, form.way, warning["event"]) == (False, "all", "learner.rows_depend_on_each_other")


def test_the_check_leaves_random_numbers_alone() -> None:
    model = tiny_model("llama")
    before = torch.random.get_rng_state()
    chosen(model)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_bfloat16_is_tried_as_well_as_float32() -> None:
    trial = Trial(tiny_model("llama"), TargetHead(tiny_model("llama")), half=True)
    exact, rounded = trial._expected[False], trial._expected[True]
    assert 0 < (exact - rounded).abs().max() < 0.2


# -- log-probs and entropy ------------------------------------------------------------------------------------


@pytest.fixture
def bare():
    """A model with a biased head, its batch, and the log-probs [N, V] from its own logits, with the gradient."""
    model = tiny_model("qwen3")
    model.lm_head.bias = nn.Parameter(torch.linspace(-1, 1, 24))
    batch = random_batch(24)
    model.set_attn_implementation(PACKED)
    given = packed(batch, DEVICE)
    logits = model(**given.arguments).logits[0, batch.targets_N - 1]
    return model, given, torch.log_softmax(logits, dim=-1)


def gradient(model, logprobs) -> torch.Tensor:
    model.zero_grad()
    (logprobs * torch.linspace(-1, 2, len(logprobs))).sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("way", ["chunked", "selected", "all"])
def test_log_probs_and_gradients_are_the_same_each_way(bare, way, monkeypatch) -> None:
    model, given, expected_NV = bare
    monkeypatch.setitem(head_module.CHUNK_LOGITS, "cpu", 7 * 24)  # several chunks, the last one shorter
    expected = expected_NV.gather(1, given.target_ids_N[:, None])[:, 0]
    expected_gradient = gradient(model, expected)
    found = TargetHead(model).score(model, given, way).logprobs
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient(model, found), expected_gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("way", ["chunked", "selected"])
def test_the_head_is_float32_under_autocast(bare, way) -> None:
    """Its logits in bfloat16 would make log-probs that are off by hundredths."""
    model, given, _ = bare
    hidden = []
    model.lm_head.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0][0, given.source_N].float()))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = TargetHead(model).score(model, given, way).logprobs
    logits = nn.functional.linear(hidden[0], model.lm_head.weight, model.lm_head.bias)
    expected = torch.log_softmax(logits, dim=-1).gather(1, given.target_ids_N[:, None])[:, 0]
    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("way", ["chunked", "selected"])
@pytest.mark.parametrize(("room", "stride"), [(10_000, 1), (24 * 20, 3), (24, 50), (1, 50)])
def test_the_entropy_is_exact_on_even_strides(bare, way, room, stride, monkeypatch) -> None:
    model, given, expected_NV = bare
    monkeypatch.setitem(head_module.ENTROPY_LOGITS, "cpu", room)
    entropy = TargetHead(model).score(model, given, way).entropy
    assert (~entropy.isnan()).nonzero()[:, 0].tolist() == list(range(0, 50, stride))
    expected = -(expected_NV.exp() * expected_NV).sum(dim=-1)[::stride]
    torch.testing.assert_close(entropy[::stride], expected.detach(), atol=1e-5, rtol=1e-5)
    assert not entropy.requires_grad


def test_outside_scoring_the_head_is_its_own(bare) -> None:
    model, given, _ = bare
    head = TargetHead(model)

    def breaks_down(**arguments):
        model(**arguments)
        raise ValueError("in mid-call")

    head.score(model, given, "chunked")
    with pytest.raises(ValueError, match="in mid-call"):
        head.score(breaks_down, given, "chunked")
    assert model(**given.arguments).logits.shape == (1, sum(self_check.LENGTHS), 24)


def test_few_logits_are_made_at_once_and_many_in_chunks(monkeypatch) -> None:
    scorer = Scorer(tiny_model("llama"), Settings())
    ways = []
    score = scorer._head.score
    monkeypatch.setattr(scorer._head, "score", lambda model, given, way: ways.append(way) or score(model, given, way))
    batch = random_batch(24)
    few = scorer(batch)
    monkeypatch.setitem(scorer_module.PLAIN_LOGITS, "cpu", 24 * 49)
    many = scorer(batch)
    assert ways == ["selected", "chunked"]
    torch.testing.assert_close(few.logprobs, many.logprobs, atol=1e-5, rtol=1e-5)


def test_the_self_check_computes_in_full_float32_whatever_was_switched_on(monkeypatch) -> None:
    """TF32 on a GPU rounds more than the check tolerates."""
    during = []
    monkeypatch.setattr(
        scorer_module,
        "choose_form",
        lambda *a, **k: during.append(torch.get_float32_matmul_precision()) or choose_form(*a, **k),
    )
    torch.set_float32_matmul_precision("high")
    try:
        Scorer(tiny_model("llama"), Settings())
        assert (during, torch.get_float32_matmul_precision()) == (["highest"], "high")
    finally:
        torch.set_float32_matmul_precision("highest")


# -- the attention itself ---------------------------------------------------------------------------------------


def by_hand(query, key, value, starts, scaling, window):
    """Softmax written out, token by token of one segment; [T, H, D]."""
    out = torch.zeros(query.shape[2], query.shape[1], value.shape[3])
    share = query.shape[1] // key.shape[1]
    for begin, end in pairwise(starts):
        for place in range(begin, end):
            first = begin if window is None else max(begin, place - window + 1)
            for h in range(query.shape[1]):
                weights = (key[0, h // share, first : place + 1] @ query[0, h, place] * scaling).softmax(dim=0)
                out[place, h] = weights @ value[0, h // share, first : place + 1]
    return out[None]


@pytest.mark.parametrize("window", [None, 1, 3, 5])
def test_attention_is_that_of_each_segment_alone(window) -> None:
    torch.manual_seed(0)
    starts = np.array([0, 5, 10, 13, 14])
    query, key, value = torch.randn(1, 4, 14, 8), torch.randn(1, 2, 14, 8), torch.randn(1, 2, 14, 8)
    segments = Segments.of(starts, DEVICE)
    assert segments.rows == ((2, 5), (1, 3), (1, 1))
    found, _ = packed_attention(
        nn.Module(), query, key, value, None, scaling=0.3, sliding_window=window, segments=segments
    )
    torch.testing.assert_close(found, by_hand(query, key, value, starts, 0.3, window), atol=1e-5, rtol=1e-5)
    assert segments.windows == {window}


def test_the_kernel_is_told_the_same(monkeypatch) -> None:
    """A stand-in for torch's kernel, which needs a GPU: what it is called with describes the same attention."""
    starts, window = np.array([0, 4, 9, 11]), 3
    query, key, value = torch.randn(1, 4, 11, 8), torch.randn(1, 2, 11, 8), torch.randn(1, 2, 11, 8)

    def kernel(q, k, v, offsets, key_offsets, longest, longest_key, *, scale, window_size, enable_gqa):
        assert offsets.dtype == torch.int32
        assert offsets.tolist() == key_offsets.tolist() == starts.tolist()
        assert (longest, longest_key, enable_gqa, window_size[1]) == (5, 5, True, 0)
        rows = (tensor.transpose(0, 1)[None] for tensor in (q, k, v))
        return by_hand(*rows, offsets.tolist(), scale, window_size[0] + 1)[0]

    monkeypatch.setattr("learner.attention.varlen_attn", kernel)
    monkeypatch.setattr("learner.attention._kernel_takes", lambda *_: True)
    found, _ = packed_attention(
        nn.Module(), query, key, value, None, scaling=0.3, sliding_window=window, segments=Segments.of(starts, DEVICE)
    )
    torch.testing.assert_close(found, by_hand(query, key, value, starts, 0.3, window))
    assert math.prod(found.shape) == 11 * 4 * 8
