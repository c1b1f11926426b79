"""What every engine does, whatever happens to weights and batches: the actor's contract with it.

vLLM runs in its CPU build; where that is not installed its half is skipped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_shelf import (
    KINDS,
    MAX_PROMPT_TOKENS,
    Kind,
    Shelf,
    boundaries,
    model_of,
    needs_vllm,
    request,
    run,
    teacher_forced,
    tokens,
)
from safetensors.torch import save_file
from tiny_llama import EOS, VOCABULARY
from tiny_models import POSITIONS

from actors.engine import Engine
from actors.policy import RETRY_S, PolicyFollower
from actors.weight_files import named_tensors
from common.codec import encode
from common.errors import TaskError, WeightsError
from common.messages import ChatMessage, WeightManifest
from common.weights import WeightStore

TOLERANCE = 1e-4
PROMPTS = [(1, 5, 9), (1, 4, 4, 8, 20, 3, 17), (1,), (1, 12, 6, 6)]
LONG = tuple(1 + index % 23 for index in range(70))
"""More than two blocks of vLLM's prefix cache."""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    shelf = Shelf(tmp_path_factory.mktemp("engines"))
    yield shelf
    shelf.close()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
def make(shelf: Shelf, kind: Kind) -> Callable[..., Engine]:
    """An engine with version 0, the weights of seed 1. The vLLM engine is one and the same, so: one at a time."""
    return lambda **options: shelf.engine(kind, **options)


@pytest.fixture
def engine(make: Callable[..., Engine]) -> Engine:
    return make()


def forced(seed: int, prompt, completion) -> np.ndarray:
    return teacher_forced(model_of("llama", seed), prompt, completion)


# -- what is sampled, and what is recorded of it --------------------------------------------------------------


def test_logprobs_are_those_of_the_model(engine) -> None:
    """Of prompts and completions of all lengths at once."""
    prompts = [*PROMPTS, LONG]
    found = run(engine, *(request(str(i), prompt, max_new_tokens=5 + 15 * i) for i, prompt in enumerate(prompts)))
    for index, prompt in enumerate(prompts):
        for completion in found[str(index)]:
            assert completion.logprobs.dtype == np.float32
            assert completion.spans == ((0, 0),)
            np.testing.assert_allclose(completion.logprobs, forced(1, prompt, completion), atol=TOLERANCE)


def test_temperature_shapes_the_sampling_and_not_the_logprobs(make) -> None:
    warm, cold = (run(make(), request(n=16, temperature=t))["r"] for t in (1.0, 0.3))
    assert tokens(warm) != tokens(cold)
    for completion in cold:
        np.testing.assert_allclose(completion.logprobs, forced(1, PROMPTS[0], completion), atol=TOLERANCE)
    mean = [np.concatenate([c.logprobs for c in completions]).mean() for completions in (warm, cold)]
    assert mean[1] > mean[0]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sampling_follows_the_distribution(engine, temperature) -> None:
    """First tokens of 4000 siblings against the model's probabilities: chi-square with 23 degrees of freedom."""
    completions = run(engine, request(n=4000, max_new_tokens=1, temperature=temperature))["r"]
    counts = np.bincount([c.token_ids[0] for c in completions], minlength=VOCABULARY)
    with torch.inference_mode():
        logits = model_of("llama", 1)(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1]
    expected = 4000 * torch.softmax(logits / temperature, dim=-1).numpy().astype(np.float64)
    assert ((counts - expected) ** 2 / np.maximum(expected, 1)).sum() < 60


def test_temperature_zero_takes_the_most_likely(engine) -> None:
    found = tokens(run(engine, request(temperature=0.0, n=3))["r"])
    assert found[0] == found[1] == found[2]
    ids = list(PROMPTS[0])
    for token in found[0]:
        with torch.inference_mode():
            assert token == model_of("llama", 1)(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item()
        ids.append(token)


def test_completions_end_at_the_end_token_or_at_the_limit(engine) -> None:
    completions = run(engine, request(n=64, max_new_tokens=20))["r"]
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}
    for completion in completions:
        ids = completion.token_ids.tolist()
        assert EOS not in ids[:-1]
        assert (ids[-1] == EOS) == (completion.finish_reason == "stop")
        assert len(ids) == 20 or completion.finish_reason == "stop"
        assert completion.text == " ".join(f"w{i}" for i in ids if i > 2)


def test_chats_become_prompts(engine) -> None:
    assert engine.tokenize([ChatMessage.user("w5 w9")]).tolist() == [1, 5, 9]


# -- the same seed, the same completion ---------------------------------------------------------------------


def test_a_completion_does_not_depend_on_what_else_is_in_flight(make) -> None:
    alone = run(make(), request("me"))["me"]
    others = [request(str(i), prompt, seed=i, max_new_tokens=20) for i, prompt in enumerate(PROMPTS)]
    assert tokens(run(make(), *others, request("me"))["me"]) == tokens(alone)
    late = make()
    for other in others:
        late.add(other)
    late.step()
    assert tokens(run(late, request("me"))["me"]) == tokens(alone)


def test_seeds_and_siblings_differ(engine) -> None:
    """Also where the seeds of two tasks are neighbours."""
    found = run(engine, request("a", seed=1, n=8), request("b", seed=2, n=8))
    assert len({tuple(t) for t in (*tokens(found["a"]), *tokens(found["b"]))}) == 16


def test_more_siblings_do_not_change_the_first(make) -> None:
    assert tokens(run(make(), request(n=8))["r"])[:4] == tokens(run(make(), request(n=4))["r"])


# -- groups -------------------------------------------------------------------------------------------------


def test_every_group_comes_back_once_and_whole(engine) -> None:
    requests = [request(str(i), PROMPTS[i % 4], seed=i, n=1 + i % 3, max_new_tokens=1 + i) for i in range(40)]
    found = run(engine, *requests)
    assert {key: len(completions) for key, completions in found.items()} == {
        one.key: one.sampling.n for one in requests
    }
    assert engine.groups_in_flight == 0
    assert engine.step() == []


def test_more_than_there_is_memory_for_comes_back_right(engine) -> None:
    """4 x 40 completions of 60 to 170 tokens: vLLM puts some off in the middle and computes them again."""
    prompts = [(*LONG, 3 + i) for i in range(4)]
    found = run(
        engine, *(request(str(i), prompt, n=40, max_new_tokens=100, seed=i) for i, prompt in enumerate(prompts))
    )
    for index, prompt in enumerate(prompts):
        for completion in found[str(index)][::9]:
            np.testing.assert_allclose(completion.logprobs, forced(1, prompt, completion), atol=TOLERANCE)


def test_groups_in_flight_are_those_that_have_not_come_back(engine) -> None:
    for index, length in enumerate((1, 6)):
        engine.add(request(str(index), max_new_tokens=length, temperature=0.0))
    assert engine.groups_in_flight == 2
    assert [generated.request.key for generated in engine.step()] == ["0"]
    assert engine.groups_in_flight == 1


def test_what_is_forgotten_never_comes_and_begins_anew_when_it_is_added_again(make, shelf) -> None:
    """A learner that resumed from a checkpoint publishes another line: the actor starts its groups anew."""
    engine, late = make(), request("late", LONG, n=8)
    engine.policy_version = 9
    for one in (late, *(request(f"waiting{index}") for index in range(40))):
        engine.add(one)
    for _ in range(3):
        engine.step()
    engine.forget()
    assert engine.groups_in_flight == 0
    assert engine.step() == []
    engine.apply(shelf.weights(3), 6)
    found = run(engine, late)
    assert {completion.spans for completion in found["late"]} == {((6, 0),)}
    assert tokens(found["late"]) == tokens(run(make(seed=3), late)["late"])


# -- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (request(prompt=[1] * 401), r"401 tokens is over sampling\.max_prompt_tokens=400"),
        (request(prompt=[1] * 300, max_new_tokens=213), "over the model's 512 positions"),
        (request(n=0), "nothing that can be sampled"),
        (request(max_new_tokens=0), "nothing that can be sampled"),
        (request(prompt=[]), "nothing that can be sampled"),
        (request(seed=-1), "nothing that can be sampled"),
    ],
)
def test_what_can_never_be_generated_is_a_task_error(engine, bad, match) -> None:
    with pytest.raises(TaskError, match=match):
        engine.add(bad)
    assert engine.groups_in_flight == 0


def test_a_prompt_that_just_fits_is_taken(engine) -> None:
    fits = request(prompt=[1] * MAX_PROMPT_TOKENS, max_new_tokens=POSITIONS - MAX_PROMPT_TOKENS, n=2, seed=3)
    for completion in run(engine, fits)["r"]:
        expected = forced(1, fits.prompt_token_ids.tolist(), completion)
        np.testing.assert_allclose(completion.logprobs, expected, atol=TOLERANCE)


# -- new weights in mid-completion --------------------------------------------------------------------------


@pytest.fixture
def updates(shelf: Shelf):
    """Version 3 (seed 3) after four steps, version 5 (seed 5) after seven: the learner may skip numbers."""

    def of(engine: Engine):
        return {
            4: lambda: engine.apply(shelf.weights(3), 3),
            7: lambda: engine.apply(shelf.weights(5), 5),
        }

    return of


@pytest.fixture(params=["reported", "counted"])
def spans_from(request: pytest.FixtureRequest, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM says itself which weights sampled what; older versions do not."""
    if request.param == "counted":
        if kind != "vllm":
            pytest.skip("only vLLM has two ways to know its spans")
        monkeypatch.setattr("actors.vllm_engine.REPORTS_SPANS", False)


@pytest.mark.usefixtures("spans_from")
@pytest.mark.parametrize("kv", ["recompute", "keep"])
def test_spans_say_exactly_which_version_sampled_what(make, updates, kv) -> None:
    engine = make(kv_on_update=kv)
    found = run(engine, request(n=32), before_step=updates(engine))["r"]
    for completion in found:
        expected = [(version, at) for version, at in ((0, 0), (3, 4), (5, 7)) if at < len(completion.token_ids)]
        assert list(completion.spans) == expected
    assert max(len(completion.spans) for completion in found) == 3


@pytest.mark.usefixtures("spans_from")
def test_recomputed_every_span_has_the_logprobs_of_its_own_weights(make, updates) -> None:
    """Three versions in one sequence; prompts that together are longer than what vLLM computes in one step."""
    engine = make()
    prompts = [*PROMPTS, *((3 + index, *LONG, *LONG, *LONG) for index in range(12))]
    requests = [request(str(i), prompt, n=4, max_new_tokens=30) for i, prompt in enumerate(prompts)]
    found = run(engine, *requests, before_step=updates(engine))
    compared = {0: 0, 3: 0, 5: 0}
    for index, prompt in enumerate(prompts):
        for completion in found[str(index)]:
            for version, first, end in boundaries(completion):
                expected = forced(version or 1, prompt, completion)[first:end]
                np.testing.assert_allclose(completion.logprobs[first:end], expected, atol=TOLERANCE)
                compared[version] += end - first
    assert min(compared.values()) > 50


def test_a_kept_cache_is_exact_before_and_stale_after(make, updates) -> None:
    """It mixes keys of old weights with new ones: cheaper, and what was recorded is still what was sampled from."""
    engine = make(kv_on_update="keep")
    found = run(engine, request(n=16), before_step=updates(engine))["r"]
    differs = 0.0
    for completion in found:
        (_, first, end), *later = boundaries(completion)
        exact = forced(1, PROMPTS[0], completion)
        np.testing.assert_allclose(completion.logprobs[first:end], exact[first:end], atol=TOLERANCE)
        for version, first, end in later:
            new = forced(version, PROMPTS[0], completion)
            differs = max(differs, np.abs(completion.logprobs[first:end] - new[first:end]).max())
    assert differs > 1e-2


@pytest.mark.parametrize("kv", ["recompute", "keep"])
def test_a_prompt_is_never_taken_from_the_cache_of_other_weights(make, shelf, kv) -> None:
    """The same prompt before an update, waiting during it, and after it; versions that come again in another line."""
    engine = make(kv_on_update=kv)
    run(engine, request("before", LONG))
    engine.add(request("waiting", LONG))
    engine.apply(shelf.weights(3), 1)
    found = run(engine, request("after", LONG))
    engine.apply(shelf.weights(5), 1)
    found |= run(engine, request("again", LONG))
    for key, seed in (("waiting", 3), ("after", 3), ("again", 5)):
        for completion in found[key]:
            assert completion.spans == ((1, 0),)
            np.testing.assert_allclose(completion.logprobs, forced(seed, LONG, completion), atol=TOLERANCE)


def test_tokens_sampled_before_an_update_are_those_without_it(make, updates) -> None:
    plain = run(make(), request(n=16))["r"]
    engine = make()
    updated = run(engine, request(n=16), before_step=updates(engine))["r"]
    assert [ids[:4] for ids in tokens(plain)] == [ids[:4] for ids in tokens(updated)]
    assert tokens(plain) != tokens(updated)


def test_weights_in_several_files_are_one_set(make, tmp_path) -> None:
    parts: list[dict[str, torch.Tensor]] = [{}, {}]
    for index, (name, p) in enumerate(model_of("llama", 3).named_parameters()):
        parts[index % 2][name] = p.detach().contiguous()
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for part, path in zip(parts, paths, strict=True):
        save_file(part, path)
    engine = make()
    engine.apply(paths, 1)
    assert tokens(run(engine, request())["r"]) == tokens(run(make(seed=3), request())["r"])


# -- weights that do not fit, or break off ------------------------------------------------------------------


def misfits(folder: Path) -> dict[str, list[Path]]:
    good = {name: p.detach().contiguous() for name, p in model_of("llama", 9).named_parameters()}
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
    torn.write_bytes(paths["unknown"].read_bytes()[:5000])
    single = {case: [path] for case, path in (paths | {"torn": torn, "absent": folder / "absent"}).items()}
    return single | {"twice": [paths["missing"], paths["missing"]]}


@pytest.mark.parametrize("case", ["missing", "unknown", "shape", "torn", "absent", "twice"])
def test_weights_that_do_not_fit_change_nothing(make, tmp_path, case) -> None:
    """Neither what is running nor what comes after it."""
    expected = tokens(run(make(), request())["r"])
    engine = make()
    engine.add(request())
    engine.step()
    with pytest.raises(WeightsError, match="version 4"):
        engine.apply(misfits(tmp_path)[case], 4)
    assert engine.policy_version == 0
    found = run(engine, request("next"))
    assert tokens(found["r"]) == tokens(found["next"]) == expected
    assert {completion.spans for completion in (*found["r"], *found["next"])} == {((0, 0),)}


def breaking_after(count: int):
    """A reader of files that cannot read the tensor after ``count`` others."""

    def read(files):
        for index, (name, tensor) in enumerate(named_tensors(files)):
            if index == count:
                raise OSError("planted: the disk is gone")
            yield name, tensor

    return read


@pytest.fixture
def break_reading(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Let reading break off after so many tensors; None: let it work again."""

    def plan(count: int | None) -> None:
        monkeypatch.undo()
        if count is not None:
            where = "actors.vllm_worker" if kind == "vllm" else "actors.transformers_engine"
            monkeypatch.setattr(f"{where}.named_tensors", breaking_after(count))

    return plan


@pytest.mark.parametrize("count", [0, 1, 7, 19])
def test_an_update_that_breaks_off_stops_the_engine_until_one_succeeds(make, shelf, break_reading, count) -> None:
    """At the first tensor, in the middle of a layer, at the last; and again before it works."""
    engine = make()
    engine.add(request(n=16))
    for _ in range(3):
        engine.step()
    break_reading(count)
    for attempt in range(2):
        with pytest.raises(WeightsError, match=r"version 3 broke off half-way: .*planted"):
            engine.apply(shelf.weights(3), 3)
        assert engine.policy_version == -1
        assert engine.step() == []
        assert engine.groups_in_flight == 1, attempt
    break_reading(None)
    engine.apply(shelf.weights(5), 5)
    found = run(engine, request("next", LONG))
    compared = 0
    for key, prompt in (("r", PROMPTS[0]), ("next", LONG)):
        for completion in found[key]:
            for version, first, end in boundaries(completion):
                expected = forced(version or 1, prompt, completion)[first:end]
                np.testing.assert_allclose(completion.logprobs[first:end], expected, atol=TOLERANCE)
                compared += version == 5
    assert compared > 8
    assert {completion.spans[0] for completion in found["r"]} == {(0, 0)}


class Announced:
    """The weights stream, as far as the policy follower looks at it."""

    def __init__(self, manifest: WeightManifest) -> None:
        self._payload = encode(manifest)

    def newest_weights(self) -> list[bytes]:
        return [self._payload]


def test_the_actor_waits_for_an_engine_that_broke_off_and_tries_again(make, shelf, break_reading, tmp_path) -> None:
    def write(folder: Path) -> None:
        shutil.copy(shelf.weights(3)[0], folder / "model.safetensors")

    engine, now = make(), [0.0]
    streams = Announced(WeightStore(tmp_path).publish(1, 7, 6, write))
    policy = PolicyFollower(streams, engine, max_staleness=1, clock=lambda: now[0])
    break_reading(5)
    for failures in (1, 2):
        policy.follow(now=True)
        assert (policy.failures, policy.may_generate) == (failures, False)
        now[0] += RETRY_S
    break_reading(None)
    policy.follow(now=True)
    assert (engine.policy_version, policy.may_generate, policy.trouble) == (7, True, "")
    for completion in run(engine, request())["r"]:
        np.testing.assert_allclose(completion.logprobs, forced(3, PROMPTS[0], completion), atol=TOLERANCE)


@needs_vllm
def test_vllm_is_given_only_what_it_has_slots_for(shelf) -> None:
    """An update takes back what has no token yet; the queue behind the slots is ours, and stays as it is."""
    engine = shelf.engine("vllm", kv_on_update="keep")
    slots = engine._slots
    requests = [request(str(index), n=32, max_new_tokens=6, seed=index) for index in range(slots // 32 + 3)]
    most: list[int] = []

    def look() -> None:
        most.append(engine._llm.get_num_unfinished_requests())
        if len(most) == 3:
            engine.apply(shelf.weights(2), 1)

    found = run(engine, *requests, before_step=dict.fromkeys(range(1, 12), look))
    assert max(most) <= slots
    assert len(most) > 3
    assert {key: len(completions) for key, completions in found.items()} == {one.key: 32 for one in requests}
    versions = {version for group in found.values() for completion in group for version, _ in completion.spans}
    assert versions == {0, 1}


@needs_vllm
def test_vllm_recovers_from_a_failure_while_it_finishes(shelf, monkeypatch) -> None:
    """After that its worker believes that the update goes on."""
    engine = shelf.engine("vllm")

    def fail(*_):
        raise RuntimeError("planted: out of memory")

    monkeypatch.setattr("actors.vllm_worker.finalize_layerwise_reload", fail)
    with pytest.raises(WeightsError, match="out of memory"):
        engine.apply(shelf.weights(3), 3)
    assert engine.policy_version == -1
    monkeypatch.undo()
    engine.apply(shelf.weights(5), 5)
    for completion in run(engine, request(n=8))["r"]:
        np.testing.assert_allclose(completion.logprobs, forced(5, PROMPTS[0], completion), atol=TOLERANCE)
