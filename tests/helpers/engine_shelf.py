"""Both inference engines, as new, over tiny random models; and what their tests compare them with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import Family, save_tiny_model, tiny_model

from actors.engine import Engine, Generated, Request
from actors.engines import close_engine, open_engine
from common.messages import Completion, Sampling
from common.settings import Settings

Kind = Literal["transformers", "vllm"]
needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make setup-engines")
KINDS = ["transformers", pytest.param("vllm", marks=needs_vllm)]
MAX_PROMPT_TOKENS = 400
KV_CACHE_GIB = 0.005
"""5,000 tokens of the tiny models: large tests fill it, so that vLLM puts completions off and computes them again."""
GPU_SHARE = 0.1
"""Of its memory, for each of the engines that tests open one after another in one process."""

model_of = lru_cache(maxsize=16)(tiny_model)


class Shelf:
    """Gives out engines with the weights of ``tiny_model(family, seed)`` as version 0 and nothing in flight.

    There can be only one vLLM engine in a process, and it takes seconds to start: it is kept while one family is asked
    for.
    """

    def __init__(self, folder: Path, *, dtype: str = "float32", **changes: Any) -> None:
        """``changes``: to the config of the models."""
        self._folder = folder
        self._dtype = dtype
        self._changes = changes
        self._vllm: tuple[Family, Any] | None = None

    def engine(self, kind: Kind, family: Family = "llama", seed: int = 1, kv_on_update: str = "recompute") -> Engine:
        engine: Any
        if kind == "transformers":
            engine = open_engine(self.settings(kind, family, kv_on_update))
        else:
            engine = self._kept(family)
            engine.forget()
            engine.kv_on_update = kv_on_update
        engine.apply(self.weights(seed, family), 0)
        return engine

    def weights(self, seed: int, family: Family = "llama") -> list[Path]:
        """As a learner publishes them: tied tensors once."""
        path = self._folder / f"{family}-{seed}.safetensors"
        if not path.exists():
            model = tiny_model(family, seed, **self._changes).to(getattr(torch, self._dtype))
            save_file({name: p.detach().contiguous() for name, p in model.named_parameters()}, path)
        return [path]

    def settings(self, kind: Kind, family: Family, kv_on_update: str = "recompute") -> Settings:
        folder = self._folder / family
        if not folder.exists():
            save_tiny_model(family, folder, seed=0, **self._changes)
        return Settings(
            model={"path": str(folder), "dtype": self._dtype},
            actor={"engine": kind, "kv_on_update": kv_on_update},
            sampling={"max_prompt_tokens": MAX_PROMPT_TOKENS},
            vllm={"kv_cache_gib": KV_CACHE_GIB, "max_num_seqs": 64, "gpu_memory_utilization": GPU_SHARE},
        )

    def close(self) -> None:
        if self._vllm is not None:
            close_engine(self._vllm[1])
            self._vllm = None

    def _kept(self, family: Family) -> Any:
        if self._vllm is None or self._vllm[0] != family:
            self.close()
            self._vllm = family, open_engine(self.settings("vllm", family))
        return self._vllm[1]


def request(key: str = "r", prompt: Sequence[int] = (1, 5, 9), **sampling: Any) -> Request:
    fields = {"n": 4, "max_new_tokens": 12, "seed": 7, **sampling}
    return Request(key=key, prompt_token_ids=np.array(prompt, dtype=np.int32), sampling=Sampling(**fields))


def run(engine: Engine, *requests: Request, before_step: dict[int, Callable[[], None]] | None = None):
    """Completions by key. ``before_step``: what to do before that step."""
    for one in requests:
        engine.add(one)
    found: dict[str, Generated] = {}
    steps = 0
    while engine.groups_in_flight:
        if before_step and steps in before_step:
            before_step[steps]()
        for generated in engine.step():
            assert generated.request.key not in found, "a group came back twice"
            found[generated.request.key] = generated
        steps += 1
        assert steps < 2000
    return {key: generated.completions for key, generated in found.items()}


def tokens(completions: Sequence[Completion]) -> list[list[int]]:
    return [completion.token_ids.tolist() for completion in completions]


@torch.inference_mode()
def teacher_forced(model: Any, prompt: Sequence[int], completion: Completion) -> np.ndarray:
    """Log-probs of a completion's tokens from one forward pass over all of it."""
    ids = torch.tensor([*prompt, *completion.token_ids.tolist()], device=model.device)
    logprobs = torch.log_softmax(model(input_ids=ids[None]).logits[0].float(), dim=-1)
    places = torch.arange(len(prompt), len(ids), device=model.device)
    return logprobs[places - 1, ids[places]].cpu().numpy()


def boundaries(completion: Completion) -> list[tuple[int, int, int]]:
    """(version, first token, one past the last) of every span."""
    ends = [first for _, first in completion.spans[1:]] + [len(completion.token_ids)]
    return [(version, first, end) for (version, first), end in zip(completion.spans, ends, strict=True)]
