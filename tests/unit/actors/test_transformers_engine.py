"""The transformers engine: what it records is what the model says, whatever happens to weights and batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_llama import EOS, VOCABULARY, tiny_llama, tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from actors.engine import Generated, Request
from actors.transformers_engine import TransformersEngine
from common.errors import SettingsError, TaskError, WeightsError
from common.messages import ChatMessage, Completion, Sampling


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer("<bos> {% for m in messages %}{{ m['content'] }} {% endfor %}")


@pytest.fixture
def make_engine(tokenizer) -> Callable[..., TransformersEngine]:
    def make(seed: int = 1, groups_per_batch: int = 16, **options) -> TransformersEngine:
        options = {"max_prompt_tokens": 32, **options}
        engine = TransformersEngine(tiny_llama(seed), tokenizer, groups_per_batch=groups_per_batch, **options)
        engine.policy_version = 0
        return engine

    return make


def weights_of(seed: int, folder: Path) -> list[Path]:
    path = folder / f"{seed}.safetensors"
    save_file({name: p.detach().contiguous() for name, p in tiny_llama(seed).named_parameters()}, path)
    return [path]


def request(key: str = "r", prompt: Sequence[int] = (1, 5, 9), **sampling) -> Request:
    fields = {"n": 4, "max_new_tokens": 12, "seed": 7, **sampling}
    return Request(key=key, prompt_token_ids=np.array(prompt, dtype=np.int32), sampling=Sampling(**fields))


def run(engine: TransformersEngine, *requests: Request, apply: dict[int, tuple[list[Path], int]] | None = None):
    """Completions by key. ``apply``: weights to take before that step."""
    for one in requests:
        engine.add(one)
    found: dict[str, Generated] = {}
    steps = 0
    while engine.groups_in_flight:
        if apply and steps in apply:
            engine.apply(*apply[steps])
        for generated in engine.step():
            assert generated.request.key not in found, "a group came back twice"
            found[generated.request.key] = generated
        steps += 1
        assert steps < 1000
    return {key: generated.completions for key, generated in found.items()}


def tokens(completions: Sequence[Completion]) -> list[list[int]]:
    return [completion.token_ids.tolist() for completion in completions]


@torch.inference_mode()
def teacher_forced(seed: int, prompt: Sequence[int], completion: Completion) -> np.ndarray:
    """Log-probs of a completion's tokens from one forward pass over all of it."""
    ids = torch.tensor([*prompt, *completion.token_ids.tolist()])
    logprobs = torch.log_softmax(tiny_llama(seed)(input_ids=ids[None]).logits[0].float(), dim=-1)
    places = torch.arange(len(prompt), len(ids))
    return logprobs[places - 1, ids[places]].numpy()


PROMPTS = [(1, 5, 9), (1, 4, 4, 8, 20, 3, 17), (1,), (1, 12, 6, 6)]


def test_logprobs_are_those_of_the_model(make_engine) -> None:
    """Through left padding, the shared prompt, the cache, and the removal of finished rows."""
    found = run(make_engine(), *(request(str(i), prompt, max_new_tokens=20) for i, prompt in enumerate(PROMPTS)))
    for index, prompt in enumerate(PROMPTS):
        for completion in found[str(index)]:
            np.testing.assert_allclose(completion.logprobs, teacher_forced(1, prompt, completion), atol=1e-5)


def test_temperature_shapes_the_sampling_and_not_the_logprobs(make_engine) -> None:
    warm, cold = (run(make_engine(), request(n=16, temperature=t))["r"] for t in (1.0, 0.3))
    assert tokens(warm) != tokens(cold)
    for completion in cold:
        np.testing.assert_allclose(completion.logprobs, teacher_forced(1, PROMPTS[0], completion), atol=1e-5)
    mean = [np.concatenate([c.logprobs for c in completions]).mean() for completions in (warm, cold)]
    assert mean[1] > mean[0]


def test_sampling_follows_the_distribution(make_engine) -> None:
    """First tokens of 4000 siblings against the model's probabilities: chi-square with 23 degrees of freedom."""
    completions = run(make_engine(), request(n=4000, max_new_tokens=1))["r"]
    counts = np.bincount([c.token_ids[0] for c in completions], minlength=VOCABULARY)
    with torch.inference_mode():
        expected = torch.softmax(tiny_llama(1)(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1], dim=-1).numpy()
    expected = 4000 * expected.astype(np.float64)
    assert ((counts - expected) ** 2 / np.maximum(expected, 1)).sum() < 60


# -- the same seed, the same completion ---------------------------------------------------------------------


def test_a_completion_does_not_depend_on_its_batch(make_engine) -> None:
    alone = run(make_engine(), request("me"))["me"]
    others = [request(str(i), prompt, seed=i, max_new_tokens=20) for i, prompt in enumerate(PROMPTS)]
    assert tokens(run(make_engine(), *others, request("me"))["me"]) == tokens(alone)
    assert tokens(run(make_engine(groups_per_batch=1), *others, request("me"))["me"]) == tokens(alone)


def test_seeds_and_siblings_differ(make_engine) -> None:
    found = run(make_engine(), request("a", seed=1, n=8), request("b", seed=2, n=8))
    completions = [tuple(t) for t in (*tokens(found["a"]), *tokens(found["b"]))]
    assert len(set(completions)) == 16


def test_more_siblings_do_not_change_the_first(make_engine) -> None:
    assert tokens(run(make_engine(), request(n=8))["r"])[:4] == tokens(run(make_engine(), request(n=4))["r"])


def test_temperature_zero_takes_the_most_likely(make_engine) -> None:
    found = run(make_engine(), request(temperature=0.0, n=3))["r"]
    assert tokens(found)[0] == tokens(found)[1] == tokens(found)[2]
    ids = list(PROMPTS[0])
    for token in tokens(found)[0]:
        with torch.inference_mode():
            assert token == tiny_llama(1)(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item()
        ids.append(token)


# -- groups -------------------------------------------------------------------------------------------------


def test_every_group_comes_back_once_and_whole(make_engine) -> None:
    engine = make_engine(groups_per_batch=3)
    requests = [request(str(i), PROMPTS[i % 4], seed=i, n=1 + i % 3, max_new_tokens=1 + i) for i in range(8)]
    found = run(engine, *requests)
    assert {key: len(completions) for key, completions in found.items()} == {
        one.key: one.sampling.n for one in requests
    }
    assert engine.groups_in_flight == 0
    assert engine.step() == []


def test_groups_in_flight_counts_waiting_and_running(make_engine) -> None:
    engine = make_engine(groups_per_batch=2)
    for index in range(3):
        engine.add(request(str(index), max_new_tokens=1 + 5 * index))
    assert engine.groups_in_flight == 3
    assert [generated.request.key for generated in engine.step()] == ["0"]
    assert engine.groups_in_flight == 2


def test_completions_end_at_the_end_token_or_at_the_limit(make_engine) -> None:
    completions = run(make_engine(), request(n=64, max_new_tokens=20))["r"]
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}
    for completion in completions:
        ids = completion.token_ids.tolist()
        assert EOS not in ids[:-1]
        assert (ids[-1] == EOS) == (completion.finish_reason == "stop")
        assert len(ids) == 20 or completion.finish_reason == "stop"
        assert completion.text == " ".join({1: "", 0: ""}.get(i, f"w{i}") for i in ids if i > 2)


@torch.inference_mode()
def sampled_alone(seed: int, one: Request, sample: int) -> list[int]:
    """The definition: invert the distribution at the sibling's uniforms. No batch, no padding, no cache."""
    model, ids = tiny_llama(seed), one.prompt_token_ids.tolist()
    drawn: list[int] = []
    for uniform in np.random.default_rng((one.sampling.seed, sample)).random(one.sampling.max_new_tokens):
        cdf = (
            torch.softmax(model(input_ids=torch.tensor([ids + drawn])).logits[0, -1].float(), dim=-1).double().cumsum(0)
        )
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
        assert found[sample].token_ids.tolist() == sampled_alone(1, one, sample)


# -- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (request(prompt=[1] * 33), r"33 tokens is over sampling\.max_prompt_tokens=32"),
        (request(prompt=[1] * 30, max_new_tokens=40), "over the model's 64 positions"),
        (request(n=0), "nothing that can be sampled"),
        (request(max_new_tokens=0), "nothing that can be sampled"),
        (request(prompt=[]), "nothing that can be sampled"),
        (request(seed=-1), "nothing that can be sampled"),
    ],
)
def test_what_can_never_be_generated_is_a_task_error(make_engine, bad, match) -> None:
    engine = make_engine()
    with pytest.raises(TaskError, match=match):
        engine.add(bad)
    assert engine.groups_in_flight == 0


def test_a_prompt_that_just_fits_is_taken(make_engine) -> None:
    found = run(make_engine(), request(prompt=[1] * 32, max_new_tokens=32, n=1))
    assert len(found["r"]) == 1


def test_a_model_without_an_end_is_refused(tokenizer) -> None:
    model = tiny_llama(1)
    model.generation_config.eos_token_id = None
    endless = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>")
    with pytest.raises(SettingsError, match="eos_token_id"):
        TransformersEngine(model, endless, groups_per_batch=1, max_prompt_tokens=8)


def test_chats_become_prompts(make_engine) -> None:
    assert make_engine().tokenize([ChatMessage.user("w5 w9")]).tolist() == [1, 5, 9]


# -- new weights in mid-completion --------------------------------------------------------------------------


def boundaries(completion: Completion) -> list[tuple[int, int, int]]:
    """(version, first token, one past the last) of every span."""
    ends = [first for _, first in completion.spans[1:]] + [len(completion.token_ids)]
    return [(version, first, end) for (version, first), end in zip(completion.spans, ends, strict=True)]


@pytest.fixture
def updates(tmp_path):
    """Version 3 (seed 3) after four steps, version 5 (seed 5) after seven: the learner may skip numbers."""
    return {4: (weights_of(3, tmp_path), 3), 7: (weights_of(5, tmp_path), 5)}


@pytest.mark.parametrize("kv", ["recompute", "keep"])
def test_spans_say_exactly_which_version_sampled_what(make_engine, updates, kv) -> None:
    found = run(make_engine(kv_on_update=kv), request(n=32), apply=updates)["r"]
    for completion in found:
        expected = [
            (version, first) for version, first in ((0, 0), (3, 4), (5, 7)) if first < len(completion.token_ids)
        ]
        assert list(completion.spans) == expected
    assert max(len(completion.spans) for completion in found) == 3


def test_recomputed_every_span_has_the_logprobs_of_its_own_weights(make_engine, updates) -> None:
    found = run(make_engine(), *(request(str(i), prompt, n=8) for i, prompt in enumerate(PROMPTS)), apply=updates)
    compared = set()
    for index, prompt in enumerate(PROMPTS):
        for completion in found[str(index)]:
            for version, first, end in boundaries(completion):
                expected = teacher_forced(version or 1, prompt, completion)[first:end]
                np.testing.assert_allclose(completion.logprobs[first:end], expected, atol=1e-5)
                compared.add(version)
    assert compared == {0, 3, 5}


def test_a_kept_cache_is_exact_before_and_stale_after(make_engine, updates) -> None:
    """It mixes keys of old weights with new ones: cheaper, and what was recorded is still what was sampled from."""
    found = run(make_engine(kv_on_update="keep"), request(n=16), apply=updates)["r"]
    differs = 0.0
    for completion in found:
        (_, first, end), *later = boundaries(completion)
        exact = teacher_forced(1, PROMPTS[0], completion)
        np.testing.assert_allclose(completion.logprobs[first:end], exact[first:end], atol=1e-5)
        for version, first, end in later:
            new = teacher_forced(version, PROMPTS[0], completion)
            differs = max(differs, np.abs(completion.logprobs[first:end] - new[first:end]).max())
    assert differs > 1e-2


def test_tokens_sampled_before_an_update_are_those_without_it(make_engine, updates) -> None:
    plain, updated = (run(make_engine(), request(n=16), apply=apply)["r"] for apply in (None, updates))
    assert [ids[:4] for ids in tokens(plain)] == [ids[:4] for ids in tokens(updated)]
    assert tokens(plain) != tokens(updated)


def test_what_is_forgotten_never_comes_and_begins_anew_when_it_is_added_again(make_engine, tmp_path) -> None:
    """A learner that resumed from a checkpoint publishes another line: the actor starts its groups anew."""
    engine, late = make_engine(), request("late", n=8)
    engine.policy_version = 9
    for one in (late, *(request(f"waiting{index}") for index in range(9))):
        engine.add(one)
    for _ in range(3):
        engine.step()
    engine.forget()
    assert engine.groups_in_flight == 0
    assert engine.step() == []
    engine.apply(weights_of(3, tmp_path), 6)
    found = run(engine, late)
    assert {completion.spans for completion in found["late"]} == {((6, 0),)}
    assert tokens(found["late"]) == tokens(run(make_engine(seed=3), late)["late"])


# -- weights that do not fit --------------------------------------------------------------------------------


def misfits(folder: Path) -> dict[str, list[Path]]:
    good = {name: p.detach().contiguous() for name, p in tiny_llama(9).named_parameters()}
    name = "model.layers.1.mlp.up_proj.weight"
    cases = {
        "missing": {key: value for key, value in good.items() if key != name},
        "unknown": good | {"model.extra": torch.zeros(1)},
        "shape": good | {name: torch.zeros(3, 3)},
    }
    paths = {case: folder / f"{case}.safetensors" for case in cases}
    for case, tensors in cases.items():
        save_file(tensors, paths[case])
    torn = folder / "torn.safetensors"
    torn.write_bytes(paths["unknown"].read_bytes()[:1000])
    absent = folder / "absent.safetensors"
    return {case: [path] for case, path in (paths | {"torn": torn, "absent": absent}).items()}


@pytest.mark.parametrize("case", ["missing", "unknown", "shape", "torn", "absent"])
def test_weights_that_do_not_fit_change_nothing(make_engine, tmp_path, case) -> None:
    engine = make_engine()
    with pytest.raises(WeightsError, match="version 4"):
        engine.apply(misfits(tmp_path)[case], 4)
    assert engine.policy_version == 0
    expected = dict(tiny_llama(1).named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in engine.model.named_parameters())


def test_weights_that_do_not_fit_leave_running_completions_alone(make_engine, tmp_path) -> None:
    engine, bad = make_engine(), misfits(tmp_path)["shape"]
    engine.add(request())
    engine.step()
    with pytest.raises(WeightsError):
        engine.apply(bad, 4)
    found = run(engine)["r"]
    assert tokens(found) == tokens(run(make_engine(), request())["r"])
    assert {completion.spans for completion in found} == {((0, 0),)}


def test_weights_in_several_files_are_one_set(make_engine, tmp_path) -> None:
    parts: list[dict[str, torch.Tensor]] = [{}, {}]
    for index, (name, p) in enumerate(tiny_llama(3).named_parameters()):
        parts[index % 2][name] = p.detach().contiguous()
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for part, path in zip(parts, paths, strict=True):
        save_file(part, path)
    engine = make_engine()
    engine.apply(paths, 1)
    assert tokens(run(engine, request())["r"]) == tokens(run(make_engine(seed=3), request())["r"])
