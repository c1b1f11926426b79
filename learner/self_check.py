"""Which form of running a model gives the log-probs of running it plainly. Tried out at start, on random tokens.

Packed attention, the vocabulary in chunks and picking tokens before the head are right for most models and silently
wrong for some: linear attention, soft caps, scaled logits, heads of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import structlog
import torch
from torch import Tensor

from learner.attention import PACKED, PackingRefusedError
from learner.head import TargetHead, Way
from learner.layout import ModelInput, packed, padded
from learner.packing import Microbatch

log = structlog.get_logger()

LENGTHS: Final = (33, 19)
"""Tokens of the two sequences; the second would see the first if packing leaked."""
TOLERANCE: Final = {False: 2e-4, True: 5e-2}
"""Largest mean difference of a sequence's log-probs, in float32 and (True) under bfloat16 autocast."""
FAILURES: Final = (PackingRefusedError, RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError)
"""What a model raises that is run in a way it was not written for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a model is run."""

    packs: bool
    """Samples one after another in one row, without padding."""
    way: Way


def choose_form(model: Any, head: TargetHead, *, packing: bool, half: bool) -> Form:
    """The cheapest form that agrees with the model run plainly; the model is left set to that form's attention.

    A model that does not run packed, though asked to, gets a warning that says why.
    """
    trial = Trial(model, head, half)
    reasons: list[str] = []
    for form in (Form(packs=packs, way=way) for packs in (True, False)[not packing :] for way in head.ways):
        if (reason := trial.refusal(form)) is None:
            break
        reasons.append(f"{'packed' if form.packs else 'padded'}, {form.way}: {reason}")
    if reason is not None:
        log.warning("learner.rows_depend_on_each_other", model=type(model).__name__, reasons=reasons)
    elif packing and not form.packs:
        log.warning("learner.runs_padded", model=type(model).__name__, reasons=reasons)
    log.info("learner.form", packed=form.packs, logprobs=form.way, passed_over=reasons)
    return form


def random_batch(vocabulary: int) -> Microbatch:
    """Two sequences of random tokens, all but their first ones targets."""
    starts = np.cumsum([0, *LENGTHS])
    is_target = np.ones(starts[-1], dtype=np.bool_)
    is_target[starts[:-1]] = False
    return Microbatch(
        token_ids_T=np.random.default_rng(0).integers(0, vocabulary, starts[-1]),
        is_target_T=is_target,
        behaviour_logprobs_T=np.zeros(starts[-1], dtype=np.float32),
        starts_S1=starts,
        advantages_S=np.zeros(len(LENGTHS), dtype=np.float32),
        objectives_S=np.zeros(len(LENGTHS), dtype=np.int64),
        staleness_S=np.zeros(len(LENGTHS), dtype=np.int64),
        samples_S=np.arange(len(LENGTHS)),
    )


class Trial:
    """Two random sequences run plainly, to compare with how other forms run them.

    In float32, which shows every leak; and in bfloat16 too where training uses it, since other kernels run then, but
    small leaks would be lost in the rounding.
    """

    def __init__(self, model: Any, head: TargetHead, half: bool) -> None:
        self._model, self._head = model, head
        self._device = next(model.parameters()).device
        self._own_attention = model.config._attn_implementation
        self._batch = random_batch(int(model.config.get_text_config().vocab_size))
        self._expected = {low: self._plainly(low) for low in (False, True)[: 1 + half]}

    @torch.no_grad()
    def refusal(self, form: Form) -> str | None:
        """Why the model must not be run in this form; None when it may. Leaves the model set to its attention."""
        name = PACKED if form.packs else self._own_attention
        if self._model.config._attn_implementation != name:
            self._model.set_attn_implementation(name)  # a model that cannot keeps its own, and then disagrees
        try:
            return next((reason for low in self._expected if (reason := self._disagreement(form, low))), None)
        except FAILURES as error:
            return f"{type(error).__name__}: {error}"

    def _disagreement(self, form: Form, low: bool) -> str | None:
        given = (packed if form.packs else padded)(self._batch, self._device)
        with self._precision(low):
            found = self._head.score(self._model, given, form.way).logprobs
        if form.packs:
            _refuse_unseen_attention(self._model.config.get_text_config(), given)
        differences = torch.split((found - self._expected[low]).abs(), [length - 1 for length in LENGTHS])
        most = max(part.mean().item() for part in differences)
        return None if most <= TOLERANCE[low] else f"log-probs differ by {most:.2g} on average, above {TOLERANCE[low]}"

    @torch.no_grad()
    def _plainly(self, low: bool) -> Tensor:
        """Log-probs [N], each sequence in a call of its own, by the model's own attention and head."""
        found = []
        for ids in np.split(self._batch.token_ids_T, self._batch.starts_S1[1:-1]):
            ids_L = torch.from_numpy(ids).to(self._device)
            with self._precision(low):
                logits = self._model(input_ids=ids_L[None], use_cache=False).logits[0, :-1].float()
            found.append(torch.log_softmax(logits, dim=-1).gather(1, ids_L[1:, None])[:, 0])
        return torch.cat(found)

    def _precision(self, low: bool) -> torch.autocast:
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=low)


def _refuse_unseen_attention(config: Any, given: ModelInput) -> None:
    """What two short sequences cannot show: windows wider than they are, and attention in chunks."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if others := kinds - {"full_attention", "sliding_attention"}:
        raise PackingRefusedError(f"layers of type {', '.join(sorted(others))}")
    if getattr(config, "attention_chunk_size", None) is not None and not kinds:
        raise PackingRefusedError("its attention is in chunks")
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    if slides and window is not None and window not in given.arguments["segments"].windows:
        raise PackingRefusedError(f"its attention slides a window of {window}, but is not told so")
