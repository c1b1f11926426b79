"""Log-probs of a model on microbatches, in the cheapest form that it verifiably supports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch

from common.settings import Settings
from learner.head import Scores, TargetHead
from learner.layout import packed, padded
from learner.packing import Microbatch, rows_for_padding
from learner.self_check import choose_form

PLAIN_LOGITS: Final = {"cpu": 2**23, "cuda": 2**27}
"""Logits [N, V] up to this many are made at once: chunks, whose logits the backward pass makes again, took 1.2 to 2
times as long on a CPU at every size tried (V from 58 to 32,000), and only save memory."""


class Scorer:
    """Owns how one causal LM is run. Make it before anything wraps the model: it tries the model out."""

    def __init__(self, model: Any, settings: Settings) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self._half = settings.learner.precision == "bfloat16"
        self._budget = settings.learner.tokens_per_microbatch
        self._vocabulary = int(model.config.get_text_config().vocab_size)
        self._head = TargetHead(model)
        with _float32_in_full():
            self.form = choose_form(model, self._head, packing=settings.learner.packing, half=self._half)
        if self._half and self.device.type == "cuda":
            # the head stays float32: TF32 does that at half the speed of bfloat16, instead of a fifteenth
            torch.set_float32_matmul_precision("high")

    def precision(self) -> torch.autocast:
        """Of the forward pass: bfloat16 where autocast holds it safe, over float32 weights."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._half)

    def arrange(self, microbatches: Sequence[Microbatch]) -> list[Microbatch]:
        """The same samples in microbatches that fit the budget in the form in which this model runs them."""
        return list(microbatches) if self.form.packs else rows_for_padding(microbatches, self._budget)

    def __call__(self, batch: Microbatch, model: Any = None) -> Scores:
        """Scores [N] in the order of ``batch.targets_N``. ``model``: a wrapper to run instead of the model itself."""
        given = (packed if self.form.packs else padded)(batch, self.device)
        few = len(given.target_ids_N) * self._vocabulary <= PLAIN_LOGITS[self.device.type]
        way = "selected" if few and self.form.way == "chunked" else self.form.way
        with self.precision():
            return self._head.score(model or self.model, given, way)


@contextmanager
def _float32_in_full() -> Iterator[None]:
    """For the self-check: TF32, which an earlier scorer may have switched on, is coarser than what it tolerates."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
