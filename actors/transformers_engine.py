"""The transformers engine: batched sampling with a KV cache, weights replaced between two decoding steps.

Shape letters: P prompts, R rows (completions in the batch), L padded length, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils.logging import disable_progress_bar

from actors.engine import Generated, Request, check_request
from actors.vocabulary import Vocabulary, load_tokenizer
from actors.weight_files import check_fit, named_tensors
from common.errors import SettingsError, WeightsError
from common.messages import ChatMessage, Completion
from common.pretrained import pretrained
from common.settings import Model


def load_model(settings: Model) -> tuple[Any, Any]:
    """Model and tokenizer. Raises SettingsError when there is none, or no chat template."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = load_tokenizer(settings)
    model: Any = pretrained(
        AutoModelForCausalLM.from_pretrained,
        settings,
        dtype=getattr(torch, settings.dtype),
        attn_implementation=settings.attn_implementation,
        use_safetensors=True,
    )
    return model, tokenizer


def device_of(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device of a setting. Raises SettingsError for a GPU that is not there."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise SettingsError("actor.device='cuda', but torch sees no CUDA device; set auto or cpu")
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


@dataclass(slots=True, eq=False)
class _Row:
    """One completion on its way."""

    request: Request
    uniforms: NDArray[np.float64]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    stopped: bool = False

    @property
    def finished(self) -> bool:
        return self.stopped or len(self.tokens) == self.request.sampling.max_new_tokens

    def take(self, token: int, logprob: float, version: int, stop_ids: frozenset[int]) -> None:
        if not self.spans or self.spans[-1][0] != version:
            self.spans.append((version, len(self.tokens)))
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.stopped = token in stop_ids


class TransformersEngine:
    """Batches run to their end; groups that arrive meanwhile form the next batch.

    Sampling inverts the distribution function at uniforms drawn from (task seed, sample index), so a
    completion does not depend on which actor or batch it runs in, up to floating-point order.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        groups_per_batch: int,
        max_prompt_tokens: int,
        kv_on_update: Literal["recompute", "keep"] = "recompute",
        device: Literal["auto", "cpu", "cuda"] = "cpu",
    ) -> None:
        self.policy_version = -1
        self.device = device_of(device)
        self.model = model.eval().to(self.device)
        self._vocabulary = Vocabulary(tokenizer, model.generation_config.eos_token_id)
        self._groups_per_batch = groups_per_batch
        self._max_prompt_tokens = max_prompt_tokens
        self.kv_on_update = kv_on_update
        self._waiting: deque[Request] = deque()
        self._batch: _Batch | None = None

    @property
    def groups_in_flight(self) -> int:
        return len(self._waiting) + (len(self._batch.unfinished) if self._batch else 0)

    def tokenize(self, messages: Sequence[ChatMessage]) -> NDArray[np.int32]:
        return self._vocabulary.prompt(messages)

    def add(self, request: Request) -> None:
        positions = getattr(self.model.config, "max_position_embeddings", None)
        check_request(request, max_prompt_tokens=self._max_prompt_tokens, positions=positions)
        self._waiting.append(request)

    @torch.inference_mode()
    def step(self) -> list[Generated]:
        if self.policy_version < 0:
            return []
        if self._batch is None:
            if not self._waiting:
                return []
            count = min(self._groups_per_batch, len(self._waiting))
            requests = [self._waiting.popleft() for _ in range(count)]
            self._batch = _Batch(requests, self._vocabulary.pad_id, self.device)
        batch = self._batch
        logits_RV = batch.forward(self.model)
        tokens_R, logprobs_R = _sample(logits_RV, batch.rows)
        batch.take(tokens_R, logprobs_R, self.policy_version, self._vocabulary.stop_ids)
        finished = [self._generated(request, rows) for request, rows in batch.pop_finished()]
        if not batch.unfinished:
            self._batch = None
        return finished

    def apply(self, files: Sequence[Path], policy_version: int) -> None:
        live = dict(self.model.named_parameters())  # tied weights appear once
        check_fit(files, {name: tuple(parameter.shape) for name, parameter in live.items()}, policy_version)
        self.policy_version = -1
        try:
            with torch.no_grad():
                for name, tensor in named_tensors(files):
                    live[name].copy_(tensor)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise WeightsError(f"weights of version {policy_version} broke off half-way: {error}") from error
        self.policy_version = policy_version
        if self._batch is not None and self.kv_on_update == "recompute":
            self._batch.forget_cache()

    def forget(self) -> None:
        self._batch = None
        self._waiting.clear()

    def _generated(self, request: Request, rows: list[_Row]) -> Generated:
        return Generated(request=request, completions=tuple(self._completion(row) for row in rows))

    def _completion(self, row: _Row) -> Completion:
        return self._vocabulary.completion(row.tokens, row.logprobs, row.spans, stopped=row.stopped)


class _Batch:
    """Rows that decode in lockstep, left-padded to one length."""

    def __init__(self, requests: list[Request], pad_id: int, device: torch.device) -> None:
        self.rows = [_Row(r, _uniforms(r, sample)) for r in requests for sample in range(r.sampling.n)]
        self.unfinished: dict[str, list[_Row]] = {r.key: [] for r in requests}
        for row in self.rows:
            self.unfinished[row.request.key].append(row)
        self._requests = requests
        self._pad_id = pad_id
        self._device = device
        self._cache: Any = None
        self._mask_RL: torch.Tensor = torch.empty(0)

    def forward(self, model: Any) -> torch.Tensor:
        """Logits [R, V] of the next token of every row."""
        if self._cache is not None:
            last_R1 = torch.tensor([[row.tokens[-1]] for row in self.rows], device=self._device)
            self._mask_RL = torch.cat([self._mask_RL, torch.ones_like(last_R1)], dim=1)
            return self._run(model, last_R1)
        if any(row.tokens for row in self.rows):  # the cache was forgotten: every row has its own prefix now
            return self._prefill(model, [[*row.request.prompt_token_ids.tolist(), *row.tokens] for row in self.rows])
        logits_PV = self._prefill(model, [request.prompt_token_ids.tolist() for request in self._requests])
        repeats = [p for p, r in enumerate(self._requests) for _ in range(r.sampling.n)]
        repeat_R = torch.tensor(repeats, device=self._device)
        self._select(repeat_R)  # the prompt is computed once for its n completions
        return logits_PV[repeat_R]

    def take(self, tokens_R: list[int], logprobs_R: list[float], version: int, stop_ids: frozenset[int]) -> None:
        for row, token, logprob in zip(self.rows, tokens_R, logprobs_R, strict=True):
            if not row.finished:
                row.take(token, logprob, version, stop_ids)

    def pop_finished(self) -> list[tuple[Request, list[_Row]]]:
        """Groups whose last row has just finished. Drops finished rows once they are half of the batch."""
        done = [key for key, rows in self.unfinished.items() if all(row.finished for row in rows)]
        popped = [(rows[0].request, rows) for rows in (self.unfinished.pop(key) for key in done)]
        running = [index for index, row in enumerate(self.rows) if not row.finished]
        if running and 2 * len(running) <= len(self.rows):
            self.rows = [self.rows[index] for index in running]
            if self._cache is not None:
                self._select(torch.tensor(running, device=self._device))
        return popped

    def forget_cache(self) -> None:
        self._cache = None
        self.rows = [row for row in self.rows if not row.finished]  # so that these are not computed again

    def _prefill(self, model: Any, prefixes: list[list[int]]) -> torch.Tensor:
        length = max(map(len, prefixes))
        ids = [[self._pad_id] * (length - len(prefix)) + prefix for prefix in prefixes]
        mask = [[0] * (length - len(prefix)) + [1] * len(prefix) for prefix in prefixes]
        self._mask_RL = torch.tensor(mask, device=self._device)
        self._cache = DynamicCache(config=model.config)
        return self._run(model, torch.tensor(ids, device=self._device))

    def _run(self, model: Any, ids: torch.Tensor) -> torch.Tensor:
        positions = (self._mask_RL.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = model(
            input_ids=ids,
            attention_mask=self._mask_RL,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def _select(self, rows: torch.Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._mask_RL = self._mask_RL[rows]


def _uniforms(request: Request, sample: int) -> NDArray[np.float64]:
    sampling = request.sampling
    return np.random.default_rng((sampling.seed, sample)).random(sampling.max_new_tokens)


def _sample(logits_RV: torch.Tensor, rows: list[_Row]) -> tuple[list[int], list[float]]:
    """Tokens drawn at each row's temperature (0: the most likely), and their raw log-probs in fp32."""
    logprobs_RV = torch.log_softmax(logits_RV, dim=-1)
    temperatures_R = logits_RV.new_tensor([row.request.sampling.temperature for row in rows])
    uniforms = [row.uniforms[min(len(row.tokens), len(row.uniforms) - 1)] for row in rows]
    uniforms_R = torch.tensor(uniforms, device=logits_RV.device)
    scaled_RV = logits_RV / temperatures_R.clamp(min=1e-6)[:, None]
    cdf_RV = torch.softmax(scaled_RV, dim=-1).double().cumsum(dim=-1)
    drawn_R = torch.searchsorted(cdf_RV, (uniforms_R * cdf_RV[:, -1])[:, None], right=True)[:, 0]
    drawn_R = drawn_R.clamp(max=logits_RV.shape[-1] - 1)
    tokens_R = torch.where(temperatures_R > 0, drawn_R, logits_RV.argmax(dim=-1))
    return tokens_R.tolist(), logprobs_RV.gather(1, tokens_R[:, None])[:, 0].tolist()
