"""Models of several families through both engines: log-probs of the versions that the spans name."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from engine_shelf import KINDS, Kind, Shelf, boundaries, model_of, request, run, teacher_forced
from tiny_models import FAMILIES, Family

PROMPTS = [(1, 5, 9), (1,), tuple(1 + index % 23 for index in range(70))]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    shelf = Shelf(tmp_path_factory.mktemp("engines"))
    yield shelf
    shelf.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_are_those_of_the_version_before_and_after_an_update(shelf: Shelf, kind: Kind, family: Family) -> None:
    """Tied embeddings and a head of its own, norms of queries and keys, windows shorter than the prompt."""
    engine = shelf.engine(kind, family)
    requests = [request(str(i), prompt, n=8, max_new_tokens=24) for i, prompt in enumerate(PROMPTS)]
    found = run(engine, *requests, before_step={9: lambda: engine.apply(shelf.weights(2, family), 2)})
    compared = {0: 0, 2: 0}
    for index, prompt in enumerate(PROMPTS):
        for completion in found[str(index)]:
            for version, first, end in boundaries(completion):
                expected = teacher_forced(model_of(family, version or 1), prompt, completion)[first:end]
                np.testing.assert_allclose(completion.logprobs[first:end], expected, atol=1e-4)
                compared[version] += end - first
    assert min(compared.values()) > 30
