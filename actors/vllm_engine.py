"""The vLLM engine: continuous batching, driven step by step in this process, weights replaced between two steps.

Everything vLLM can do in the background is off: no process of its own, no scheduling ahead of the results. A step
is over when ``step`` returns, so an update between two steps is atomic and its span boundary exact.

What ``kv_on_update`` costs when weights change in mid-completion:
- ``recompute``: every running completion is computed again from its prompt, under the new weights, in one prefill of
  all its tokens so far. Log-probs are exactly those of the version in the span.
- ``keep``: nothing is computed again. Keys and values of old weights stay in running completions, which makes them
  about half a version staler than their span says; what was recorded is still what was sampled from.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2s
from itertools import count
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from vllm import SamplingParams
from vllm.config import WeightTransferConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine

from actors.engine import Generated, Request, check_request
from actors.vllm_worker import BACKEND, EXTENSION
from actors.vocabulary import Vocabulary, load_tokenizer
from actors.weight_files import Shapes, check_fit
from common.errors import SettingsError, WeightsError
from common.messages import ChatMessage, Completion, Sampling
from common.pretrained import pretrained
from common.settings import Model, Vllm

REPORTS_SPANS: Final = "weight_versions" in CompletionOutput.__dataclass_fields__
"""Whether this vLLM says which weights sampled which tokens. Older ones do not: the step loop counts then."""
CPU_BLOCK_TOKENS: Final = 32
"""vLLM's default of 128 on a CPU finds no shared prompt that is shorter than that."""


@dataclass(slots=True, eq=False)
class _Row:
    """One completion on its way."""

    request: Request
    sample: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    finish_reason: str | None = None

    def take(self, output: Any, policy_version: int) -> None:
        """``output`` brings the tokens of this step, or all at the end with the engine's own spans."""
        if REPORTS_SPANS and output.weight_versions is not None:
            self.spans = [(int(span.version), span.start) for span in output.weight_versions]
        elif output.token_ids and (not self.spans or self.spans[-1][0] != policy_version):
            self.spans.append((policy_version, len(self.tokens)))
        self.tokens.extend(output.token_ids)
        self.logprobs.extend(output.logprobs.logprobs)
        self.finish_reason = output.finish_reason


class VllmEngine:
    """One vLLM engine of this process. There can be only one at a time: vLLM keeps its process groups in globals.

    Raises SettingsError when vLLM does not start with these settings.
    """

    def __init__(
        self,
        model: Model,
        settings: Vllm,
        *,
        max_prompt_tokens: int,
        kv_on_update: Literal["recompute", "keep"] = "recompute",
    ) -> None:
        tokenizer, config = load_tokenizer(model), pretrained(AutoConfig.from_pretrained, model)
        self._vocabulary = Vocabulary(tokenizer, _generation_config(model, config).eos_token_id)
        self._shapes = _shapes(config, model)
        self._max_prompt_tokens = max_prompt_tokens
        self.kv_on_update = kv_on_update  # may be changed while nothing is in flight
        with _quiet_start():
            self._llm = _start(model, settings)
        self._positions: int = self._llm.model_config.max_model_len
        self._policy_version = -1
        self._updates = 0
        self._broken = False
        self._ids = count()
        self._slots = settings.max_num_seqs
        self._waiting: deque[_Row] = deque()
        """Not given to vLLM yet: it has no slot for them, and at an update they would have to be taken back."""
        self._rows: dict[str, _Row] = {}
        self._groups: dict[str, list[_Row]] = {}

    @property
    def policy_version(self) -> int:
        return self._policy_version

    @policy_version.setter
    def policy_version(self, version: int) -> None:
        self._policy_version = version
        if REPORTS_SPANS:
            self._llm.set_weight_version(str(version))

    @property
    def groups_in_flight(self) -> int:
        return len(self._groups)

    def tokenize(self, messages: Sequence[ChatMessage]) -> NDArray[np.int32]:
        return self._vocabulary.prompt(messages)

    def add(self, request: Request) -> None:
        check_request(request, max_prompt_tokens=self._max_prompt_tokens, positions=self._positions)
        rows = [_Row(request, sample) for sample in range(request.sampling.n)]
        self._groups[request.key] = rows
        self._waiting.extend(rows)

    def step(self) -> list[Generated]:
        if self._policy_version < 0 or not self._groups:
            return []
        while self._waiting and len(self._rows) < self._slots:
            self._give(self._waiting.popleft())
        ended: dict[str, None] = {}
        for output in self._llm.step():
            row = self._rows[output.request_id]
            row.take(output.outputs[0], self._policy_version)
            if output.finished:
                del self._rows[output.request_id]
                ended[row.request.key] = None
        return [self._pop(key) for key in ended if all(row.finish_reason for row in self._groups[key])]

    def apply(self, files: Sequence[Path], policy_version: int) -> None:
        check_fit(files, self._shapes, policy_version)
        self._policy_version = -1  # whatever goes wrong from here on, nothing is sampled from what it leaves behind
        try:
            self._replace(files)
        except Exception as error:
            self._broken = True
            raise WeightsError(f"weights of version {policy_version} broke off half-way: {error}") from error
        self._broken = False
        self.policy_version = policy_version

    def forget(self) -> None:
        self._llm.abort_request(list(self._rows))
        self._rows.clear()
        self._waiting.clear()
        self._groups.clear()

    def close(self) -> None:
        """End vLLM's workers and free what it holds. The engine is of no use after that."""
        self._llm.engine_core.shutdown()

    def _replace(self, files: Sequence[Path]) -> None:
        if self._broken:
            self._llm.collective_rpc("abandon_weight_update")
        self._llm.collective_rpc("start_weight_update")
        paths = [str(path) for path in files]
        self._llm.collective_rpc("update_weights", kwargs={"update_info": {"paths": paths}})
        self._llm.collective_rpc("finish_weight_update")
        self._updates += 1
        if self.kv_on_update == "recompute":
            self._llm.reset_prefix_cache(reset_running_requests=True)
        else:
            self._start_anew()

    def _start_anew(self) -> None:
        """What has no token yet is given again, so that it shares no prompt with what the old weights computed."""
        untouched = {key: row for key, row in self._rows.items() if not row.tokens}
        self._llm.abort_request(list(untouched))
        for key in untouched:
            del self._rows[key]
        self._waiting.extendleft(reversed(untouched.values()))

    def _give(self, row: _Row) -> None:
        """One vLLM request per row: its own n-fold requests take seeds that overlap with those of the next task."""
        key = str(next(self._ids))
        prompt = {"type": "token", "prompt_token_ids": row.request.prompt_token_ids.tolist()}
        if self.kv_on_update == "keep":  # cached prompts of other updates have another salt. Not the version:
            prompt["cache_salt"] = str(self._updates)  # another learner's line may have the same
        self._llm.add_request(key, prompt, self._sampling(row.request.sampling, row.sample))
        self._rows[key] = row

    def _sampling(self, sampling: Sampling, sample: int) -> SamplingParams:
        # the tokens of each step are needed where spans are counted, and to know which rows have none yet
        at_the_end = REPORTS_SPANS and self.kv_on_update == "recompute"
        return SamplingParams(
            temperature=sampling.temperature,
            seed=_seed(sampling.seed, sample),
            max_tokens=sampling.max_new_tokens,
            ignore_eos=True,  # what ends a completion is the same in both engines:
            stop_token_ids=sorted(self._vocabulary.stop_ids),
            logprobs=0,  # that of the sampled token only, raw: at temperature 1, in fp32
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY if at_the_end else RequestOutputKind.DELTA,
        )

    def _pop(self, key: str) -> Generated:
        rows = self._groups.pop(key)
        return Generated(request=rows[0].request, completions=tuple(self._completion(row) for row in rows))

    def _completion(self, row: _Row) -> Completion:
        if row.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"vLLM ended a completion of task {row.request.key} with {row.finish_reason!r}")
        return self._vocabulary.completion(row.tokens, row.logprobs, row.spans, stopped=row.finish_reason == "stop")


def _start(model: Model, settings: Vllm) -> LLMEngine:
    on_cpu = not torch.cuda.is_available()
    arguments = EngineArgs(
        model=model.path,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        dtype=model.dtype,
        skip_tokenizer_init=True,
        generation_config="vllm",  # sampling is the task's, never the model's recommendation
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        block_size=settings.block_size or (CPU_BLOCK_TOKENS if on_cpu else None),
        kv_cache_memory_bytes=round(settings.kv_cache_gib * 2**30) if on_cpu else None,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        tensor_parallel_size=settings.tensor_parallel_size,
        enforce_eager=settings.enforce_eager or on_cpu,
        # a prompt in pieces rewinds the generators of seeded requests, which those of a CPU refuse
        enable_chunked_prefill=False if on_cpu else None,
        async_scheduling=False,  # a step that runs ahead would sample with old weights under the new version's label
        disable_log_stats=True,
        use_tqdm_on_load=False,
        worker_extension_cls=EXTENSION,
        weight_transfer_config=WeightTransferConfig(backend=BACKEND),
    )
    try:
        return LLMEngine.from_engine_args(arguments)
    except Exception as error:  # that of a worker process comes as nothing more special
        reason = " ".join(str(error).split())
        raise SettingsError(f"vLLM does not start with model.path={model.path!r}: {reason}") from error


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Keep what vLLM does to its process at its start from others."""
    set_num_threads = torch.set_num_threads
    try:
        with warnings.catch_warnings():
            # looking for kernels it touches every attribute of torch.distributed
            warnings.filterwarnings("ignore", r".*torch\.distributed\.reduce_op.* is deprecated", FutureWarning)
            yield
    finally:
        torch.set_num_threads = set_num_threads  # its CPU worker puts one there that only complains


def _shapes(config: Any, model: Model) -> Shapes:
    """Names and shapes of a whole set of weights: the parameters of the Hugging Face model, tied ones once."""
    build: Any = AutoModelForCausalLM.from_config
    try:
        with torch.device("meta"):
            skeleton = build(config, trust_remote_code=model.trust_remote_code)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(f"model.path={model.path!r} is no causal language model: {reason}") from error
    return {name: tuple(parameter.shape) for name, parameter in skeleton.named_parameters()}


def _generation_config(model: Model, config: Any) -> Any:
    try:
        return GenerationConfig.from_pretrained(model.path, revision=model.revision or "main")
    except OSError:  # transformers itself goes on like this when there is no generation_config.json
        return GenerationConfig.from_model_config(config)


def _seed(task_seed: int, sample: int) -> int:
    """Of one completion, from 0 to 2**63 - 1: a group does not depend on its neighbours."""
    return int.from_bytes(blake2s(f"{task_seed}/{sample}".encode(), digest_size=8).digest()) >> 1
