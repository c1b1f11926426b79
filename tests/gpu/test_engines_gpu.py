"""The engines' contract on a GPU in bf16, in short: tests/contract/test_engines.py has all of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from engine_shelf import KINDS, Kind, Shelf, boundaries, request, run, teacher_forced, tokens
from tiny_models import FAMILIES, Family, tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, which this machine has not"),
]
LONG = tuple(1 + index % 23 for index in range(70))
PROMPTS = [(1, 5, 9), (1,), LONG]
MEAN_TOLERANCE = 0.03
"""Mean error of log-probs in bf16, of 8 significant bits, between two orders of the same sums."""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    shelf = Shelf(tmp_path_factory.mktemp("engines"), dtype="bfloat16", initializer_range=0.05)
    yield shelf
    shelf.close()


def forced(family: Family, seed: int, prompt, completion) -> np.ndarray:
    model = tiny_model(family, seed, initializer_range=0.05).to("cuda", torch.bfloat16)
    return teacher_forced(model, prompt, completion)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_are_those_of_the_version_before_and_after_an_update(shelf: Shelf, kind: Kind, family: Family) -> None:
    engine = shelf.engine(kind, family)
    requests = [request(str(i), prompt, n=8, max_new_tokens=24) for i, prompt in enumerate(PROMPTS)]
    found = run(engine, *requests, before_step={9: lambda: engine.apply(shelf.weights(2, family), 2)})
    errors: dict[int, list[np.ndarray]] = {0: [], 2: []}
    for index, prompt in enumerate(PROMPTS):
        for completion in found[str(index)]:
            for version, first, end in boundaries(completion):
                expected = forced(family, version or 1, prompt, completion)[first:end]
                errors[version].append(np.abs(completion.logprobs[first:end] - expected))
    for of_version in errors.values():
        assert np.concatenate(of_version).size > 30
        assert np.concatenate(of_version).mean() < MEAN_TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kv", ["recompute", "keep"])
def test_spans_change_where_the_weights_did(shelf: Shelf, kind: Kind, kv: str) -> None:
    engine = shelf.engine(kind, kv_on_update=kv)
    found = run(engine, request(n=32), before_step={4: lambda: engine.apply(shelf.weights(2), 3)})["r"]
    for completion in found:
        assert list(completion.spans) == [(v, at) for v, at in ((0, 0), (3, 4)) if at < len(completion.token_ids)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_completion_again(shelf: Shelf, kind: Kind) -> None:
    """Alone. Among others bf16 may round differently on a GPU."""
    first, again = (tokens(run(shelf.engine(kind), request(n=8))["r"]) for _ in range(2))
    assert first == again
    assert len({tuple(ids) for ids in first}) == 8


def test_the_transformers_engine_finds_the_gpu(shelf: Shelf) -> None:
    parameter = next(shelf.engine("transformers").model.parameters())
    assert (parameter.device.type, parameter.dtype) == ("cuda", torch.bfloat16)
