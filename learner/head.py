"""Log-probs of the completion tokens: only their places go through the output head, and large logits in chunks.

The head's ``forward`` is replaced on the instance, so that whatever wraps the model (DeepSpeed's hooks on its modules,
PEFT) is passed through as ever. Outside ``TargetHead.score`` the head does what it always did.

Shape letters: N completion tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from learner.layout import ModelInput

CHUNK_LOGITS: Final = {"cpu": 2**23, "cuda": 2**27}
"""Logits of one chunk: 32 MB on a CPU; on a GPU enough rows to keep it busy."""
ENTROPY_LOGITS: Final = {"cpu": 2**20, "cuda": 2**26}
"""The entropy is taken of as many tokens, evenly strided, as have this many logits together."""

Way = Literal["chunked", "selected", "all"]
"""``chunked``: of a plain linear head, never all logits at once, by ``F.linear_cross_entropy``.
``selected``: the model's own logits, of the completion tokens. ``all``: of every token."""


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Of the completion tokens of a microbatch, [N], in float32 whatever the precision of the forward pass."""

    logprobs: Tensor
    entropy: Tensor
    """Exact, without a gradient; NaN for tokens left out."""


class TargetHead:
    """The output head of one model. ``ways``: what may be tried, the cheapest first."""

    def __init__(self, model: Any) -> None:
        self.ways: tuple[Way, ...] = ("all",)
        self._given: ModelInput | None = None
        self._way: Way = "all"
        self._entropy: Tensor | None = None
        head = model.get_output_embeddings()
        if isinstance(head, nn.Module):
            self._head = head
            self._plain: Callable[[Tensor], Tensor] = head.forward
            head.forward = self._forward
            chunks = type(head) is nn.Linear and hasattr(F, "linear_cross_entropy")  # from torch 2.13 on
            self.ways = ("chunked", "selected", "all") if chunks else ("selected", "all")

    def score(self, model: Any, given: ModelInput, way: Way) -> Scores:
        """Run ``model``, the head's own or a wrapper of it. The log-probs carry the gradient."""
        self._given, self._way, self._entropy = given, way, None
        try:
            out = model(**given.arguments).logits
        finally:
            self._given = None
        if way == "chunked":
            if self._entropy is None:
                raise RuntimeError(f"{type(model).__name__} does not call its output head")
            return Scores(out.flatten(), self._entropy)
        logits_NV = out.flatten(0, 1) if way == "selected" else out.flatten(0, 1).index_select(0, given.source_N)
        logprobs_NV = torch.log_softmax(logits_NV.float(), dim=-1)
        logprobs_N = logprobs_NV.gather(1, given.target_ids_N[:, None])[:, 0]
        return Scores(logprobs_N, _entropy(logprobs_NV, lambda rows_KV: rows_KV, logprobs_NV.shape[1]))

    def _forward(self, hidden: Tensor) -> Tensor:
        """In place of the head's own: logits [1, N, V], or log-probs [1, N, 1] that pass for the logits."""
        given = self._given
        if given is None or self._way == "all":
            return self._plain(hidden)
        hidden_NH = hidden.flatten(0, 1).index_select(0, given.source_N)
        with torch.autocast(hidden.device.type, enabled=False):  # 16 bits are too few for what a softmax is taken of
            if type(self._head) is not nn.Linear:
                return self._plain(hidden_NH.float())[None]
            weight, bias = self._head.weight.float(), self._head.bias
            if self._way == "selected":
                return F.linear(hidden_NH.float(), weight, bias)[None]
            return self._chunked(hidden_NH.float(), weight, bias, given.target_ids_N)[None, :, None]

    def _chunked(self, hidden_NH: Tensor, weight: Tensor, bias: Tensor | None, ids_N: Tensor) -> Tensor:
        rows = max(1, CHUNK_LOGITS[hidden_NH.device.type] // len(weight))
        nll = F.linear_cross_entropy(
            hidden_NH,
            weight,
            ids_N,
            linear_bias=bias,
            reduction="none",
            options=nn.LinearCrossEntropyOptions(batch_chunk_size=rows),
        )
        self._entropy = _entropy(
            hidden_NH, lambda rows_KH: torch.log_softmax(F.linear(rows_KH, weight, bias), dim=-1), len(weight)
        )
        return -nll


@torch.no_grad()
def _entropy(rows_N: Tensor, logprobs_of: Callable[[Tensor], Tensor], vocabulary: int) -> Tensor:
    """Entropy [N] of every k-th row, NaN for the others. ``logprobs_of``: rows [K, ...] to log-probs [K, V]."""
    most = max(1, ENTROPY_LOGITS[rows_N.device.type] // vocabulary)
    stride = max(1, -(-len(rows_N) // most))
    logprobs_KV = logprobs_of(rows_N[::stride])
    entropy = torch.full((len(rows_N),), float("nan"), device=rows_N.device)
    # a token that cannot be has log-prob -inf and adds nothing, but 0 * -inf is NaN
    entropy[::stride] = -(logprobs_KV.exp() * logprobs_KV.clamp(min=torch.finfo(torch.float32).min)).sum(dim=-1)
    return entropy
